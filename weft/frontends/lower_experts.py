"""Routed experts, and opaque modules."""

from __future__ import annotations

from typing import Any

import sympy as sp

from weft.errors import Path, SpecError
from weft.frontends.lower_parts import activation, hidden
from weft.frontends.lower_scope import Lowering, Scope, exact
from weft.frontends.schema import Init, InitRule, Moe, Opaque
from weft.ir.formula import symbol
from weft.ir.library.routing import Route
from weft.ir.primitives import Opaque as OpaqueOp
from weft.ir.primitives import Scatter
from weft.ir.types import Type, Val


def moe(s: Scope, x: Val, block: Moe, stem: str, path: Path) -> tuple[Val, Val]:
    """The routed experts' sum, each weighted by its gate, and the load-balancing loss f32[].

    Router in the accumulate dtype. Dropped tokens get 0: the residual carries them. x: [batch seq width] in and out.
    """
    low, avoid = s.low, ("batch", "seq", "width")
    with s.at(*path):
        experts = low.axis(block.experts, "experts", (*path, "experts"), avoid)
        routes = low.mint("routes", low.sizes[experts], (*avoid, experts))  # sharded apart from the stacked experts
        slots = low.mint("capacity", _capacity(low, block, low.number(experts), path), (*avoid, experts, routes))
        inner = low.axis(block.inner, "inner", (*path, "inner"), (*avoid, experts, slots))
        if block.top_k > low.number(experts):
            raise SpecError.at((*path, "top_k"), "W0402", f"top_k is {block.top_k}, more than the experts there are")
        choice = low.mint("choice", block.top_k, (*avoid, experts, routes, slots, inner)) if block.top_k > 1 else ""
        router = s.param(f"{stem}.router.weight", f"width {routes}", "router", "width", dtype=s.accumulate)
        logits = s.einsum("logits", s.g.cast(x, s.accumulate), router, to=f"batch seq {routes}")
        op = Route(routes, "seq", block.top_k, choice, block.normalize)
        names = ["expert", "place", "gate", "balance", "load"]
        expert, place, gate, aux, _ = s.g.many(op, logits, names=names)
        at = f"{experts} {slots}"
        sent = s.g.one(Scatter(tuple(at.split()), ("batch", *at.split(), "width")), x, expert, place, names=["sent"])
        done = _experts(s, sent, block, stem, path, at, experts, inner)
        back = s.gather("returned", done, expert, place, at=at)
        return s.einsum(stem, back, s.g.cast(gate, s.compute), to="batch seq width"), aux


def _experts(s: Scope, x: Val, block: Moe, stem: str, path: Path, at: str, experts: str, inner: str) -> Val:
    """Every expert's feed-forward on the tokens it was sent."""
    act = activation(s, block.activation, (*path, "activation"))
    to, own = f"batch {at} {inner}", f"{experts} width {inner}"
    matrices = ("gate", "up") if block.gated else ("up",)
    got = {m: s.einsum(m, x, s.param(f"{stem}.{m}.weight", own, "experts", "width"), to=to) for m in matrices}
    bias = {f"{m}_bias": s.param(f"{stem}.{m}.bias", f"{experts} {inner}", "bias") for m in matrices if block.bias}
    h = hidden(s, got["up"], got.get("gate"), act, to, **bias)
    back = f"{experts} width" if block.bias else None
    return s.linear(
        "down", h, f"{experts} {inner} width", f"batch {at} width", f"{stem}.down", back, "expert_output", inner
    )


def _capacity(low: Lowering, block: Moe, experts: int, path: Path) -> Any:
    """Tokens an expert takes from one sequence; an expression over n_seq when given as a factor."""
    if block.capacity is not None:
        with low.reading((*path, "capacity"), "W0201"):
            return low.dims.symbolic(block.capacity)
    factor = exact(block.capacity_factor or 1.0) * block.top_k / experts
    return -sp.floor(-symbol("n_seq") * factor)


def opaque(s: Scope, x: Val, block: Opaque, stem: str, path: Path) -> Val:
    """The wrapped module, one tensor in and one out, its parameters as parameters of the model."""
    sides = [side.split() for side in block.signature.split("->")]
    if len(sides) != 2 or tuple(sides[0]) != x.dims:
        message = f"the signature '{block.signature}' does not take [{' '.join(x.dims)}]"
        raise SpecError.at((*path, "signature"), "W0402", message, "write `batch seq width -> batch seq width`")
    weights: dict[str, Val] = {}
    for name, value in block.module.named_parameters():
        dims: list[str] = []
        for i, size in enumerate(value.shape):
            dims.append(s.low.mint(f"own_{i}", int(size), dims))
        weights[name] = s.param(f"{stem}.{name}", " ".join(dims), rule=(_like(value), path))
    key = next(k for k, module in s.low.model.modules().items() if module is block.module)
    with s.at(*path):
        op = OpaqueOp(key, (Type(s.compute, tuple(sides[1])),), tuple(weights))
        return s.g.one(op, x, *weights.values(), names=[stem])


def _like(value: Any) -> Init:
    """How a module's own parameter starts: constant if it is, else normal with its spread."""
    value = value.detach().double()
    if value.numel() < 2 or bool((value == value.flatten()[0]).all()):
        return InitRule(constant=float(value.flatten()[0])) if value.numel() else "zeros"
    return InitRule(normal=float(value.std()))
