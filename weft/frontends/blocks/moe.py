"""Routed experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from weft.errors import Path, Problem, SpecError
from weft.frontends.blocks.kind import Aux, BlockKind
from weft.frontends.resolve import Dims
from weft.frontends.schema_values import Activation, Size

if TYPE_CHECKING:
    from weft.frontends.lower.scope import Scope
    from weft.ir.types import Val


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
        default=None, description="tokens an expert takes from one sequence, at least 1; what is over is dropped"
    )
    capacity_factor: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="capacity as a multiple of `top_k * seq / experts`, rounded up; instead of `capacity`"
    )
    inner: Size = Field(default="inner", description="hidden size of an expert")
    activation: Activation = "gelu"
    gated: bool = Field(default=False, description="a second matrix, multiplied in")
    bias: bool = Field(default=False, description="biases on the experts' matrices")
    normalize: bool = Field(default=False, description="gates of a token's experts sum to 1")
    aux_loss: Annotated[float, Field(ge=0)] = Field(default=0.01, description="weight of the load-balancing loss")

    @model_validator(mode="after")
    def _one_capacity(self) -> Moe:
        if (self.capacity is None) == (self.capacity_factor is None):
            raise ValueError("give `capacity` or `capacity_factor`, one of the two")
        return self

    def lower(self, s: Scope, x: Val, stem: str, path: Path) -> tuple[Val, Aux]:
        """The routed experts' sum, each weighted by its gate, and the load-balancing loss.

        Router in the accumulate dtype. Dropped tokens get 0: the residual carries them.
        """
        low, avoid, dims = s.low, s.space, s.low.dims.on(s.length)
        with s.at(*path):
            experts = low.axis(self.experts, "experts", (*path, "experts"), avoid)
            routes = low.mint("routes", low.sizes[experts], (*avoid, experts))  # sharded apart from the stacked experts
            with low.reading((*path, "capacity"), "W0201"):
                size, full = s.ir.capacity(self, dims), s.ir.drops(self, dims)
            slots = low.mint("capacity", size, (*avoid, experts, routes)) if full else ""
            inner = low.axis(self.inner, "inner", (*path, "inner"), (*avoid, experts, slots))
            if self.top_k > low.number(experts):
                raise SpecError.at((*path, "top_k"), "W0402", f"top_k is {self.top_k}, more than the experts there are")
            choice = low.mint("choice", self.top_k, (*avoid, experts, routes, slots, inner)) if self.top_k > 1 else ""
            router = s.param(f"{stem}.router.weight", f"width {routes}", "router", "width", dtype=s.accumulate)
            logits = s.einsum("logits", s.g.cast(x, s.accumulate), router, to=f"{s.rows} {routes}")
            op = s.ir.Route(routes, s.length, self.top_k, choice, self.normalize)
            names = ["expert", "place", "gate", "balance", "load"]
            expert, place, gate, aux, _ = s.g.many(op, logits, names=names)
            own = Slots(experts, slots, choice, s.length)
            if slots:
                at = (experts, slots)
                x = s.g.one(s.ir.Scatter(at, ("batch", *at, "width")), x, expert, place, names=["sent"])
            back = _experts(s, x, self, stem, path, own, expert, inner)
            if slots:
                back = s.gather("returned", back, expert, place, at=f"{experts} {slots}")
            y = s.einsum(stem, back, s.g.cast(gate, s.compute), to=" ".join(s.space))
            return y, [(aux, self.aux_loss)]

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


def _experts(s: Scope, x: Val, block: Moe, stem: str, path: Path, own: Slots, expert: Val, inner: str) -> Val:
    """Every expert's feed-forward on the tokens it was sent."""
    act, experts = s.activation(block.activation, (*path, "activation")), own.experts

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
