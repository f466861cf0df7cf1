"""Rows as Kernel Tuner and the tools around it read and write them: T4 results, schema 1.0.0 (times in milliseconds).

What T4 has no field for stands in `measurements`, under names that begin with "weft.", and the key beside the results:
a file of ours comes back as it was, and a file of theirs becomes rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from weft.cache.canonical import is_text
from weft.cache.key import Key, KeyInvalid, Soft
from weft.cache.pack import Entry
from weft.cache.row import Row, RowInvalid, Source, Status
from weft.errors import PackError

T4_SCHEMA = "1.0.0"
MOST_RESULTS = 1_000_000
_INVALIDITY = {
    Status.OK: "correct", Status.SLOW: "correct", Status.STATIC: "constraints", Status.COMPILE: "compile",
    Status.TIMEOUT: "timeout", Status.LAUNCH: "runtime", Status.CRASH: "runtime", Status.OOM: "runtime",
    Status.INVALID_TIME: "runtime", Status.WRONG: "correctness", Status.NON_FINITE: "correctness",
}  # fmt: skip
_STATUS = {
    "correct": Status.OK, "constraints": Status.STATIC, "compile": Status.COMPILE, "timeout": Status.TIMEOUT,
    "runtime": Status.LAUNCH, "correctness": Status.WRONG,
}  # fmt: skip
_OURS = "weft.row"


def document(entry: Entry) -> dict[str, Any]:
    """An entry as a T4 document."""
    softs = {name: soft.flat() for name, soft in sorted(entry.softs.items())}
    return {
        "schema_version": T4_SCHEMA,
        "results": [_result(row) for row in entry.rows],
        "weft": {"key": entry.key.flat(), "softs": softs},
    }


def _result(row: Row) -> dict[str, Any]:
    measurements: list[dict[str, Any]] = []
    if row.us is not None:
        measurements.append({"name": "time", "value": row.us / 1e3, "unit": "ms"})
    for name, unit in (("shared", "bytes"), ("regs", ""), ("stack", "bytes"), ("clock_mhz", "MHz")):
        if getattr(row, name) is not None:
            measurements.append({"name": name, "value": getattr(row, name), "unit": unit})
    measurements.append({"name": _OURS, "value": row.text, "unit": ""})
    return {
        "timestamp": _date(row.t),
        "configuration": row.config,
        "objectives": ["time"],
        "times": {
            "compilation_time": (row.compile_s or 0.0) * 1e3,
            "runtimes": [us / 1e3 for us in row.times_us],
            "framework": 0.0,
            "search_algorithm": 0.0,
            "validation": 0.0,
        },
        "invalidity": _INVALIDITY[row.status],
        "correctness": 0.0 if row.status in (Status.WRONG, Status.NON_FINITE) else 1.0,
        "measurements": measurements,
    }


def _date(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ")
    except (OverflowError, OSError, ValueError):
        return datetime.fromtimestamp(0, UTC).isoformat(sep=" ")


def rows(results: Iterable[Any]) -> tuple[list[Row], list[str]]:
    """The rows of T4 results, and what is wrong with those that are none."""
    found: list[Row] = []
    wrong: list[str] = []
    for number, result in enumerate(results):
        try:
            found.append(_row(result))
        except RowInvalid as error:
            wrong.append(f"result {number}: {error}")
    return found, wrong


def _row(result: Any) -> Row:
    if not isinstance(result, dict) or not isinstance(result.get("times"), dict):
        raise RowInvalid("not an object with 'configuration' and 'times'")
    invalidity = result.get("invalidity")
    status = _STATUS.get(invalidity) if isinstance(invalidity, str) else None
    if status is None:
        raise RowInvalid("field 'invalidity' is not one of its values")
    given = result.get("measurements", [])
    listed = given if isinstance(given, list) else []
    measured = {m["name"]: m.get("value") for m in listed if isinstance(m, dict) and is_text(m.get("name"))}
    own = measured.get(_OURS)
    if isinstance(own, str):
        return _own(own, result, status)
    times = result["times"].get("runtimes") or [measured.get("time")]
    compile_ms = result["times"].get("compilation_time", result["times"].get("compilation"))
    if status is not Status.OK or not isinstance(times, list):
        times = []
    kept = [t * 1e3 for t in times if isinstance(t, int | float) and 0 < t * 1e3 <= 1e12]
    return Row.of(
        result.get("configuration", {}),
        status if kept or status is not Status.OK else Status.INVALID_TIME,
        times_us=kept[:4096],
        compile_s=compile_ms / 1e3 if isinstance(compile_ms, int | float) and 0 <= compile_ms < 1e12 else None,
        src=Source.IMPORT,
    )


def _own(text: str, result: dict[str, Any], status: Status) -> Row:
    try:
        row = Row.parse(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise RowInvalid(f"its own row cannot be read: {str(error)[:200]}") from None
    if row.config != result.get("configuration") or _INVALIDITY[row.status] != _INVALIDITY[status]:
        raise RowInvalid("its own row is not the one the result shows")
    return row


def parse(data: bytes, path: str, key: Key | None = None) -> Entry:
    """The entry of a T4 file; PackError lists what is wrong. key: what a file that names none was measured for."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise PackError(path, [(1, "not JSON")]) from None
    results = found.get("results") if isinstance(found, dict) else None
    if not isinstance(results, list) or len(results) > MOST_RESULTS:
        raise PackError(path, [(1, 'not T4 results: no list "results"')])
    if not str(found.get("schema_version", "")).startswith("1."):
        raise PackError(path, [(1, f"schema_version is not {T4_SCHEMA}")])
    softs: dict[str, Soft] = {}
    own = found.get("weft")
    try:
        if isinstance(own, dict):
            key = key or Key.parse(own.get("key"))
            given = own.get("softs")
            softs = {soft.id: soft for soft in map(Soft.parse, given.values())} if isinstance(given, dict) else {}
    except KeyInvalid as error:
        raise PackError(path, [(1, f"its key: {error}")]) from None
    if key is None:
        raise PackError(path, [(1, "names no key; say which one it was measured for with --key")])
    made, wrong = rows(results)
    if wrong:
        raise PackError(path, [(1, message) for message in wrong[:50]])
    return Entry.of(key, made, softs)


def looks_like(data: bytes) -> bool:
    """Whether a file is one JSON object over several lines or without a pack's head, as T4 results are."""
    return data.lstrip()[:1] == b"{" and b'"weft.pack/' not in data[:200] and b'"results"' in data


def text(entry: Entry) -> bytes:
    """The file of an entry."""
    return (json.dumps(document(entry), indent=1, sort_keys=True) + "\n").encode()
