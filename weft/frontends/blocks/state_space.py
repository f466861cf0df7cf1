"""State spaces as a mixer of positions: S4D, DSS, and a narrow one in a gated unit (GSS)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, Tag

from weft.errors import Path, Problem, SpecError
from weft.frontends.blocks.diagonal import Diagonal
from weft.frontends.blocks.kind import Aux, BlockKind
from weft.frontends.schema_values import Activation, Size, one_of

if TYPE_CHECKING:
    from weft.frontends.lower.scope import Scope
    from weft.frontends.resolve import Dims
    from weft.ir.types import Val

Biased = Literal["input", "gate", "output"]


class StateSpace(BlockKind):
    """A diagonal state space of each channel along the sequence: S4D (Gu et al. 2022), DSS (Gupta et al. 2022); with a
    `gate`, output(mix(y) * gate(x)), GSS (Mehta et al. 2022).

    Chunks of positions are computed as products, or all of them by one long convolution; `weft explain` says which, and
    at what price.
    """

    kind: Literal["state_space"] = "state_space"
    system: Diagonal = Field(default=Diagonal(), description="the state space")
    channels: Size | None = Field(
        default=None, description="channels, which a matrix of the block's input gives; default: `width`"
    )
    input: Activation | None = Field(
        default=None,
        description="activation of the channels; without it and `channels` these are the block's input as it is",
    )
    activation: Activation = Field(default="none", description="of y, such as `gelu`")
    gate: Activation | None = Field(
        default=None,
        description="activation of a second product of the input, which y, through a matrix, is multiplied by",
    )
    inner: Size = Field(default="inner", description="size of the gate, where there is one")
    output: Literal["linear", "glu", "none"] = Field(
        default="linear",
        description="to `width`: a matrix; `glu`: one times the sigmoid of another; `none`: as it is",
    )
    bias: Annotated[
        Annotated[bool, Tag("flag")] | Annotated[list[Biased], Tag("list")],
        one_of("true, false, or a list such as `[output]`"),
    ] = Field(
        default=True, description="which matrices have a bias: all, none, or a list; that of y under a gate has none"
    )

    def problems(self, dims: Dims, path: Path) -> Iterator[Problem]:
        yield from self.system.problems((*path, "system"))

    def lower(self, s: Scope, x: Val, stem: str, path: Path) -> tuple[Val, Aux]:
        with s.at(*path):
            channels, u = self._given(s, x, stem, path)
            y = self.system.lower(s, s.g.cast(u, s.accumulate), channels, stem, (*path, "system"))
            act = s.activation(self.activation, (*path, "activation"))
            y = s.map("mixed", act, x=y, to=f"{s.rows} {channels}", dtype=s.compute)
            if self.gate is not None:
                channels, y = self._gated(s, x, y, channels, stem, path)
            return self._output(s, y, channels, stem, path), []

    def _bias(self, name: Biased, dims: str) -> str | None:
        return dims if self.bias is True or (isinstance(self.bias, list) and name in self.bias) else None

    def _given(self, s: Scope, x: Val, stem: str, path: Path) -> tuple[str, Val]:
        """The dim of channels, and what goes into the state space [batch seq channels]."""
        low, wanted = s.low, "width" if self.channels is None else self.channels
        if self.input is None and self.channels is None:
            channels = low.mint("channels", low.sizes["width"], s.space)
            return channels, s.rename("u", x, "width", channels)
        channels = low.axis(wanted, "channels", (*path, "channels"), s.space)
        to = f"{s.rows} {channels}"
        u = s.linear("u", x, f"width {channels}", to, f"{stem}.input", self._bias("input", channels))
        act = s.activation(self.input or "none", (*path, "input"))
        return channels, s.map("u", act, x=u, to=to, dtype=s.compute)

    def _gated(self, s: Scope, x: Val, y: Val, channels: str, stem: str, path: Path) -> tuple[str, Val]:
        """mix(y) * gate(x), [batch seq inner]."""
        inner = s.low.axis(self.inner, "inner", (*path, "inner"), (*s.space, channels))
        to = f"{s.rows} {inner}"
        up = s.linear("up", y, f"{channels} {inner}", to, f"{stem}.mix", None, fan_in=channels)
        gate = s.linear("gate", x, f"width {inner}", to, f"{stem}.gate", self._bias("gate", inner))
        return inner, s.hidden(up, gate, s.activation(self.gate or "none", (*path, "gate")), to)

    def _output(self, s: Scope, y: Val, own: str, stem: str, path: Path) -> Val:
        low, name, to = s.low, stem.rsplit(".", 1)[-1], " ".join(s.space)
        if self.output == "none":
            if low.number(own) != low.number("width"):
                message = f"{low.number(own)} channels are not the width {low.number('width')}"
                raise SpecError.at((*path, "output"), "W0402", message, "use `output: linear`")
            return s.rename(name, y, own, "width")
        bias = self._bias("output", "width")
        dims = f"{own} width"
        if self.output == "linear":
            return s.linear(name, y, dims, to, f"{stem}.output", bias, "output", own)
        both = {n: s.einsum(n, y, s.param(f"{stem}.{n}.weight", dims, "output", own), to=to) for n in ("output", "glu")}
        more = {
            n: s.param(f"{stem}.{k}.bias", "width", "bias")
            for n, k in (("up_bias", "output"), ("gate_bias", "glu"))
            if bias
        }
        return s.hidden(both["output"], both["glu"], s.activation("sigmoid", (*path, "output")), to, **more)
