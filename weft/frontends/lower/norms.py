"""Normalisations: one op over one dim, formulas and sums over several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sympy as sp

from weft.errors import Path
from weft.frontends.schema_values import Init, InitRule
from weft.frontends.vocabulary import exact
from weft.ir.formula import symbol
from weft.ir.library import LayerNorm, RMSNorm
from weft.ir.library.precision import accumulate

if TYPE_CHECKING:
    from weft.frontends.blocks.projected import QkNorm
    from weft.frontends.lower.scope import Scope
    from weft.frontends.schema_values import NormRule
    from weft.ir.types import Val

EPS = {"layer_norm": 1e-5, "rms_norm": 1e-6, "l2": 1e-6}


def normalised(
    s: Scope, x: Val, rule: NormRule | QkNorm, stem: str, over: tuple[str, ...], each: tuple[str, ...] = ()
) -> Val:
    """x normalised over dims, with the gain `stem`.weight [each over], and `stem`.bias where a layer norm has one."""
    eps, name = exact(rule.eps or EPS[rule.kind]), stem.rsplit(".", 1)[-1]
    narrow = rule.kind == "layer_norm" and not each
    affine = [_gain(s, f"{stem}.weight", rule, over, each, s.compute if narrow else accumulate(x))]
    if rule.kind == "layer_norm" and rule.bias:
        affine.append(s.param(f"{stem}.bias", " ".join((*each, *over)), "bias"))
    dim, *others = over
    if others:
        return _together(s, x, rule, eps, name, over, affine)
    norm = RMSNorm(dim, eps / s.low.number(dim) if rule.kind == "l2" else eps)
    norm = LayerNorm(dim, eps) if rule.kind == "layer_norm" else norm
    if not each:
        return s.g.one(norm, x, *affine, names=[name])
    unit = s.g.one(norm, s.g.cast(x, accumulate(x)), names=["unit"])  # its op has a gain over one dim alone
    formula, operands = "x*w + b" if len(affine) > 1 else "x*w", dict[str, Any](zip("wb", affine))
    return s.map(name, formula, x=unit, to=" ".join(x.dims), dtype=s.compute, **operands)


def _gain(
    s: Scope, name: str, rule: NormRule | QkNorm, over: tuple[str, ...], each: tuple[str, ...], dtype: str
) -> Val:
    """What the normalised value is multiplied by: the weight, with the rule's offset. For `l2` over one dim, said as
    an RMS norm, it has the factor 1/sqrt(n) too. dtype: that of the norm's statistics; torch's layer_norm wants x's."""
    dims = " ".join((*each, *over))
    as_rms = rule.kind == "l2" and len(over) == 1
    if not rule.offset and not as_rms:
        return s.param(name, dims, "norm")
    own: tuple[Init, Path] = (InitRule(constant=1 - rule.offset), ())
    start = None if "norm" in s.low.model.init.model_fields_set else own
    formula: Any = symbol("w") + exact(rule.offset)
    if as_rms:
        formula = formula / sp.sqrt(symbol(f"n_{over[0]}"))
    return s.map("gain", formula, w=s.param(name, dims, "norm", rule=start, dtype=dtype), to=dims, dtype=dtype)


def _together(
    s: Scope, x: Val, rule: NormRule | QkNorm, eps: Any, name: str, over: tuple[str, ...], affine: list[Val]
) -> Val:
    """The same over several dims at once, in the accumulate dtype. Squares are divided before they are summed: in a
    model moved to half precision, where these values are narrow, their sum would be infinite."""
    left = [d for d in x.dims if d not in over]
    count = " * ".join(f"n_{d}" for d in over)
    wide = s.g.cast(x, s.accumulate)
    if rule.kind == "layer_norm":
        share = s.map("share", f"x / ({count})", x=wide, to=" ".join(x.dims), dtype=s.accumulate)
        centre = s.g.reduce(share, to=left)
        wide = s.map("centred", "x - centre", x=wide, centre=centre, to=" ".join(x.dims), dtype=s.accumulate)
    squares = s.g.reduce(s.map("square", f"x*x / ({count})", x=wide, dtype=s.accumulate), to=left)
    times = sp.prod([symbol(f"n_{d}") for d in over]) if rule.kind == "l2" else 1
    factor = s.map("factor", 1 / sp.sqrt(times * symbol("t") + eps), t=squares, dtype=s.accumulate)
    operands: dict[str, Any] = dict(zip("wb", affine))
    formula = "x*factor*w + b" if len(affine) > 1 else "x*factor*w"
    return s.map(name, formula, x=wide, factor=factor, to=" ".join(x.dims), dtype=s.compute, **operands)
