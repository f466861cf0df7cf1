"""Rotary position embedding."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy as sp

from weft.ir.builder import Builder
from weft.ir.composite import Composite
from weft.ir.formula import symbol
from weft.ir.formula.functions import maximum, minimum, where
from weft.ir.library.precision import accumulate
from weft.ir.ops.op import Op, Vals
from weft.ir.types import Node, Type, Val, need

TEN_THOUSAND = sp.Integer(10000)


@dataclass(frozen=True)
class Rotary(Composite):
    """Rotate pairs of coordinates of `over` by position * theta^(-2j/r) (Su et al. 2021, RoFormer).

    Only the first r = fraction * n_over coordinates turn; r must come out even. Pair j is (j, j + r/2) in style
    "half" (GPT-NeoX, Llama) and (2j, 2j + 1) in style "interleaved" (GPT-J). Operands: x [... position ... over ...],
    and optionally the positions as i64[...] over any of x's dims; without them they are the coordinates of `position`.
    Angles and products are fp32, the result has x's dtype.

    Frequencies f = theta^(-2j/r) are divided by `factor`. With a `ramp` they become s f + (1 - s) f/factor: s goes from
    0 to 1 as the number j of the pair ("pair": YaRN, Peng et al. 2023) or f ("frequency": Llama 3) goes from one of
    `bounds` to the other.
    """

    position: str
    over: str
    theta: sp.Expr = TEN_THOUSAND
    style: str = "half"
    fraction: sp.Expr = sp.S.One
    factor: sp.Expr = sp.S.One
    ramp: str = ""
    bounds: tuple[sp.Expr, ...] = ()

    def expand(self, g: Builder, x: Val, *at: Val) -> Val:
        need(self.over in x.dims, f"rotary turns {self.over}, which {x.type} has not")
        need(self.style in ("half", "interleaved"), f"unknown rotary style {self.style!r}")
        i, r = symbol(f"i_{self.over}"), self.fraction * symbol(f"n_{self.over}")
        half = self.style == "half"
        first, step = (i < r / 2, r / 2) if half else (sp.Eq(sp.Mod(i, 2), 0), sp.S.One)
        pair = sp.Mod(i, r / 2) if half else sp.floor(i / 2)
        other = where(i < r, where(first, i + step, i - step), i)
        partner = g.gather(x, g.map(other, to=(self.over,), dtype="i64"), at=(self.over,))
        position = at[0].dims if at else (self.position,)
        frequency = self._stretched(sp.exp(-2 * pair / r * self._log_theta()), pair)
        angle = symbol("at" if at else f"i_{self.position}") * frequency
        turn = g.map(angle, to=(*position, self.over), dtype=accumulate(x), **dict(zip(("at",), at)))
        y = where(first, -symbol("y"), symbol("y"))
        turned = symbol("x") * sp.cos(symbol("a")) + y * sp.sin(symbol("a"))
        formula = where(i < r, turned, symbol("x"))
        return g.map(formula, x=x, y=partner, a=turn, to=x.dims, dtype=x.dtype)

    def step(self, s: Any, n: Node, ins: Sequence[Any]) -> Iterable[Any]:
        placed = self.position == s.time and len(ins) == 1
        return s.same(n, [*ins, s.fed.at]) if placed else super().step(s, n, ins)

    def unplaced(self, ins: Sequence[Val], at: Val, time: str) -> tuple[Op, list[Val]]:
        return self, [v for v in ins if v != at]

    def direct(self, types: tuple[Type, ...]) -> bool:
        return types[0].dims[-1:] == (self.over,)

    def pair(self, g: Builder, x: Sequence[Val], dy: Sequence[Val], names: Sequence[str]) -> Vals | None:
        return g.many(RotaryBack(self), *dy, *x[1:], names=names)

    def _stretched(self, frequency: Any, pair: Any) -> Any:
        need(self.ramp in ("", "pair", "frequency"), f"unknown ramp {self.ramp!r}")
        if not self.ramp:
            return frequency if self.factor == 1 else frequency / self.factor
        need(len(self.bounds) == 2, "a ramp goes from one bound to another")
        stretched, kept = self.bounds
        share = ((pair if self.ramp == "pair" else frequency) - stretched) / (kept - stretched)
        share = maximum(minimum(share, sp.S.One), sp.S.Zero)
        return frequency * (share + (1 - share) / self.factor)

    def _log_theta(self) -> sp.Expr:
        """log(theta) as a rational: SymPy would fold exp(u log(theta)) into a power with a symbolic exponent."""
        return sp.Rational(str(sp.log(self.theta).evalf(30)))


@dataclass(frozen=True)
class RotaryBack(Composite):
    """The transpose of a rotation: operands d(result), then the positions if there are any."""

    of: Rotary

    def expand(self, g: Builder, dy: Val, *at: Val) -> Val:
        """The rotation by the opposite angles."""
        position = self.of.position
        back = g.map("-at", at=at[0], dtype="i64") if at else g.map(f"-i_{position}", to=(position,), dtype="i64")
        return self.of.expand(g, dy, back)

    def direct(self, types: tuple[Type, ...]) -> bool:
        return self.of.direct(types)

    def linear_in(self, operands: int) -> tuple[tuple[int, ...], ...]:
        return ((0,),)
