"""What `weft cache ...` does, as functions that give plain data."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from weft.cache import pack, t4, tidy
from weft.cache.key import Key, Soft
from weft.cache.pack import Pack
from weft.cache.place import cache_dir
from weft.cache.row import Row
from weft.cache.sources import export, take
from weft.cache.store import Store
from weft.cache.summary import Summary, summarise
from weft.errors import PackError, UsageError

FORMATS = ("pack", "t4")
_TOP = 10


def ls() -> dict[str, Any]:
    """The keys of the store, with what each came to."""
    store = Store()
    rows = [_listed(key, store.summary(key)) for key in store.known()]
    rows.sort(key=lambda r: (r["gpu"], r["skeleton"], r["bucket"], r["id"]))
    return {"root": store.root, "keys": rows}


def _listed(key: Key, found: Summary) -> dict[str, Any]:
    tops = [found.tops[name][0] for name in sorted(found.tops) if found.tops[name]]
    best = min(tops, key=lambda b: b.order, default=None)
    return {
        "id": key.id, "skeleton": key.skeleton, "gpu": key.device.gpu, "arch": key.device.arch,
        "bucket": bucket(key), "dtypes": key.dtypes, "triton": key.triton, "trials": sum(found.counts.values()),
        "us": best.us if best else None, "config": best.config if best else None,
    }  # fmt: skip


def bucket(key: Key) -> str:
    """The shapes of a key for people."""
    return " ".join(f"{dim}={size}" for dim, size in sorted(key.bucket))


def explain(what: str) -> dict[str, Any]:
    """Everything about one key of the store, by the beginning of its id, or about a pack."""
    if os.path.exists(what):
        given = opened(what)
        return {
            "pack": what, "sha256": given.sha256, "rows": given.rows,
            "provenance": sorted((dict(p) for p in given.provenance), key=str),
            "keys": [_listed(e.key, given.summary(e.key)) for e in given.entries.values()],
        }  # fmt: skip
    store = Store()
    key = chosen(store, what)
    rows, softs = store.rows(key), store.softs(key)
    near = sorted(((len(d), k.id, d) for k in store.known() if k != key for d in [key.differs(k)]), key=lambda r: r[:2])
    return {
        "key": key.flat(), "id": key.id, "path": store.path(key), **_told(rows, softs),
        "health": asdict(store.health(key)),
        "nearest": [
            {"id": other, "differs": [{"field": f, "here": a, "there": b} for f, a, b in d]} for _, other, d in near[:5]
        ],
    }  # fmt: skip


def _told(rows: Sequence[Row], softs: dict[str, Soft]) -> dict[str, Any]:
    reasons = Counter((row.status.value, row.reason) for row in rows if row.reason)
    found = summarise(rows, softs)
    times: dict[str, list[float]] = {}
    for row in rows:
        times.setdefault(repr(row.cfg), []).extend(row.times_us)
    tops = [
        {
            "soft": soft, "config": best.config, "us": best.us, "trials": best.trials, "round": best.round,
            "spread": _spread(times[repr(best.cfg)]),
        }
        for soft, bests in sorted(found.tops.items())
        for best in bests[:_TOP]
    ]  # fmt: skip
    return {
        "trials": dict(found.counts),
        "reasons": [{"status": s, "reason": r, "trials": n} for (s, r), n in reasons.most_common(_TOP)],
        "measured under": {name: soft.flat() for name, soft in sorted(softs.items())},
        "best": tops,
    }


def _spread(times: list[float]) -> float:
    """The middle half of the samples over their median."""
    ordered = sorted(times)
    low, middle, high = (ordered[int(q * (len(ordered) - 1))] for q in (0.25, 0.5, 0.75))
    return (high - low) / middle


def chosen(store: Store, prefix: str) -> Key:
    """The one key whose id begins so; UsageError for none or several."""
    names = [name for name in sorted(store.homes()) if name.startswith(prefix)]
    if len(names) != 1:
        what = f"{len(names)} keys begin" if names else "no key begins"
        raise UsageError(f"{what} with '{prefix[:40]}'; `weft cache ls` lists them")
    key = store.key(names[0])
    if key is None:
        raise UsageError(f"the manifest of {names[0]} cannot be read; `weft cache verify` says more")
    return key


def write(
    out: str, keys: Sequence[str] = (), format: str = "pack", winners: bool = False, note: str = "", by: str = "weft"
) -> dict[str, Any]:
    """Export the store, or the keys whose ids begin so, to a file. t4: one key only."""
    store = Store()
    picked = [chosen(store, prefix) for prefix in keys] or list(store.known())
    made = export(store, picked, by=by, date=datetime.now(UTC).date().isoformat(), note=note)
    made = made.winners() if winners else made
    if not made.rows:
        raise UsageError(f"there is nothing to export in {store.root}")
    if format == "t4" and len(made.entries) != 1:
        raise UsageError(f"a T4 file holds one key, and there are {len(made.entries)}; name one with --key")
    data = t4.text(next(iter(made.entries.values()))) if format == "t4" else made.text()
    pack.save(out, data)
    return {"path": out, "format": format, "keys": len(made.entries), "rows": made.rows, "sha256": made.sha256}


def opened(path: str, key: Key | None = None) -> Pack:
    """The pack in a file, or the rows of a T4 file as one; PackError tells what is wrong."""
    data = pack.load(path)
    if t4.looks_like(data):
        return Pack.of([t4.parse(data, path, key)])
    return pack.read(path)


def read(paths: Sequence[str], key: str = "") -> dict[str, Any]:
    """Append what is in packs or T4 files to the store; all are checked before the first row is taken."""
    store = Store()
    owner = chosen(store, key) if key else None
    packs = [opened(path, owner) for path in paths]
    taken = [{"path": path, **dict(zip(("new", "known"), take(store, given)))} for path, given in zip(paths, packs)]
    kept = store.close()
    return {"root": store.root, "packs": taken, "kept": kept}


def merge(out: str, paths: Sequence[str]) -> dict[str, Any]:
    """The union of packs, in a new one."""
    made = Pack()
    for path in paths:
        made |= opened(path)
    pack.save(out, made.text())
    return {"path": out, "keys": len(made.entries), "rows": made.rows, "sha256": made.sha256}


def verify(paths: Sequence[str] = ()) -> dict[str, Any]:
    """Check packs, or the store when there are none."""
    findings: list[dict[str, Any]] = []
    if not paths:
        found = tidy.verify(Store())
        findings = [finding.data() for finding in found]
    for path in paths:
        try:
            opened(path)
        except PackError as error:
            findings += [{"level": "fail", "path": f"{path}:{line}", "message": text} for line, text in error.problems]
    return {"checked": list(paths) or [str(cache_dir())], "findings": findings}


def gc(dry: bool = False) -> dict[str, Any]:
    """Tidy the store up."""
    store = Store()
    return {"root": store.root, "dry": dry, **asdict(tidy.gc(store, dry=dry))}
