"""Mixed chunk attention: what a query sees of its own chunk as ever, and linear attention of the others."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from weft.errors import Path, SpecError
from weft.frontends.blocks.chunking import chunk_dims
from weft.frontends.memories import stream_of
from weft.frontends.schema_values import Size, SpecPart
from weft.ir.pattern import is_causal
from weft.ir.pattern.pattern import Pattern

if TYPE_CHECKING:
    from weft.frontends.blocks.sides import Axes
    from weft.frontends.lower.scope import Scope
    from weft.ir.types import Val

AT_ONCE = 64
"""Positions whose sums over earlier ones are computed at once."""


class MixedChunk(SpecPart):
    """Mixed chunk attention (FLASH, Hua et al. 2022, section 3.2): the pattern holds within chunks of positions, and to
    what heads find there comes linear attention, the sum of (q'·k') v over the tokens of other chunks, over a divisor.

    Where the pattern shows no later key, these are the chunks before a query's; else they are all chunks, its own too.
    q' and k' are products of their own, or scales and offsets where `shared_qk` is, and have norms and rotary positions
    as q and k do. A step keeps the sum of k' v of each head, and that of the chunk so far."""

    size: Size = Field(description="positions in a chunk")
    divisor: Literal["size", "chunks", "tokens", "longest"] = Field(
        default="size",
        description="`size`: the positions in a chunk; `chunks`, `tokens`: how many the sum is over; `longest`: the "
        "most positions there are",
    )


@dataclass(frozen=True)
class Chunks:
    """An attention in chunks of `size` positions. within: its pattern, in them; causal: does it see no later key?"""

    s: Scope
    rule: MixedChunk
    a: Axes
    path: Path
    size: int
    within: Pattern
    causal: bool

    @classmethod
    def of(cls, s: Scope, rule: MixedChunk, pattern: Pattern, a: Axes, path: Path) -> Chunks:
        rows, where = s.rows_of(), (*path, "mixed_chunk")
        for name, there in (("documents", rows.documents), ("padding", rows.padding)):
            if there:
                message = f"chunks are pieces of a row, whatever {name} it holds"
                raise SpecError.at(where, "W0403", message, f"leave out `{name}` of the rows")
        if stream_of(s.low.model) == s.stream:
            message = "chunks are pieces of whole sequences, and the memory keeps rows of segments"
            raise SpecError.at(where, "W0403", message, "leave out `memory`")
        with s.low.reading((*where, "size"), "W0201"):
            size = s.low.dims.size(rule.size)
        causal = is_causal(pattern, a.longest, prod(map(s.low.number, a.query.split())))
        return cls(s, rule, a, where, size, pattern & Pattern.parse(f"block_diagonal({size})"), causal)

    def added(self, out: Val, q: Val, k: Val, v: Val) -> Val:
        """out [batch length heads value] and the linear attention of q, k [batch length heads head] and v."""
        s, to, value = self.s, out.dims, self._state[-1]
        with s.at(*self.path):
            v = v if value == self.a.value else s.rename("values", v, self.a.value, value)
            q, k, v = (s.g.cast(x, s.accumulate) for x in (q, k, v))
            own = (*to[:-1], value)
            found = self._before(q, k, v, own) if self.causal else self._all(q, k, v, own)
            found = found if value == self.a.value else s.rename("across", found, value, self.a.value)
            formula = s.ir.symbol("a") + s.ir.symbol("b") * self._factor()
            return s.map("mixed", formula, a=out, b=found, to=" ".join(to), dtype=s.compute)

    def _all(self, q: Val, k: Val, v: Val, to: tuple[str, ...]) -> Val:
        total = self.s.einsum("total", k, v, to=" ".join(self._state))
        return self.s.einsum("across", q, total, to=" ".join(to))

    @property
    def _state(self) -> tuple[str, ...]:
        """The dims of a sum of k v: values as wide as keys have a dim of another name there."""
        a, low, value = self.a, self.s.low, self.a.value
        if value == a.head:
            value = low.mint("value", low.number(a.head), (*self.s.space, *a.query.split(), a.head))
        return ("batch", *a.keys.split(), a.head, value)

    def _before(self, q: Val, k: Val, v: Val, to: tuple[str, ...]) -> Val:
        """The sum over the chunks before each query's: that over all tokens up to it, less that over those of its
        chunk. So each of both states is linear in itself alone, as `passes.chunk` wants them."""
        s, one, none = self.s, self.s.ir.sympy.S.One, self.s.ir.sympy.S.Zero
        place = s.ir.parse(f"i % {self.size}", {"i": s.ir.symbol(f"i_{s.length}")})
        going = s.map("going", s.ir.where(place > 0, one, none), to=s.rows, dtype=s.accumulate)
        start = s.map("none", none, to=" ".join(self._state), dtype=s.accumulate)
        given, b = (start, start, going, q, k, v), s.ir.Builder(s.g.src)
        names = ("seen", "own", "going", "q", "k", "v")
        step = (b.input(name, x.type.but(d for d in x.dims if d != s.length)) for name, x in zip(names, given))
        seen, own, on, q_t, k_t, v_t = step
        dims = self._state
        # k*v in a map, not a product: `passes.chunk` takes it apart, where a product would be made at every position
        seen = b.map("s + k*v", s=seen, k=k_t, v=v_t, to=dims, dtype=s.accumulate)
        own = b.map("g*s + k*v", g=on, s=own, k=k_t, v=v_t, to=dims, dtype=s.accumulate)
        rows = tuple(d for d in to if d != s.length)
        x, y = (b.einsum(q_t, state, to=rows) for state in (seen, own))
        less = b.map("x - y", x=x, y=y, to=rows, dtype=s.accumulate)
        cut = chunk_dims(s, AT_ONCE, (*self.a.query.split(), *self._state), self.path)
        loop = s.ir.Loop(s.length, b.graph(seen, own, less), 2, chunks=cut)
        return s.g.expand(s.g.many(loop, *given)[2], to=to)

    def _factor(self) -> Any:
        """One over the divisor; 0 where that counts nothing."""
        s, rule = self.s, self.rule
        one, number = s.ir.sympy.S.One, s.ir.sympy.Integer
        if rule.divisor in ("size", "longest"):
            return one / number(self.size if rule.divisor == "size" else s.low.dims.most[s.length])
        length = s.ir.symbol(f"n_{s.length}")
        if not self.causal:
            return one / (s.ir.parse(f"ceil(n_{s.length} / {self.size})") if rule.divisor == "chunks" else length)
        before = s.ir.parse(f"i // {self.size}", {"i": s.ir.symbol(f"i_{s.length}")})
        each = number(1 if rule.divisor == "chunks" else self.size)
        return s.ir.where(before > 0, one / (each * before), s.ir.sympy.S.Zero)
