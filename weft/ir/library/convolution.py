"""Causal convolution along positions, and its derivatives."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy as sp

from weft.ir.builder import Builder
from weft.ir.composite import Composite
from weft.ir.formula import symbol
from weft.ir.formula.functions import where
from weft.ir.ops.op import Cotangents, Op
from weft.ir.ops.primitives import with_or_without
from weft.ir.types import Dims, Val, need, union


@dataclass(frozen=True)
class Convolve(Composite):
    """y[query] = sum over tap of w[tap] x[over], at over = query - dilation (n_tap - 1 - tap); 0 before the first.

    Operands: x [... over ...], w [tap ...], and i64[... query] where `placed`: how many positions before its own each
    query may read, such as its place in a document; a negative one reads nothing. Result: `to`, which has `query`; dims
    that it lacks are summed over, so w [tap channels] is a depthwise convolution and w [tap width channels] a dense
    one. The queries stand at the last of x's positions: query i at i + n_over - n_query. later: positions after a query
    are read instead, as a derivative does; places [... over] are then those of x, which say who may have read it.
    """

    over: str
    query: str
    tap: str
    to: Dims
    dilation: int = 1
    later: bool = False
    placed: bool = False

    def expand(self, g: Builder, x: Val, w: Val, *at: Val) -> Val:
        return g.einsum(taken(self, g, x, at), w, to=self.to)

    def linear_in(self, operands: int) -> tuple[tuple[int, ...], ...]:
        return (0,), (1,)

    def reach(self, sizes: Mapping[str, int], time: str) -> tuple[str, int | None] | None:
        return None if self.query != time else (self.over, self.dilation * (sizes[self.tap] - 1) + 1)

    def step(self, s: Any, n: Any, ins: Sequence[Any]) -> Iterable[Any]:
        """New positions read past and new rows."""
        x, w, *at = ins
        if not s.is_keyed(x):
            return super().step(s, n, ins)
        if self.query != s.time or self.later or s.is_keyed(w):
            raise s.refusal(n, f"reads positions along {s.time} in another way than one after the other")
        wide = replace(self, to=with_or_without(self.to, s.rows, True), placed=True)
        place = s.value(at[0]) if at else s.fed.at
        return s.g.many(wide, s.joined_keys(x, n), s.value(w), place, names=[v.name for v in n.outs])

    def unplaced(self, ins: Sequence[Val], at: Val, time: str) -> tuple[Op, list[Val]]:
        left = [v for v in ins if v != at]
        return replace(self, placed=len(left) > 2), left

    def refitted(self, rows: str, has: bool) -> Op:
        return replace(self, to=with_or_without(self.to, rows, has))

    def direct(self, types: tuple[Any, ...]) -> bool:
        x, w, *at = types
        rows, inner, channels = parts(self, x.dims, w.dims)
        plain = (*rows, self.query, *channels) == self.to and (*rows, self.over, *(inner or channels)) == x.dims
        places = (*rows, self.over if self.later else self.query)
        return plain and set(w.dims) == {self.tap, *inner, *channels} and all(t.dims == places for t in at)

    def vjp(self, g: Builder, x: tuple[Val, ...], y: tuple[Val, ...], dy: Sequence[Val | None]) -> Cotangents:
        """The same walk the other way for x, and products of the pairs for w."""
        if self.later or dy[0] is None:
            return super().vjp(g, x, y, dy)
        rows, w, *at = x
        back = replace(self, over=self.query, query=self.over, to=rows.dims, later=True)
        d_rows, d_w = g.one(back, dy[0], w, *at), g.one(ConvolveWeights(self, w.dims), rows, dy[0], *at)
        return [d_rows, d_w, *(None for _ in at)]


@dataclass(frozen=True)
class ConvolveWeights(Composite):
    """d(w) [to] of `of` from x, d(result) and places: the products of every pair of positions that met."""

    of: Convolve
    to: Dims

    def expand(self, g: Builder, x: Val, dy: Val, *at: Val) -> Val:
        return g.einsum(taken(self.of, g, x, at), dy, to=self.to)

    def linear_in(self, operands: int) -> tuple[tuple[int, ...], ...]:
        return (0,), (1,)

    def direct(self, types: tuple[Any, ...]) -> bool:
        x, dy, *at = types
        return dy.dims == self.of.to and self.of.direct((x, x.but(self.to), *at))


def taken(of: Convolve, g: Builder, x: Val, at: Sequence[Val]) -> Val:
    """What each query reads: x at [.. query tap ..]; 0 where there is nothing."""
    need(of.over in x.dims, f"convolve walks along {of.over}, which {x.type} has not")
    need(len(at) == of.placed, f"convolve wants {'' if of.placed else 'no '}positions of its queries")
    distance = of.dilation * (symbol(f"n_{of.tap}") - 1 - symbol(f"i_{of.tap}"))
    before = symbol(f"i_{of.query}") + symbol(f"n_{of.over}") - symbol(f"n_{of.query}")
    index: Any = before + distance if of.later else before - distance
    given = dict(zip(("at",), () if of.later else at))
    index = where(symbol("at") >= distance, index, sp.Integer(-1)) if given else index
    to = union(*(v.dims for v in given.values()), (of.query, of.tap))
    places = g.map(index, to=to, dtype="i64", **given)
    seen = g.gather(x, places, at=(of.over,))
    if not of.later or not at:
        return seen
    may = where(symbol("at") >= distance, symbol("x"), 0)
    return g.map(may, x=seen, at=g.gather(at[0], places, at=(of.over,)), to=seen.dims, dtype=seen.dtype)


def parts(of: Convolve, x: Dims, w: Dims) -> tuple[Dims, Dims, Dims]:
    """The dims of rows, which w lacks; those that are summed over; those of the result that w has."""
    rows = tuple(d for d in x if d not in w and d != of.over)
    return rows, tuple(d for d in x if d in w and d not in of.to), tuple(d for d in of.to if d in w)
