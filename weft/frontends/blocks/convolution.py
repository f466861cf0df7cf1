"""Convolutions along the sequence: causal, depthwise or dense, dilated, gated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from weft.errors import Path, SpecError
from weft.frontends.blocks.kind import Aux, BlockKind
from weft.frontends.memories import stream_of
from weft.frontends.schema_values import Activation, Init, Size, SpecPart

if TYPE_CHECKING:
    from weft.frontends.lower.scope import Scope
    from weft.ir.types import Val


class ConvolutionLayer(SpecPart):
    """One convolution: activation(w * x + b), or (w * x + b) activation(v * x + c) when gated."""

    taps: Size = Field(description="positions that a result reads: its own and those before it; 1: a matrix")
    channels: Size | None = Field(
        default=None, description="channels of the result; default: `width`, when depthwise as many as before"
    )
    dilation: Size = Field(default=1, description="distance between the positions that are read")
    depthwise: bool = Field(default=False, description="each channel by itself")
    gated: bool = Field(default=False, description="a second convolution, whose activation is multiplied in")
    activation: Activation | None = Field(
        default=None,
        description="as of an [MLP](#mlp), of the convolution or of its gate; default: `none`, `sigmoid` when gated",
    )
    bias: bool = Field(default=True, description="a bias on each convolution")
    weight_norm: Init | None = Field(
        default=None,
        description="the norm of each result's weights is a parameter, which starts by this rule, such as `ones` "
        "(Salimans and Kingma 2016)",
    )


class Convolution(BlockKind):
    """Causal convolutions, one after the other, the last one to `width` channels (gated: Dauphin et al. 2017)."""

    kind: Literal["convolution"] = "convolution"
    layers: list[ConvolutionLayer] = Field(min_length=1, description="the convolutions in order")

    def lower(self, s: Scope, x: Val, stem: str, path: Path) -> tuple[Val, Aux]:
        low, into = s.low, "width"
        if stream_of(low.model) == s.stream:
            message = "a convolution reads nothing before a segment, and the memory keeps rows for attention alone"
            raise SpecError.at(path, "W0403", message, "leave out `memory`, or make it an attention")
        for i, layer in enumerate(self.layers):
            where = (*path, "layers", i)
            own = Lane(s, layer, stem if len(self.layers) == 1 else f"{stem}.{i}", where, into)
            with s.at(*where):
                x, into = own.convolved(x), own.out
        if low.number(into) != low.number("width"):
            message = f"the last convolution has {low.number(into)} channels, and the width is {low.number('width')}"
            raise SpecError.at((*path, "layers", len(self.layers) - 1), "W0402", message, "add one with `taps: 1`")
        with s.at(*path):
            return (x if into == "width" else s.rename(stem.rsplit(".", 1)[-1], x, into, "width")), []


class Lane:
    """One convolution at work: its dims, and its parameters, called by `stem`."""

    def __init__(self, s: Scope, layer: ConvolutionLayer, stem: str, path: Path, into: str) -> None:
        self.s, self.layer, self.stem, self.path, self.into = s, layer, stem, path, into
        low, avoid = s.low, (*s.rows.split(), into)
        self.out = into
        if not layer.depthwise:
            wanted = layer.channels or "width"
            own = low.mint("channels", low.sizes[into], avoid) if wanted == into else ""
            self.out = own or ("width" if wanted == "width" else self._axis(wanted, avoid))
        elif (given := self._size(layer.channels or into, "channels")) != low.number(into):
            message = f"a depthwise convolution of {low.number(into)} channels has as many, not {given}"
            raise SpecError.at((*path, "channels"), "W0402", message, "leave out `channels` or `depthwise`")
        self.tap = low.axis(layer.taps, "taps", (*path, "taps"), (*avoid, self.out))
        self.dilation = self._size(layer.dilation, "dilation")

    def _size(self, size: Size, key: str) -> int:
        low = self.s.low
        if isinstance(size, str) and size in low.sizes:
            return low.number(size)
        with low.reading((*self.path, key), "W0201"):
            return low.dims.size(size)

    def _axis(self, size: Size, avoid: tuple[str, ...]) -> str:
        return self.s.low.axis(size, "channels", (*self.path, "channels"), avoid)

    def convolved(self, x: Val) -> Val:
        """x [batch seq into] to [batch seq out]."""
        s, layer, to = self.s, self.layer, f"{self.s.rows} {self.out}"
        names = {"x": self.stem} | ({"gate": f"{self.stem}.gate"} if layer.gated else {})
        w = {k: self.weights(stem) for k, stem in names.items()}
        if s.low.number(self.tap) == 1:
            got = {k: s.einsum("convolved", x, w[k], to=to) for k in names}
        else:
            x = there(s, x)
            got = {k: read_back(s, x, w[k], self.tap, self.dilation, self.out) for k in names}
        bias = {f"{k}_bias": s.param(f"{stem}.bias", self.out, "bias") for k, stem in names.items() if layer.bias}
        act = s.activation(layer.activation or ("sigmoid" if layer.gated else "none"), (*self.path, "activation"))
        let = {k: f"{k}_in + {k}_bias" if bias else f"{k}_in" for k in names}
        if layer.gated:
            act = s.ir.symbol("x") * act.xreplace({s.ir.symbol("x"): s.ir.symbol("gate")})
        return s.map("hidden", act, to=to, let=let, dtype=s.compute, **{f"{k}_in": v for k, v in got.items()}, **bias)

    def weights(self, stem: str) -> Val:
        """The weights [taps into out], or [taps channels]."""
        into = self.tap if self.layer.depthwise else f"{self.tap} {self.into}"
        return self.s.weights(stem, into, self.out, self.layer.weight_norm, self.path)


def there(s: Scope, x: Val) -> Val:
    """x [batch seq ..], 0 where it is padding."""
    if not s.rows_of().padding:
        return x
    return s.map("there", "where(v, x, 0)", v=s.shared("valid"), x=x, to=" ".join(x.dims), dtype=x.dtype)


def read_back(s: Scope, x: Val, w: Val, tap: str, dilation: int, out: str = "") -> Val:
    """The causal convolution of x [batch seq ..], without padding, with w [tap ..]: of each channel by itself, or dense
    to the channels `out`. It reads its own document alone."""
    low, documents = s.low, s.rows_of().documents
    own = [d for d in x.dims if d not in s.rows.split()]
    to = (*s.rows.split(), *([out] if out and out not in own else own))
    # Called by how many it reads: decoding keeps as many rows of a dim as any reader of it wants.
    far = dilation * (low.number(tap) - 1) + 1
    past = low.mint(f"last_{far}", low.sizes[s.length], (*s.rows.split(), *own, *to, tap))
    rows, at = s.rename("rows", x, s.length, past), [s.counted("place")] if documents else []
    op = s.ir.Convolve(past, s.length, tap, to, dilation, placed=bool(at))
    return s.g.one(op, rows, w, *at, names=["convolved"])
