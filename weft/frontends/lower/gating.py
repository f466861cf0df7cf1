"""What stands between the matrices of a feed-forward: an activation, or one of a gate beside what it gates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sympy as sp

from weft.errors import Path
from weft.ir.formula import symbol

if TYPE_CHECKING:
    from weft.frontends.lower.scope import Lowering, Scope
    from weft.ir.types import Val

UP = symbol("up")


def activation(low: Lowering, text: str, path: Path, gated: bool = False) -> sp.Expr:
    """The formula of an activation, in `x`; gated: it may read `up` too."""
    if text == "none":
        return symbol("x")
    names = {"x": symbol("x")} | ({"up": UP} if gated else {})
    return low.formula(f"{text}(x)" if text.isidentifier() and text not in names else text, path, names)


def hidden(s: Scope, up: Val, gate: Val | None, act: sp.Expr, to: str, **bias: Val) -> Val:
    """activation(up), or activation(gate) * up, or all that an activation makes of both where it reads `up`; the biases
    `up_bias`, `gate_bias` are added first if given."""

    def shifted(name: str) -> str:
        return f"{name} + {name}_bias" if f"{name}_bias" in bias else name

    if gate is None:
        lets, value = {"x": shifted("up")}, act
    else:
        lets, u = {"x": shifted("gate"), "u": shifted("up")}, symbol("u")
        value = act.xreplace({UP: u}) if UP in act.free_symbols else act * u
    operands = {"up": up} | ({"gate": gate} if gate is not None else {}) | bias
    return s.map("hidden", value, to=to, let=lets, dtype=s.compute, **operands)
