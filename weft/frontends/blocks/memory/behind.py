"""Rows that earlier segments leave to an attention: its keys begin before its queries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weft.errors import Path, Problem
from weft.frontends.memories import stream_of
from weft.ir.pattern import max_distance
from weft.ir.pattern.expression import K, Q, add, const
from weft.ir.pattern.formula import InTable, moved, opaque

if TYPE_CHECKING:
    from weft.frontends.lower.scope import Scope
    from weft.ir.pattern.pattern import Pattern
    from weft.ir.types import Val

WAY_OUT = "write it in q - k, as `0 <= q - k <= 128`"
SAID = {"score": "the score", "weights": "a weight"}


@dataclass(frozen=True)
class Keys:
    """What keys and values are made of: `rows` [batch length width], at most `longest`. past: where they begin before
    the queries, the dim of the rows before. own: they are of the stream that asks."""

    rows: Val
    length: str
    longest: int
    past: str = ""
    own: bool = True


def remembered(s: Scope, x: Val, stem: str) -> Keys | None:
    """The rows of earlier segments, constants to this one where no gradient goes through, then its own x [batch rows
    width]; the last of both are left to the next. None where the stream has no such memory."""
    low = s.low
    rule = low.model.memory
    if rule is None or rule.of != "hidden" or stream_of(low.model) != s.stream:
        return None
    low.remembers.add(s.stream)
    past, keep = low.remembering()
    size, longest = s.ir.symbol(f"n_{past}") + low.sizes[s.length], low.dims.most[s.length] + keep
    length = low.mint("recall", size, (*s.space, past))
    before = s.state(stem, ("batch", past, "width"))
    before = before if rule.through else s.g.detach(before)
    rows = s.g.concat(before, x, dims=(past, s.length), new=length)
    left = low.mint("kept", s.ir.minimum(size, s.ir.sympy.Integer(keep)), (*s.space, past, length))
    last = s.map("last", s.ir.parse(f"i_{left} + n_{length} - n_{left}"), to=left, dtype="i64")
    kept = s.g.expand(s.gather("kept", rows, last, at=length), to=f"batch {left} width")
    s.left[stem] = kept if rule.through else s.g.one(s.ir.Detach(), kept, names=[f"left_{stem}"])
    return Keys(rows, length, longest, past)


def unfit(pattern: Pattern, s: Scope, heads: int, path: Path) -> list[Problem]:
    """What an attention's pattern says that has no meaning for rows of earlier segments, of which nothing is known but
    how far back they are."""
    keep, found = s.low.remembering()[1], list[Problem]()
    if pattern.metadata:
        message = f"the memory keeps no {' and no '.join(f'`{name}`' for name in pattern.metadata)} of its rows"
        found.append(Problem("W0403", message, (*path, "pattern"), "a pattern without metadata"))
    elif any(isinstance(x, InTable) for x in opaque(pattern.formula)) or pattern.formula != moved(
        pattern.formula, add(Q, const(1)), add(K, const(1))
    ):
        message = "the pattern depends on where in the sequence a row is; with a memory that is not known"
        found.append(Problem("W0403", message, (*path, "pattern"), WAY_OUT))
    elif (reach := max_distance(pattern, heads=heads)) is not None and reach > keep:
        message = f"the pattern looks {reach} rows back, and the memory keeps {keep}"
        found.append(Problem("W0402", message, (*path, "pattern"), f"memory: {{keep: {reach}}}, or a shorter reach"))
    return found


def unfit_score(s: Scope, score: Any, path: Path, scored: str = "score") -> Iterator[Problem]:
    """The same of its score. scored: what that comes from."""
    q, k = s.ir.symbol("i_q"), s.ir.symbol("i_k")
    if s.ir.normal(score - score.xreplace({q: q + 1, k: k + 1})) != 0:
        message = f"{SAID[scored]} depends on where in the sequence a row is; with a memory that is not known"
        yield Problem("W0403", message, (*path, scored), "write it in q - k")
