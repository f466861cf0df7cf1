"""Relative positions of an attention: scores that depend on how far a query is ahead of a key."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from weft.errors import Path, SpecError
from weft.frontends.schema_values import SpecPart
from weft.ir.pattern import is_causal, max_distance
from weft.ir.pattern.pattern import Pattern

if TYPE_CHECKING:
    from weft.frontends.blocks.attention import Axes
    from weft.frontends.lower.scope import Scope
    from weft.ir.types import Val


class Relative(SpecPart):
    """Relative positions (Dai et al. 2019): s = scale * ((q + u)·k + (q + v)·r) with r a projection of the distance
    q - k, whose sines come first and cosines behind them; it is a parameter `position` of each layer."""

    kind: Literal["sinusoid"] = Field(
        default="sinusoid", description="`sinusoid`: r is a projection of the sines and cosines of the distance"
    )
    biases: list[Literal["u", "v"]] = Field(
        default=["u", "v"], description="which of u and v there are, each a row for every head"
    )
    shared: bool = Field(default=False, description="u and v are the same in every layer")


@dataclass(frozen=True)
class Placed:
    """Queries, the factor that is still to come to their products with keys, and their scores by distance, the first
    of which is for the distance `first`."""

    q: Val
    scale: Any
    near: Val | None = None
    first: Any = None


def placed(s: Scope, q: Val, rule: Relative, stem: str, path: Path, pattern: Pattern, scale: Any, a: Axes) -> Placed:
    """Queries [batch rows heads head] as products with keys want them, scaled, with their scores by distance [batch
    rows heads distance]. Distances that the pattern never shows are left out."""
    with s.at(*path):
        distance, first = _distances(s, pattern, a)
        table = _sinusoid(s, distance, first, path)
        own = f"{a.keys} {a.head}"
        weight = s.param(f"{stem}.position.weight", f"width {own}", fan_in="width")
        r = s.einsum("position", table, weight, to=f"{distance} {own}")
        content, place = (_biased(s, q, rule, name, stem, f"{a.query} {a.head}", scale) for name in ("u", "v"))
        rows = " ".join(d for d in q.dims if d != a.head)
        near = s.einsum("near", place, r, to=f"{rows} {distance}")
        return Placed(content, s.ir.sympy.Integer(1), near, first)


def _biased(s: Scope, q: Val, rule: Relative, name: str, stem: str, own: str, scale: Any) -> Val:
    """scale * (q + u), or v; each is scaled, so that their scores are added as they are."""
    to = " ".join(q.dims)
    what = {"u": "content", "v": "place"}[name]
    if name not in rule.biases:
        return s.map(what, s.ir.symbol("q") * scale, q=q, to=to, dtype=s.compute)
    bias = s.param(f"{stem}.{name}", own, fan_in=own, shared=rule.shared)
    formula = (s.ir.symbol("q") + s.ir.symbol("b")) * scale
    return s.map(what, formula, q=q, b=bias, to=to, dtype=s.compute)


def _distances(s: Scope, pattern: Pattern, a: Axes) -> tuple[str, Any]:
    """The dim of distances, and the first of them: 0 and on where no later key is seen, else from -(n - 1) on."""
    low, heads = s.low, a.query.split()
    many, size, avoid = prod(map(low.number, heads)), low.sizes[a.key], (*s.space, *heads, a.head, a.key)
    if not is_causal(pattern, a.longest, many):
        return low.mint("distance", size + low.sizes[s.length] - 1, avoid), 1 - s.ir.symbol(f"n_{a.key}")
    reach = max_distance(pattern, a.longest, many)
    rows = None if reach is None else max(reach, 0) + 1  # one, where the pattern shows nothing
    size = size if rows is None or rows >= a.longest else s.ir.minimum(size, s.ir.sympy.Integer(rows))
    return low.mint("distance", size, avoid), s.ir.sympy.Integer(0)


def _sinusoid(s: Scope, distance: str, first: Any, path: Path) -> Val:
    """sin(d / 10000^(2i / width)) for i < width / 2, then the cosines: [distance width]."""
    width = s.low.number("width")
    if width % 2:
        message = f"sines and cosines come in pairs, and a width of {width} has no last pair"
        raise SpecError.at(path, "W0402", message, "make `width` even")
    let = {
        "d": s.ir.symbol(f"i_{distance}") + first,
        "angle": f"d * exp(-2 * (i_width % {width // 2}) / {width} * log(10000))",
    }
    value = f"where(i_width < {width // 2}, sin(angle), cos(angle))"
    return s.map("sinusoid", value, to=f"{distance} width", let=let, dtype=s.compute)
