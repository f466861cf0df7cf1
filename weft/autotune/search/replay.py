"""Recorded tables: every configuration of a kernel on some GPU, timed once; a search is replayed on one in a second.

    table = load("gemm_RTX_3090.json.gz")        a cache file of Kernel Tuner, a T4 file, or either of them gzipped
    Search(table.subject(), [Replay(table)]).run()

A file comes from anywhere: it is read as JSON, and what does not fit is refused or is a hole.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from weft.autotune.types import Config, Fidelity, Outcome, Pool, Row, Status, Subject, Value, lower_median
from weft.cache import t4
from weft.cache.canonical import is_text, plain
from weft.errors import UsageError

_MOST = 1 << 30  # bytes, unpacked
_FAILED = {
    "compilationfailedconfig": Status.COMPILE, "compile": Status.COMPILE, "runtimefailedconfig": Status.LAUNCH,
    "runtime": Status.LAUNCH, "invalidconfig": Status.STATIC, "constraints": Status.STATIC, "timeout": Status.TIMEOUT,
    "correctness": Status.WRONG,
}  # fmt: skip


@dataclass(frozen=True)
class RecordedTable:
    """label: for people; device, kernel: as the file names them. outcomes: of every configuration, in the file's order;
    refused: rows of the file that could not be used, by reason."""

    label: str
    device: str
    kernel: str
    configs: tuple[Config, ...]
    outcomes: tuple[Outcome, ...]
    refused: Mapping[str, int] = field(default_factory=dict[str, int])

    @cached_property
    def best_us(self) -> float:
        """The optimum, in microseconds."""
        return min(o.us for o in self.outcomes if o.us is not None)

    @cached_property
    def places(self) -> dict[tuple[tuple[str, Value], ...], int]:
        """Where a configuration stands."""
        return {key(config): place for place, config in enumerate(self.configs)}

    def fraction(self, config: Config | None) -> float:
        """The optimum over the time of a configuration: 1 for the best, 0 for one that failed."""
        place = None if config is None else self.places.get(key(config))
        us = None if place is None else self.outcomes[place].us
        return self.best_us / us if us else 0.0

    def top(self, count: int) -> tuple[Config, ...]:
        """The fastest, best first."""
        timed = [(o.us, place) for place, o in enumerate(self.outcomes) if o.us is not None]
        return tuple(self.configs[place] for _, place in sorted(timed)[:count])

    def subject(self, seeds: Sequence[Config] = ()) -> Subject:
        """The table as a kernel to tune."""
        return Subject(self.label, Pool(self.configs, rejected=dict(self.refused)), seeds=tuple(seeds))


def key(config: Config) -> tuple[tuple[str, Value], ...]:
    """What a configuration is known by in whatever order its knobs are."""
    return tuple(sorted(config.items()))


class Replay:
    """A runner that looks everything up. A configuration that the table lacks fails to compile: a hole."""

    def __init__(self, table: RecordedTable) -> None:
        self.table, self.holes = table, 0

    def time(self, config: Config, fidelity: Fidelity) -> Outcome:
        place = self.table.places.get(key(config))
        if place is None:
            self.holes += 1
            return Outcome(Status.COMPILE, reason="the table has no such configuration")
        found = self.table.outcomes[place]
        us = found.us
        return found if us is None or fidelity.samples >= len(found.times_us) else Outcome(found.status, (us,))

    def close(self) -> None:
        """There is nothing to let go of."""


def load(path: str | os.PathLike[str]) -> RecordedTable:
    """The table in a file; UsageError where it is none."""
    name = Path(path).name
    data = _json(path, name)
    if isinstance(data, dict) and isinstance(data.get("results"), list):
        return _of_t4(data, name)
    if (
        isinstance(data, dict)
        and isinstance(data.get("cache"), dict)
        and isinstance(data.get("tune_params_keys"), list)
    ):
        return _of_kernel_tuner(data, name)
    raise UsageError(f"{name}: neither a cache file of Kernel Tuner nor T4 results")


def _json(path: str | os.PathLike[str], name: str) -> Any:
    try:
        with open(path, "rb") as file:
            raw = file.read(_MOST + 1)
        if raw[:2] == b"\x1f\x8b":
            unpack = zlib.decompressobj(zlib.MAX_WBITS | 16)
            raw = unpack.decompress(raw, _MOST + 1)
        text = raw.decode() if len(raw) <= _MOST else ""
    except (OSError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{name}: {getattr(error, 'strerror', None) or 'cannot be read'}") from None
    # Kernel Tuner appends to its cache file and closes the braces only at the end of a session.
    for whole in (text, text.rstrip().rstrip(",") + "}}"):
        try:
            return json.loads(whole)
        except (ValueError, RecursionError):
            continue
    raise UsageError(f"{name}: not JSON")


def _of_kernel_tuner(data: dict[str, Any], name: str) -> RecordedTable:
    names = data["tune_params_keys"]
    if not names or not all(is_text(n, 64) for n in names):
        raise UsageError(f"{name}: tune_params_keys are not names")
    found: list[tuple[Any, Outcome]] = []
    for row in data["cache"].values():
        config = {n: row.get(n) for n in names} if isinstance(row, dict) else None
        found.append((config, _outcome(row) if isinstance(row, dict) else Outcome(Status.COMPILE)))
    return _table(found, name, data)


def _of_t4(data: dict[str, Any], name: str) -> RecordedTable:
    rows, wrong = t4.rows(data["results"])
    found = [(row.config, _of_row(row)) for row in rows if row.times_us or row.status is not Status.OK]
    return _table(found, name, data, {"rows that are no T4 result": len(wrong)} if wrong else {})


def _of_row(row: Row) -> Outcome:
    return Outcome(row.status, row.times_us, row.reason)


def _table(
    found: Sequence[tuple[Any, Outcome]], name: str, data: Mapping[str, Any], refused: Mapping[str, int] | None = None
) -> RecordedTable:
    kept: dict[tuple[tuple[str, Value], ...], tuple[Config, Outcome]] = {}
    lost = 0
    for config, outcome in found:
        usable = isinstance(config, dict) and config and all(_is_value(v) for v in config.values())
        if usable and (not kept or next(iter(kept.values()))[0].keys() == config.keys()):
            kept.setdefault(key(config), (config, outcome))
        else:
            lost += 1
    if not any(outcome.us for _, outcome in kept.values()):
        raise UsageError(f"{name}: no configuration in it has a time")
    label = name.removesuffix(".gz").removesuffix(".json")
    device, kernel = (plain(str(data.get(k) or ""), 100) for k in ("device_name", "kernel_name"))
    more = {"rows without usable values": lost} if lost else {}
    configs, outcomes = zip(*kept.values())
    return RecordedTable(plain(label, 100), device, kernel, configs, outcomes, {**(refused or {}), **more})


def _is_value(value: Any) -> bool:
    return value is None or type(value) in (int, bool) or is_text(value, 100) or _is_finite(value)


def _is_finite(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


def _outcome(row: Mapping[str, Any]) -> Outcome:
    """Of a row of Kernel Tuner, in milliseconds. The samples are scaled so that their median is the row's `time`, which
    is what such tables are ranked by."""
    time, samples = row.get("time"), row.get("times")
    us = _positive(time) * 1e3
    if not 0 < us <= 1e12:
        status = _FAILED.get(str(time).lower(), Status.LAUNCH)
        return Outcome(status, reason=f"recorded as {plain(str(time), 60)}")
    times = [_positive(t) for t in samples] if isinstance(samples, list) else []
    if not times or not all(times):
        return Outcome(Status.OK, (us,))
    middle = lower_median(times)
    return Outcome(Status.OK, tuple(us if t == middle else us * (t / middle) for t in times))


def _positive(value: Any) -> float:
    """A number above 0; 0 for anything else."""
    return float(value) if type(value) in (int, float) and math.isfinite(value) and value > 0 else 0.0
