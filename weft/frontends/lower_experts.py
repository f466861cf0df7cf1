"""Routed experts, and opaque modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weft.errors import Path, SpecError
from weft.frontends.capacity import capacity, drops
from weft.frontends.lower_parts import activation, hidden
from weft.frontends.lower_scope import Scope
from weft.frontends.schema import Init, InitRule, Moe, Opaque
from weft.ir.library.routing import ExpertProduct, Route
from weft.ir.primitives import Opaque as OpaqueOp
from weft.ir.primitives import Scatter
from weft.ir.types import Type, Val


@dataclass(frozen=True)
class Slots:
    """Where experts keep their tokens. slots: their dim, "" where each token stays where it is and meets its expert's
    matrices there (none is ever dropped). choice: the dim of a token's experts, "" for one."""

    experts: str
    slots: str
    choice: str

    @property
    def dims(self) -> str:
        """The dims of a token that an expert works on."""
        return f"batch {self.experts} {self.slots}" if self.slots else f"batch seq {self.choice}".strip()


def moe(s: Scope, x: Val, block: Moe, stem: str, path: Path) -> tuple[Val, Val]:
    """The routed experts' sum, each weighted by its gate, and the load-balancing loss f32[].

    Router in the accumulate dtype. Dropped tokens get 0: the residual carries them. x: [batch seq width] in and out.
    """
    low, avoid = s.low, ("batch", "seq", "width")
    with s.at(*path):
        experts = low.axis(block.experts, "experts", (*path, "experts"), avoid)
        routes = low.mint("routes", low.sizes[experts], (*avoid, experts))  # sharded apart from the stacked experts
        with low.reading((*path, "capacity"), "W0201"):
            size, full = capacity(block, low.dims), drops(block, low.dims)
        slots = low.mint("capacity", size, (*avoid, experts, routes)) if full else ""
        inner = low.axis(block.inner, "inner", (*path, "inner"), (*avoid, experts, slots))
        if block.top_k > low.number(experts):
            raise SpecError.at((*path, "top_k"), "W0402", f"top_k is {block.top_k}, more than the experts there are")
        choice = low.mint("choice", block.top_k, (*avoid, experts, routes, slots, inner)) if block.top_k > 1 else ""
        router = s.param(f"{stem}.router.weight", f"width {routes}", "router", "width", dtype=s.accumulate)
        logits = s.einsum("logits", s.g.cast(x, s.accumulate), router, to=f"batch seq {routes}")
        op = Route(routes, "seq", block.top_k, choice, block.normalize)
        names = ["expert", "place", "gate", "balance", "load"]
        expert, place, gate, aux, _ = s.g.many(op, logits, names=names)
        own = Slots(experts, slots, choice)
        if slots:
            at = (experts, slots)
            x = s.g.one(Scatter(at, ("batch", *at, "width")), x, expert, place, names=["sent"])
        back = _experts(s, x, block, stem, path, own, expert, inner)
        if slots:
            back = s.gather("returned", back, expert, place, at=f"{experts} {slots}")
        return s.einsum(stem, back, s.g.cast(gate, s.compute), to="batch seq width"), aux


def _experts(s: Scope, x: Val, block: Moe, stem: str, path: Path, own: Slots, expert: Val, inner: str) -> Val:
    """Every expert's feed-forward on the tokens it was sent."""
    act, experts = activation(s, block.activation, (*path, "activation")), own.experts

    def product(name: str, x: Val, dims: str, to: str, of: str, fan_in: str, role: str) -> Val:
        w = s.param(f"{stem}.{of}.weight", f"{experts} {dims}", role, fan_in)
        if own.slots:
            return s.einsum(name, x, w, to=to)
        return s.g.one(ExpertProduct(experts, tuple(to.split())), x, w, expert, names=[name])

    def bias(of: str, dim: str) -> Val:
        b = s.param(f"{stem}.{of}.bias", f"{experts} {dim}", "bias")
        return b if own.slots else s.gather(f"{of}_bias", b, expert, at=experts)

    to, back = f"{own.dims} {inner}", f"{own.dims} width"
    matrices = ("gate", "up") if block.gated else ("up",)
    got = {m: product(m, x, f"width {inner}", to, m, "width", "experts") for m in matrices}
    h = hidden(s, got["up"], got.get("gate"), act, to, **{f"{m}_bias": bias(m, inner) for m in matrices if block.bias})
    y = product("down", h, f"{inner} width", back, "down", inner, "expert_output")
    return s.map("down", "y + b", back, y=y, b=bias("down", "width"), dtype=s.compute) if block.bias else y


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
