"""Rows that hold several documents, or padding: where their tokens stand, and what of a spec cannot be of such rows."""

from __future__ import annotations

from collections.abc import Iterator

from weft.errors import Path, Problem
from weft.frontends.lower.scope import Lowering, Scope
from weft.ir.library import Places
from weft.ir.types import Val

Counted = dict[str, Val]


def count(s: Scope, path: Path) -> Counted:
    """Where the tokens of a stream stand and in which document, counted in its first block; other blocks are handed
    both. {} where tokens stand where they are."""
    rule = s.rows_of()
    if not rule.documents and not rule.padding:
        return {}
    op = Places(s.length, rule.documents, rule.padding)
    names = ["place", "document"][: 1 + rule.documents]
    with s.at(*path):
        found = s.g.many(op, *(s.shared(name) for name in op.given), names=names)
    s.found |= (made := {f"{s.stream}.{name}": v for name, v in zip(names, found)})
    return made


def unread(low: Lowering) -> Iterator[Problem]:
    """Positions that are given and that nothing reads are a mistake."""
    for name, stream in low.model.sequences.items():
        if stream.rows.positions == "given" and low.called(name, "positions") not in low.values:
            path: Path = ("streams", name, "rows") if low.model.streams else ("rows",)
            hint = "give it a table of positions or rotary attention, or leave this out"
            yield Problem("W0403", f"nothing reads the positions of '{name}'", (*path, "positions"), hint)
