"""`weft cache ...`: the verbs over the store of tuning results, as functions that give (data, text, ok)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from weft import __version__
from weft.cli_shell import FORCE, OUT

Found = tuple[dict[str, Any], str, bool]


def ls() -> Found:
    """List the keys of the store and the best configuration of each."""
    from weft.cache.verbs import ls  # `weft --help` does without

    found = ls()
    return found, _keys(found["keys"]) or f"{found['root']} holds no results; `weft tune` makes some", True


def explain(what: str) -> Found:
    """Tell everything about a key (the beginning of its id), or about a PACK: trials, reasons, best, nearest keys."""
    from weft.cache.verbs import explain  # `weft --help` does without

    found = explain(what)
    if "pack" in found:
        head = f"{what}: {found['rows']} rows of {len(found['keys'])} keys, sha256 {found['sha256']}"
        said = ["; ".join(f"{k} {v}" for k, v in p.items() if v) for p in found["provenance"]]
        return found, "\n".join([head, *said, "", _keys(found["keys"])]), True
    return found, _explained(found), True


def export(out: str, **given: Any) -> Found:
    """Write the store, or some of its keys, to one portable file."""
    from weft.cache.verbs import write  # `weft --help` does without

    by = f"weft {__version__}"
    found = write(out, given["key"], given["format"], given["winners"], given["note"], by)
    return found, f"wrote {out}: {found['rows']} rows of {found['keys']} keys", True


def import_(packs: tuple[str, ...], key: str) -> Found:
    """Append what PACKS hold, or T4 results, to the store. What is there already is not taken twice."""
    from weft.cache.verbs import read  # `weft --help` does without

    found = read(packs, key)
    lines = [f"{p['path']}: {p['new']} new rows, {p['known']} known" for p in found["packs"]]
    lines += [] if found["kept"] else ["not all rows could be written"]
    return found, "\n".join(lines), found["kept"]


def merge(packs: tuple[str, ...], out: str, **_: Any) -> Found:
    """Write the union of PACKS as a new one; in any order and any number of times the result is the same."""
    from weft.cache.verbs import merge  # `weft --help` does without

    found = merge(out, packs)
    return found, f"wrote {out}: {found['rows']} rows of {found['keys']} keys", True


def verify(packs: tuple[str, ...]) -> Found:
    """Check PACKS, or without any the store: every line, hash and manifest."""
    from weft.cache.verbs import verify  # `weft --help` does without

    found = verify(packs)
    lines = [f"{f['level']:4}  {f['path']}: {f['message']}" for f in found["findings"]]
    ok = all(f["level"] != "fail" for f in found["findings"])
    return found, "\n".join([*lines, f"{', '.join(found['checked'])}: {'ok' if ok else 'FAILED'}"]), ok


def gc(dry_run: bool) -> Found:
    """Fold old shards together; remove what killed processes left and compiled kernels no result names."""
    from weft.cache.verbs import gc  # `weft --help` does without

    found = gc(dry_run)
    did = "would fold" if dry_run else "folded"
    text = (
        f"{found['root']}: {did} {found['shards']} shards, {found['temps']} unfinished files, {found['leases']} leases"
    )
    return found, f"{text}, {found['cubins']} compiled kernels ({found['bytes']:,} bytes)", True


def _packs(required: bool) -> Any:
    return click.argument("packs", nargs=-1, required=required, type=click.Path())


VERBS: tuple[tuple[str, Callable[..., Found], tuple[Any, ...]], ...] = (
    ("ls", ls, ()),
    ("explain", explain, (click.argument("what", metavar="KEY|PACK"),)),
    (
        "export",
        export,
        (
            click.option("--key", multiple=True, help="The beginning of a key's id; may be repeated. Default: all."),
            click.option("--format", type=click.Choice(["pack", "t4"]), default="pack", help="T4 is Kernel Tuner's."),
            click.option("--winners", is_flag=True, help="Only the trials of the best configurations."),
            click.option("--note", default="", help="A line of provenance."),
            OUT(required=True),
            FORCE,
        ),
    ),
    ("import", import_, (_packs(True), click.option("--key", default="", help="What a file without a key is for."))),
    ("merge", merge, (_packs(True), OUT(required=True), FORCE)),
    ("verify", verify, (_packs(False),)),
    ("gc", gc, (click.option("--dry-run", is_flag=True, help="Only count."),)),
)


def _keys(rows: list[dict[str, Any]]) -> str:
    from tabulate import tabulate  # `weft --help` does without

    shown = [
        (r["id"][:12], r["gpu"] or r["arch"], r["skeleton"], r["bucket"], r["dtypes"], r["triton"], r["trials"],
         f"{r['us']:.4g}" if r["us"] else "", _config(r["config"] or {}))
        for r in rows
    ]  # fmt: skip
    head = ("key", "gpu", "kernel", "shapes", "dtypes", "triton", "trials", "best us", "configuration")
    return tabulate(shown, head, disable_numparse=True) if shown else ""


def _config(config: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in config.items())


def _explained(found: dict[str, Any]) -> str:
    from tabulate import tabulate  # `weft --help` does without

    out = [f"{found['id']}\n{found['path']}", tabulate(sorted(_flat(found["key"])), disable_numparse=True)]
    out.append("trials: " + (", ".join(f"{n} {status}" for status, n in sorted(found["trials"].items())) or "none"))
    best = [
        (f"{b['us']:.4g}", f"{100 * b['spread']:.1f} %", b["trials"], b["round"] or "", _config(b["config"]))
        for b in found["best"]
    ]
    if best:
        out.append(tabulate(best, ("us", "spread", "trials", "finals", "configuration"), disable_numparse=True))
    if found["reasons"]:
        rows = [(r["trials"], r["status"], r["reason"]) for r in found["reasons"]]
        out.append(tabulate(rows, ("trials", "status", "reason"), disable_numparse=True))
    for near in found["nearest"]:
        fields = ", ".join(
            f"{d['field']} ({d['there'] or 'none'}, here {d['here'] or 'none'})" for d in near["differs"]
        )
        out.append(f"near: {near['id'][:12]} differs in {fields}")
    health = found["health"]
    if health["damaged"] or health["foreign"]:
        out.append(f"{health['damaged']} damaged lines, {health['foreign']} of another version; weft cache verify")
    return "\n\n".join(out)


def _flat(key: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, _config(value) if isinstance(value, dict) else str(value)) for name, value in key.items()]
