"""Norms and losses beside their derivatives: what the backward reads of the forward is one number a row."""

from collections.abc import Sequence
from dataclasses import dataclass

from weft.ir.backward import backward
from weft.ir.builder import Builder
from weft.ir.composite import Composite, expansion
from weft.ir.ops.op import Vals
from weft.ir.types import Type, Val


class Rows(Composite):
    """A composite over one dim whose derivative is computed from `statistics` of its rows.

    `expand` defines it; `forward` and `backward` are the same real-arithmetic functions in few reductions, as kernels
    that hold a whole row compute them."""

    over: str
    statistics: tuple[str, ...] = ()

    def forward(self, g: Builder, x: Sequence[Val], names: Sequence[str] = ()) -> Vals:
        """The result, then the statistics, called `names` as far as these go."""
        raise NotImplementedError

    def backward(self, g: Builder, x: Sequence[Val], statistics: Sequence[Val], dy: Val, names: Sequence[str]) -> Vals:
        """The gradients of the float operands."""
        raise NotImplementedError

    def direct(self, types: tuple[Type, ...]) -> bool:
        return types[0].dims[-1:] == (self.over,)

    def paired(self, g: Builder, x: Sequence[Val], names: Sequence[str], again: bool) -> Vals | None:
        if not again or not self.direct(tuple(v.type for v in x)):
            return None
        return g.many(WithStatistics(self), *x, names=[*names, *self.statistics])[:1]

    def pair(self, g: Builder, x: Sequence[Val], dy: Sequence[Val], names: Sequence[str]) -> Vals | None:
        if not self.direct(tuple(v.type for v in x)):
            return None
        _, *statistics = g.many(WithStatistics(self), *x, names=[names[0], *self.statistics])
        return g.many(FromStatistics(self, len(x)), *x, *statistics, *dy, names=names)

    def in_rows(self, g: Builder, x: Sequence[Val], names: Sequence[str]) -> Vals | None:
        return self.forward(g, x, names)[:1]


@dataclass(frozen=True)
class WithStatistics(Composite):
    """A norm or loss `of`, and after its result the statistics that its backward reads (f32 or f64, one a row)."""

    of: Rows

    def expand(self, g: Builder, *x: Val) -> Vals:
        return self.of.forward(g, x)

    def direct(self, types: tuple[Type, ...]) -> bool:
        return self.of.direct(types)

    def in_rows(self, g: Builder, x: Sequence[Val], names: Sequence[str]) -> Vals | None:
        return self.of.forward(g, x, names)

    def wide(self, results: int) -> tuple[bool, ...] | None:
        return self.of.wide(1) == (True,), *(True for _ in range(results - 1))


@dataclass(frozen=True)
class FromStatistics(Composite):
    """d(operands of `of`) from its n operands, its statistics and d(result): `of`'s derivative, other rounding."""

    of: Rows
    n: int

    def expand(self, g: Builder, *x: Val) -> Vals:
        start = len(g.nodes)
        (out,) = g.inline(expansion(self.of, tuple(v.type for v in x[: self.n])), x[: self.n])
        cot = backward(g, g.nodes[start:], {out: x[-1]})
        return tuple(cot.get(v) or g.zeros(v) for v in x[: self.n] if v.type.floating)

    def direct(self, types: tuple[Type, ...]) -> bool:
        return self.of.direct(types)

    def in_rows(self, g: Builder, x: Sequence[Val], names: Sequence[str]) -> Vals | None:
        return self.of.backward(g, x[: self.n], x[self.n : -1], x[-1], names)

    def follows(self, x: Vals) -> tuple[Composite, Vals, Vals] | None:
        return WithStatistics(self.of), x[: self.n], x[self.n : -1]

    def linear_in(self, operands: int) -> tuple[tuple[int, ...], ...]:
        return ((operands - 1,),)

    def wide(self, results: int) -> tuple[bool, ...] | None:
        return (False,) * results
