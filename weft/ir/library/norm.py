"""Softmax and the normalisations over one dim. Statistics are fp32 whatever the operands are."""

from dataclasses import dataclass
from typing import Any

import sympy as sp

from weft.ir.builder import Builder
from weft.ir.formula import symbol
from weft.ir.library.index import constants
from weft.ir.library.precision import accumulate
from weft.ir.op import Composite
from weft.ir.types import Val, need


@dataclass(frozen=True)
class Softmax(Composite):
    """exp(x - max) / sum over `over`; the maximum carries no gradient. Dtype of x in and out."""

    over: str

    def expand(self, g: Builder, x: Val) -> Val:
        acc, left = accumulate(x), [d for d in x.dims if d != self.over]
        top = g.detach(g.reduce(x, to=left, kind="max"))
        e = g.map("exp(x - top)", x=x, top=top, to=x.dims, dtype=acc)
        return g.map("e / total", e=e, total=g.reduce(e, to=left), to=x.dims, dtype=x.type.dtype)


@dataclass(frozen=True)
class LayerNorm(Composite):
    """(x - mean) / sqrt(var + eps) [* w [+ b]] over `over`, with the biased variance (Ba et al. 2016).

    Operands x; x, w; or x, w, b.
    """

    over: str
    eps: sp.Expr

    def expand(self, g: Builder, x: Val, *affine: Val) -> Val:
        acc, left = accumulate(x), [d for d in x.dims if d != self.over]
        mean = g.mean(g.cast(x, acc), self.over)
        c = g.map("x - mean", x=x, mean=mean, to=x.dims, dtype=acc)
        var = g.map(f"v / n_{self.over}", v=g.reduce(g.map("c*c", c=c, dtype=acc), to=left), dtype=acc)
        return _scaled(g, constants("c / sqrt(var + eps)", eps=self.eps), x, affine, c=c, var=var)


@dataclass(frozen=True)
class RMSNorm(Composite):
    """x / sqrt(mean(x²) + eps) [* w [+ b]] over `over` (Zhang and Sennrich 2019). Operands x; x, w; or x, w, b."""

    over: str
    eps: sp.Expr

    def expand(self, g: Builder, x: Val, *affine: Val) -> Val:
        acc, left = accumulate(x), [d for d in x.dims if d != self.over]
        total = g.reduce(g.map("x*x", x=x, dtype=acc), to=left)
        square = g.map(f"s / n_{self.over}", s=total, dtype=acc)
        return _scaled(g, constants("x / sqrt(square + eps)", eps=self.eps), x, affine, x=x, square=square)


def _scaled(g: Builder, unit: sp.Expr, like: Val, affine: tuple[Val, ...], **operands: Val) -> Val:
    """The normalised value with its weight and bias, in `like`'s dtype."""
    need(len(affine) <= 2, f"a norm takes x, w and b, got {1 + len(affine)} operands")
    formula = (unit, unit * symbol("w"), unit * symbol("w") + symbol("b"))[len(affine)]
    named: dict[str, Any] = {**operands, **dict(zip("wb", affine))}
    return g.map(formula, to=like.dims, dtype=like.dtype, **named)
