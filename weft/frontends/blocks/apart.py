"""Attention in rows that hold several documents, or padding: which tokens see each other, and by what metadata."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from weft.errors import Path, Problem
from weft.frontends.blocks.memory.behind import SAID
from weft.ir.pattern.expression import K, Q, add, const
from weft.ir.pattern.formula import InTable, moved, opaque
from weft.ir.pattern.pattern import Pattern

if TYPE_CHECKING:
    from weft.frontends.lower.scope import Scope
    from weft.ir.types import Val

WAY_OUT = "write it in q - k, as `0 <= q - k <= 128`"


def apart(s: Scope, pattern: Pattern, context: str = "") -> Pattern:
    """The pattern of tokens that see those of `context`, or of their own stream: of their document, and no padding."""
    own, other = s.rows_of(), s.rows_of(context)
    demands = ["same_segment"] if own.documents and other.documents else []
    demands += ["valid"] if other.padding else []
    return pattern & Pattern.parse(" and ".join(demands)) if demands else pattern


def segments(s: Scope, context: str) -> tuple[Val, Val]:
    """What `same_segment` compares, of queries and of keys: the numbers that are given, or in one stream of documents
    those of the documents, which are never given twice in a row."""
    if not context and s.rows_of().documents:
        number = s.counted("document")
        return number, number
    return s.shared("segments"), s.shared("segments", context)


def misplaced(
    s: Scope, pattern: Pattern, score: Any, context: str, path: Path, key: str = "pattern", scored: str = "score"
) -> Iterator[Problem]:
    """What depends on where in its row a document stands, and so gives it other results than it has alone. key, scored:
    what the pattern and the score come from."""
    if not s.rows_of().documents:
        return
    one, none = const(1), const(0)
    moves = [(one, one)] if not context else [(one, none)]
    moves += [(none, one)] if context and s.rows_of(context).documents else []
    way_out = "leave out q and k" if context else WAY_OUT if key == "pattern" else "leave it out"
    message = "depends on where in its row a document stands"
    tables = any(isinstance(x, InTable) for x in opaque(pattern.formula))
    if tables or any(pattern.formula != moved(pattern.formula, add(Q, q), add(K, k)) for q, k in moves):
        yield Problem("W0403", f"the {key} {message}", (*path, key), way_out)
    at_q, at_k = s.ir.symbol("i_q"), s.ir.symbol("i_k")
    shifts = [{at_q: at_q + q.c, at_k: at_k + k.c} for q, k in moves]
    if any(s.ir.normal(score - score.xreplace(shift)) != 0 for shift in shifts):
        yield Problem("W0403", f"{SAID[scored]} {message}", (*path, scored), way_out)
