"""Routed experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from weft.errors import Path, Problem, SpecError
from weft.frontends.blocks.kind import Aux, BlockKind
from weft.frontends.blocks.mlp import Mlp
from weft.frontends.blocks.routing import routed
from weft.frontends.resolve import Dims
from weft.frontends.schema_values import Activation, Size, SpecPart

if TYPE_CHECKING:
    from weft.frontends.lower.scope import Scope
    from weft.ir.types import Val


class Shared(SpecPart):
    """Experts that every token goes to, as one feed-forward beside the routed ones (DeepSeek, Qwen 2)."""

    inner: Size = Field(description="hidden size, of all shared experts together")
    gate: bool = Field(default=False, description="its output times the sigmoid of a product with x (Qwen 2)")


class Moe(BlockKind):
    """Routed experts: each token goes to its `top_k` best experts, up to their capacity (Fedus et al. 2021).

    A capacity that no sequence can exceed (`seq`, or as large a factor) drops nothing: then tokens are not laid into
    slots, and experts compute on as many as they were sent. `seq` in a capacity is the run's length; `prefill` and
    `step`, which do not know how long the run will be, keep to the capacity of the longest one."""

    called = "MoE"
    either = (("capacity", "capacity_factor"),)
    kind: Literal["moe"] = "moe"
    experts: Size = Field(default="experts", description="number of experts")
    top_k: Annotated[int, Field(ge=1)] = Field(default=1, description="experts per token; ties go to the lower index")
    capacity: Size | None = Field(
        default=None,
        description="tokens an expert takes from one sequence, at least 1; what is over is dropped; `none`: all come",
    )
    capacity_factor: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="capacity as a multiple of `top_k * seq / experts`, rounded up; instead of `capacity`"
    )
    inner: Size = Field(default="inner", description="hidden size of an expert")
    activation: Activation = "gelu"
    gated: bool = Field(
        default=False,
        description="a second matrix, multiplied in; an `activation` that reads `up` too is all that "
        "stands between the matrices, in place of activation(gate)*up: `(up + 1)*x*sigmoid(1.702*x)`",
    )
    bias: bool = Field(default=False, description="biases on the experts' matrices")
    normalize: bool = Field(default=False, description="gates of a token's experts sum to 1")
    router: Literal["softmax", "sigmoid"] = Field(
        default="softmax", description="what makes scores, and so gates, of the router's logits"
    )
    logit_bias: bool = Field(
        default=False, description="a bias on the router's logits, a parameter `router.logit_bias`"
    )
    choice_bias: bool = Field(
        default=False,
        description="a bias on each expert's score that only chooses: gates have none of it and no gradient moves it "
        "(DeepSeek-V3); it starts at 0, a buffer `router.bias` of the module that what trains may set",
    )
    groups: Size | None = Field(
        default=None,
        description="groups of experts; a token's experts are all in its best `groups_kept` groups, by the "
        "sum of a group's two best scores (DeepSeek-V3)",
    )
    groups_kept: Annotated[int, Field(ge=1)] | None = Field(default=None, description="of `groups`: how many")
    route_scale: float = Field(default=1.0, description="factor on the gates, after `normalize`")
    shared: Shared | None = Field(default=None, description="experts that every token goes to")
    aux_loss: Annotated[float, Field(ge=0)] = Field(default=0.01, description="weight of the load-balancing loss")
    aux: Literal["sequence", "pooled"] = Field(
        default="sequence",
        description="`sequence`: the loss is that of each sequence, averaged; `pooled`: that of all tokens together",
    )
    z_loss: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="weight of the router's z-loss, the mean squared log-sum-exp of its logits (ST-MoE)"
    )
    skip_padding: bool = Field(
        default=False, description="whether tokens that the input `valid` denies are left out of both losses"
    )

    @model_validator(mode="after")
    def _one_capacity(self) -> Moe:
        if (self.capacity is None) == (self.capacity_factor is None):
            raise ValueError("give `capacity` or `capacity_factor`, one of the two")
        if (self.groups is None) != (self.groups_kept is None):
            raise ValueError("give both of `groups` and `groups_kept`, or neither")
        return self

    def lower(self, s: Scope, x: Val, stem: str, path: Path) -> tuple[Val, Aux]:
        """The routed experts' sum, each weighted by its gate, and the load-balancing loss.

        Router in the accumulate dtype. Dropped tokens get 0: the residual carries them.
        """
        low, avoid, dims = s.low, s.space, s.low.dims.on(s.low.length(s.stream))
        if self.skip_padding and s.stream in low.among:
            message = "memory tokens are no padding and none of the tokens that `valid` tells of"
            raise SpecError.at((*path, "skip_padding"), "W0403", message, "leave it out")
        with s.at(*path):
            experts = low.axis(self.experts, "experts", (*path, "experts"), avoid)
            routes = low.mint("routes", low.sizes[experts], (*avoid, experts))  # sharded apart from the stacked experts
            with low.reading((*path, "capacity"), "W0201"):
                size, full = s.ir.capacity(self, dims), s.ir.drops(self, dims)
                if full and (why := _shares(s)):
                    key = "capacity" if self.capacity is not None else "capacity_factor"
                    raise SpecError.at((*path, key), "W0403", why, "`capacity: none` takes all that come")
            slots = low.mint("capacity", size, (*avoid, experts, routes)) if full else ""
            inner = low.axis(self.inner, "inner", (*path, "inner"), (*avoid, experts, slots))
            if self.top_k > low.number(experts):
                raise SpecError.at((*path, "top_k"), "W0402", f"top_k is {self.top_k}, more than the experts there are")
            choice = low.mint("choice", self.top_k, (*avoid, experts, routes, slots, inner)) if self.top_k > 1 else ""
            way, whole = routed(s, self, x, stem, path, routes, choice), x
            expert, place, gate = way.expert, way.place, way.gate
            own = Slots(experts, slots, choice, s.length)
            if slots:
                at = (experts, slots)
                x = s.g.one(s.ir.Scatter(at, ("batch", *at, "width")), x, expert, place, names=["sent"])
            back = _experts(s, x, self, stem, path, own, expert, inner)
            if slots:
                back = s.gather("returned", back, expert, place, at=f"{experts} {slots}")
            y = s.einsum(stem, back, s.g.cast(gate, s.compute), to=" ".join(s.space))
            if self.shared is not None:
                y = _with_shared(s, y, whole, self, self.shared, stem, path)
            return y, way.losses

    def warnings(self, dims: Dims, path: Path, predicts: bool) -> Iterator[Problem]:
        """Experts that may be full sooner in a short run than in the steps that make it."""
        from weft.frontends.capacity import capacity, drops, length  # SymPy, which the language alone does without

        found, longest = capacity(self, dims) if drops(self, dims) else 0, dims.longest
        if not isinstance(found, int) and length(dims) in found.free_symbols:
            most = found.xreplace({length(dims): longest})
            message = (
                f"an expert's capacity depends on {dims.length}: a run has that of its own length, prefill and step "
                f"that of the longest ({most} at {longest}), so a shorter run may drop more tokens"
            )
            yield Problem("W0502", message, (*path, "capacity" if self.capacity is not None else "capacity_factor"))


def _shares(s: Scope) -> str:
    """Why the rows of a stream go with no expert that may be full; "" where they do."""
    rule = s.rows_of()
    if rule.documents:
        return "an expert takes tokens up to its capacity from a row, so what one document has depends on the others"
    return "padding would take places at an expert" if rule.padding else ""


@dataclass(frozen=True)
class Slots:
    """Where experts keep their tokens. slots: their dim, "" where each token stays where it is and meets its expert's
    matrices there (none is ever dropped). choice: the dim of a token's experts, "" for one. length: of the stream."""

    experts: str
    slots: str
    choice: str
    length: str

    @property
    def dims(self) -> str:
        """The dims of a token that an expert works on."""
        return f"batch {self.experts} {self.slots}" if self.slots else f"batch {self.length} {self.choice}".strip()


