"""Softmax and the normalisations over one dim. Statistics are fp32 whatever the operands are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sympy as sp

from weft.ir.builder import Builder
from weft.ir.composite import Composite
from weft.ir.formula import symbol
from weft.ir.library.index import constants
from weft.ir.library.precision import accumulate
from weft.ir.library.statistics import Rows
from weft.ir.ops.op import Vals
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

    def pair(self, g: Builder, x: Sequence[Val], dy: Sequence[Val], names: Sequence[str]) -> Vals | None:
        return g.many(SoftmaxGrad(self.over), g.one(self, *x), *dy, names=names)


@dataclass(frozen=True)
class SoftmaxGrad(Composite):
    """d(x) of a softmax from its result and d(result): y * (dy - sum(y * dy))."""

    over: str

    def expand(self, g: Builder, y: Val, dy: Val) -> Val:
        left = [d for d in y.dims if d != self.over]
        total = g.reduce(g.map("y*dy", y=y, dy=dy, to=y.dims, dtype=y.dtype), to=left)
        return g.map("y*(dy - total)", y=y, dy=dy, total=total, to=y.dims, dtype=y.dtype)

    def linear_in(self, operands: int) -> tuple[tuple[int, ...], ...]:
        return ((1,),)

    def wide(self, results: int) -> tuple[bool, ...] | None:
        return (False,) * results


class _Norm(Rows):
    """y = c rstd [* w [+ b]], c = x less its mean where `statistics` has one. dx = rstd (d - mean(d) - u mean(d u)),
    d = dy w, u = c rstd; the mean of d is that of c's."""

    eps: sp.Expr

    def forward(self, g: Builder, x: Sequence[Val], names: Sequence[str] = ()) -> Vals:
        first, *affine = x
        acc, over = accumulate(first), self.over
        left, more = [d for d in first.dims if d != over], list(names[1:])
        c, own = first, ()
        if "mean" in self.statistics:
            total = g.reduce(g.cast(first, acc), to=left)
            own = (g.map(f"t / n_{over}", t=total, dtype=acc, names=more[:1] or None),)
            c = g.map("x - mean", x=first, mean=own[0], to=first.dims, dtype=acc)
        total = g.reduce(g.map("c*c", c=c, dtype=acc), to=left)
        rstd = g.map(f"rsqrt(t / n_{over} + {self.eps})", t=total, dtype=acc, names=more[len(own) :] or None)
        formula = ("c*rstd", "c*rstd*w", "c*rstd*w + b")[len(affine)]
        given: dict[str, Any] = dict(zip("wb", affine))
        y = g.map(formula, c=c, rstd=rstd, **given, to=first.dims, dtype=first.dtype, names=names[:1] or None)
        return (y, *own, rstd)

    def backward(self, g: Builder, x: Sequence[Val], statistics: Sequence[Val], dy: Val, names: Sequence[str]) -> Vals:
        first, *affine = x
        acc, over, rstd = accumulate(first), self.over, statistics[-1]
        left = [d for d in first.dims if d != over]
        mean: dict[str, Any] = dict(zip(["mean"], statistics[:-1]))
        center = "(x - mean)*rstd" if mean else "x*rstd"
        u = g.map(center, x=first, rstd=rstd, **mean, to=first.dims, dtype=acc)
        d = g.map("dy*w", dy=dy, w=affine[0], to=first.dims, dtype=acc) if affine else g.cast(dy, acc)
        given: dict[str, Any] = {"both": g.reduce(g.map("d*u", d=d, u=u, to=first.dims, dtype=acc), to=left)}
        formula = f"rstd*(d - u*both / n_{over})"
        if mean:
            formula = f"rstd*(d - one / n_{over} - u*both / n_{over})"
            given["one"] = g.reduce(d, to=left)
        out = [g.map(formula, rstd=rstd, d=d, u=u, **given, to=first.dims, dtype=first.dtype, names=names[:1])]
        if affine:
            dw = g.map("dy*u", dy=dy, u=u, to=first.dims, dtype=acc)
            out.append(g.cast(g.reduce(dw, to=affine[0].dims), affine[0].dtype))
        if len(affine) > 1:
            out.append(g.cast(g.reduce(g.cast(dy, acc), to=affine[1].dims), affine[1].dtype))
        return tuple(out)


@dataclass(frozen=True)
class LayerNorm(_Norm):
    """(x - mean) / sqrt(var + eps) [* w [+ b]] over `over`, with the biased variance (Ba et al. 2016).

    Operands x; x, w; or x, w, b.
    """

    over: str
    eps: sp.Expr
    statistics = ("mean", "rstd")

    def expand(self, g: Builder, x: Val, *affine: Val) -> Val:
        acc, left = accumulate(x), [d for d in x.dims if d != self.over]
        mean = g.mean(g.cast(x, acc), self.over)
        c = g.map("x - mean", x=x, mean=mean, to=x.dims, dtype=acc)
        var = g.map(f"v / n_{self.over}", v=g.reduce(g.map("c*c", c=c, dtype=acc), to=left), dtype=acc)
        return _scaled(g, constants("c / sqrt(var + eps)", eps=self.eps), x, affine, c=c, var=var)


@dataclass(frozen=True)
class RMSNorm(_Norm):
    """x / sqrt(mean(x²) + eps) [* w [+ b]] over `over` (Zhang and Sennrich 2019). Operands x; x, w; or x, w, b."""

    over: str
    eps: sp.Expr
    statistics = ("rstd",)

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
