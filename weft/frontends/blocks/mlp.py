"""Feed-forward blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from weft.errors import Path
from weft.frontends.blocks.kind import Aux, BlockKind
from weft.frontends.schema_values import Activation, Init, Size

if TYPE_CHECKING:
    from weft.frontends.lower.scope import Scope
    from weft.ir.types import Val


class Mlp(BlockKind):
    """Position-wise feed-forward: down(activation(up(x))), or down(activation(gate(x)) * up(x)) when gated."""

    called = "MLP"
    kind: Literal["mlp"] = "mlp"
    inner: Size = Field(default="inner", description="hidden size")
    activation: Activation = "gelu"
    gated: bool = Field(
        default=False,
        description="a second matrix, multiplied in: GEGLU, SwiGLU; an `activation` that reads `up` too is all that "
        "stands between the matrices, in place of activation(gate)*up: `(up + 1)*x*sigmoid(1.702*x)`",
    )
    bias: bool = Field(default=True, description="biases on every matrix")
    weight_norm: Init | None = Field(
        default=None,
        description="the norm of each result's weights is a parameter `gain`, in every matrix, which starts by this "
        "rule, such as `ones` (Salimans and Kingma 2016)",
    )

    def lower(self, s: Scope, x: Val, stem: str, path: Path) -> tuple[Val, Aux]:
        inner = s.low.axis(self.inner, "inner", (*path, "inner"), s.space)
        to, matrices = f"{s.rows} {inner}", ("gate", "up") if self.gated else ("up",)
        with s.at(*path):
            act = s.activation(self.activation, (*path, "activation"), self.gated)
            got = {
                m: s.einsum(m, x, s.weights(f"{stem}.{m}", "width", inner, self.weight_norm, path), to=to)
                for m in matrices
            }
            bias = {f"{m}_bias": s.param(f"{stem}.{m}.bias", inner, "bias") for m in matrices if self.bias}
            with s.at(*path, "activation"):
                h = s.hidden(got["up"], got.get("gate"), act, to, **bias)
            name, to = stem.rsplit(".", 1)[-1], " ".join(s.space)
            y = s.einsum(name, h, s.weights(f"{stem}.down", inner, "width", self.weight_norm, path, "output"), to=to)
            if self.bias:
                y = s.map(name, "y + b", y=y, b=s.param(f"{stem}.down.bias", "width", "bias"), to=to, dtype=s.compute)
            return y, []