def _with_shared(s: Scope, y: Val, x: Val, block: Moe, shared: Shared, stem: str, path: Path) -> Val:
    """y and the shared experts' feed-forward of x, which has the form of the routed ones'."""
    own = Mlp(inner=shared.inner, activation=block.activation, gated=block.gated, bias=block.bias)
    more, _ = own.lower(s, x, f"{stem}.shared", (*path, "shared"))
    operands, formula = {"y": y, "more": more}, "y + more"
    if shared.gate:
        with s.at(*path, "shared"):
            weight = s.param(f"{stem}.shared.weight", "width", fan_in="width")
            operands["g"], formula = s.einsum("shared_gate", x, weight, to=s.rows), "y + sigmoid(g)*more"
    return s.map(stem, formula, to=" ".join(s.space), dtype=s.compute, **operands)


def _experts(s: Scope, x: Val, block: Moe, stem: str, path: Path, own: Slots, expert: Val, inner: str) -> Val:
    """Every expert's feed-forward on the tokens it was sent."""
    act, experts = s.activation(block.activation, (*path, "activation"), block.gated), own.experts

    def product(name: str, x: Val, dims: str, to: str, of: str, fan_in: str, role: str) -> Val:
        w = s.param(f"{stem}.{of}.weight", f"{experts} {dims}", role, fan_in)
        if own.slots:
            return s.einsum(name, x, w, to=to)
        return s.g.one(s.ir.ExpertProduct(experts, tuple(to.split())), x, w, expert, names=[name])

    def bias(of: str, dim: str) -> Val:
        b = s.param(f"{stem}.{of}.bias", f"{experts} {dim}", "bias")
        return b if own.slots else s.gather(f"{of}_bias", b, expert, at=experts)

    to, back = f"{own.dims} {inner}", f"{own.dims} width"
    matrices = ("gate", "up") if block.gated else ("up",)
    got = {m: product(m, x, f"width {inner}", to, m, "width", "experts") for m in matrices}
    h = s.hidden(got["up"], got.get("gate"), act, to, **{f"{m}_bias": bias(m, inner) for m in matrices if block.bias})
    y = product("down", h, f"{inner} width", back, "down", inner, "expert_output")
    return s.map("down", "y + b", back, y=y, b=bias("down", "width"), dtype=s.compute) if block.bias else y
