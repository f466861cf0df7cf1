"""Norms of queries and keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from weft.errors import Path
from weft.frontends.schema_values import SpecPart

if TYPE_CHECKING:
    from weft.frontends.lower.scope import Scope
    from weft.ir.types import Val


class QkNorm(SpecPart):
    """A normalisation of queries and keys, of each by weights of its own, before rotary positions.

    `l2` is x / sqrt(sum(x**2) + eps) times a weight."""

    kind: Literal["rms_norm", "layer_norm", "l2"] = Field(description="`rms_norm`, `layer_norm` or `l2`")
    over: Literal["head", "each_head", "projection"] = Field(
        default="head",
        description="`head`: each head by itself, all with one weight [head]; `each_head`: by itself, with a weight of "
        "its own [heads head] (Cohere); `projection`: all heads together, with a weight [heads head] (OLMo 2)",
    )
    eps: float | None = Field(
        default=None,
        gt=0,
        description="added to the variance, or to the sum of squares; default 1e-5 (`layer_norm`) or 1e-6",
    )
    bias: bool = Field(default=True, description="`layer_norm` only: whether it adds a bias")
    offset: float = Field(default=0.0, description="added to the weight, as in [NormRule](#normrule)")


def normed(s: Scope, x: Val, rule: QkNorm, heads: tuple[str, ...], head: str, stem: str, path: Path) -> Val:
    """x [batch rows heads head] normalised; its weights are called by `stem`."""
    over = (*heads, head) if rule.over == "projection" else (head,)
    with s.at(*path):
        return s.normalised(x, rule, stem, over, heads if rule.over == "each_head" else ())
