"""Norms, activations and feed-forward blocks."""

from __future__ import annotations

import sympy as sp

from weft.errors import Path
from weft.frontends.lower_scope import Scope, exact
from weft.frontends.schema import Mlp, Norm, NormRule
from weft.ir.formula import symbol
from weft.ir.library.norm import LayerNorm, RMSNorm
from weft.ir.types import Val

EPS = {"layer_norm": 1e-5, "rms_norm": 1e-6}
X = symbol("x")


def norm(s: Scope, x: Val, rule: Norm, stem: str, path: Path, over: str = "width") -> Val:
    """x normalised over a dim, with the gain (and bias) `stem`.weight (`stem`.bias)."""
    rule = NormRule(kind=rule) if isinstance(rule, str) and rule != "none" else rule
    if isinstance(rule, str):
        return x
    with s.at(*path):
        eps = exact(rule.eps or EPS[rule.kind])
        affine = [s.param(f"{stem}.weight", over, "norm")]
        if rule.kind == "layer_norm" and rule.bias:
            affine.append(s.param(f"{stem}.bias", over, "bias"))
        op = (LayerNorm if rule.kind == "layer_norm" else RMSNorm)(over, eps)
        return s.g.one(op, x, *affine, names=[stem.rsplit(".", 1)[-1]])


def activation(s: Scope, text: str, path: Path) -> sp.Expr:
    """The formula of an activation, in `x`."""
    if text == "none":
        return X
    return s.low.formula(f"{text}(x)" if text.isidentifier() and text != "x" else text, path, {"x": X})


def hidden(s: Scope, up: Val, gate: Val | None, act: sp.Expr, to: str, **bias: Val) -> Val:
    """activation(up), or activation(gate) * up; the biases `up_bias`, `gate_bias` are added first if given."""

    def shifted(name: str) -> str:
        return f"{name} + {name}_bias" if f"{name}_bias" in bias else name

    if gate is None:
        lets, value = {"x": shifted("up")}, act
    else:
        lets, value = {"x": shifted("gate"), "u": shifted("up")}, act * symbol("u")
    operands = {"up": up} | ({"gate": gate} if gate is not None else {}) | bias
    return s.map("hidden", value, to=to, let=lets, dtype=s.compute, **operands)


def mlp(s: Scope, x: Val, block: Mlp, stem: str, path: Path) -> Val:
    """down(activation(up(x))); gated: down(activation(gate(x)) * up(x)). x: [batch seq width] in and out."""
    inner = s.low.axis(block.inner, "inner", (*path, "inner"), ("batch", "seq", "width"))
    to = f"batch seq {inner}"
    with s.at(*path):
        act = activation(s, block.activation, (*path, "activation"))
        matrices = ("gate", "up") if block.gated else ("up",)
        got = {
            m: s.einsum(m, x, s.param(f"{stem}.{m}.weight", f"width {inner}", fan_in="width"), to=to) for m in matrices
        }
        bias = {f"{m}_bias": s.param(f"{stem}.{m}.bias", inner, "bias") for m in matrices if block.bias}
        with s.at(*path, "activation"):
            h = hidden(s, got["up"], got.get("gate"), act, to, **bias)
        return s.linear(
            stem,
            h,
            f"{inner} width",
            "batch seq width",
            f"{stem}.down",
            "width" if block.bias else None,
            "output",
            inner,
        )
