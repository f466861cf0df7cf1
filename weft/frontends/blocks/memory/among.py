"""Attention among memory tokens: rows that are read before a segment's tokens, and written behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from weft.errors import Path, Problem
from weft.frontends.blocks.memory.behind import SAID
from weft.ir.pattern import Pattern
from weft.ir.pattern.expression import K, Q, add, const
from weft.ir.pattern.formula import InTable, moved, opaque
from weft.ir.pattern.writing import written

if TYPE_CHECKING:
    from weft.frontends.blocks.attention import Attention
    from weft.frontends.blocks.relative import Placed
    from weft.frontends.blocks.sides import Axes
    from weft.frontends.lower.scope import Scope
    from weft.ir.types import Val

Seen = Callable[["Placed", "Val", "Val", "Axes", Pattern, str], "Val"]
"""Attention of queries along a dim (the last), under a pattern."""


@dataclass(frozen=True)
class TokenRows:
    """The rows of a stream with memory tokens: `read`, the tokens and, where there are any, `write`; `rows` is the dim
    of all of them, `seen` that of all but the written ones. each: how many memory tokens; sees: what those that are
    read see."""

    rows: str
    read: str
    write: str
    seen: str
    each: int
    sees: str

    @property
    def more(self) -> int:
        """How many rows there are beside the tokens."""
        return self.each * (1 + bool(self.write))

    def lifted(self, pattern: Pattern) -> Pattern:
        """A pattern of tokens among rows: all see the memory, and it sees itself or all."""
        m = self.each
        own = written(moved(pattern.formula, add(Q, const(-m)), add(K, const(-m))))
        if self.sees == "all":
            return Pattern.parse(f"q < {m} or k < {m} or {own}")
        return Pattern.parse(f"q < {m} and k < {m} or q >= {m} and (k < {m} or {own})")


def among(t: TokenRows, s: Scope, x: Placed, k: Val, v: Val, a: Axes, pattern: Pattern, seen: Seen) -> Val:
    """What the rows see (Bulatov et al. 2022, Recurrent Memory Transformer, section 3): the tokens and the memory that
    is read what `lifted` says, what is written everything. q, k, v [batch rows heads head]."""
    inside = t.lifted(pattern)
    if not t.write:
        return seen(x, k, v, a, inside, t.rows)
    low, names = s.low, ("q", "k", "v", "near")

    def part(name: str, y: Val | None, new: str, start: Any) -> Val | None:
        return y if y is None or t.rows not in y.dims else s.part(name, y, t.rows, new, start)

    avoid = (*s.space, *a.query.split(), a.head, a.value, a.key, t.seen)
    fewer = replace(a, source=t.seen, key=low.mint("key", low.sizes[t.seen], avoid))
    q1, k1, v1, near1 = (part(n, y, t.seen, 0) for n, y in zip(names, (x.q, k, v, x.near)))
    q2, near2 = (part(n, y, t.write, s.ir.symbol(f"n_{t.seen}")) for n, y in (("q", x.q), ("near", x.near)))
    assert q1 is not None
    assert k1 is not None
    assert v1 is not None
    assert q2 is not None
    first = seen(replace(x, q=q1, near=near1), k1, v1, fewer, inside, t.seen)
    last = seen(replace(x, q=q2, near=near2), k, v, a, Pattern.parse("all"), t.write)
    return s.g.concat(first, last, dims=(t.seen, t.write), new=t.rows)


def between(t: TokenRows | None, pattern: Pattern) -> Pattern:
    """The pattern over all rows, that distances are of."""
    return pattern if t is None else Pattern.parse("all") if t.write else t.lifted(pattern)


def unfit_among(s: Scope, block: Attention, pattern: Pattern, path: Path) -> Iterator[Problem]:
    """What an attention among memory tokens cannot say: where in the row its tokens are, or what goes by that."""
    for key in ("plan", "globals"):
        if getattr(block, key) is not None:
            message = f"`{key}` is for tokens alone, and '{s.stream}' has memory tokens among them"
            yield Problem("W0403", message, (*path, key), "leave one of them out")
            return
    if pattern.metadata:
        message = f"memory tokens have no {' and no '.join(f'`{name}`' for name in pattern.metadata)}"
        yield Problem("W0403", message, (*path, "pattern"), "a pattern without metadata")
    elif any(isinstance(x, InTable) for x in opaque(pattern.formula)):
        message = "the pattern lists blocks of a row, and memory tokens are in no block"
        yield Problem("W0403", message, (*path, "pattern"), "a pattern without `blocks`")


def unfit_across(
    s: Scope, context: str, pattern: Pattern, score: Any, path: Path, scored: str = "score"
) -> Iterator[Problem]:
    """What cross attention cannot say where either of its streams has memory tokens, which stand nowhere."""
    own, other = s.stream in s.low.among, context in s.low.among
    moves = [*([(1, 0)] if own else []), *([(0, 1)] if other else [])]
    lost = [name for name in pattern.metadata if other or name == "segments"]
    if lost:
        message = f"memory tokens have no {' and no '.join(f'`{name}`' for name in lost)}"
        yield Problem("W0403", message, (*path, "pattern"), "a pattern without metadata")
    elif any(pattern.formula != moved(pattern.formula, add(Q, const(q)), add(K, const(k))) for q, k in moves):
        message = "the pattern reads positions of a stream whose memory tokens have none"
        yield Problem("W0403", message, (*path, "pattern"), "leave out q and k")
    read = {s.ir.symbol(name) for name, there in (("i_q", own), ("i_k", other)) if there}
    if read & score.free_symbols:
        message = f"{SAID[scored]} reads positions of a stream whose memory tokens have none"
        yield Problem("W0403", message, (*path, scored), "leave out q and k")
