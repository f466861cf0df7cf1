"""Relative positions of an attention: scores that depend on how far a query is ahead of a key."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from weft.errors import Path, SpecError
from weft.frontends.schema_values import SpecPart
from weft.ir.pattern import is_causal, max_distance
from weft.ir.pattern.pattern import Pattern

if TYPE_CHECKING:
    from weft.frontends.blocks.sides import Axes
    from weft.frontends.lower.scope import Scope
    from weft.ir.types import Val


class Relative(SpecPart):
    """Relative positions: what a score has of the distance q - k of its query and key.

    `sinusoid` (Dai et al. 2019): s = scale * ((q + u)·k + (q + v)·r) with r a projection of the distance, whose sines
    come first and cosines behind them; it is a parameter `position` of each layer. `buckets` (Raffel et al. 2020) and
    `slopes` (Press et al. 2021): s = scale * q·k + b, with b a number of each head."""

    kind: Literal["sinusoid", "buckets", "slopes"] = Field(
        default="sinusoid",
        description="`sinusoid`: r is a projection of the sines and cosines of the distance; `buckets`: b is learned "
        "for each bucket of distances, a parameter `buckets` [buckets heads]: half of the buckets hold a distance "
        "each, the others more and more up to `max_distance`; where the pattern shows later keys, half of all buckets "
        "are theirs; `slopes`: b = -slope*|q - k|, the slopes of n heads from 2**(-8/n) to 2**-8",
    )
    biases: list[Literal["u", "v"]] | None = Field(
        default=None, description="`sinusoid`: which of u and v there are, each a row for every head; default: both"
    )
    buckets: int | None = Field(default=None, ge=2, le=256, description="`buckets`: how many; default 32")
    max_distance: int | None = Field(
        default=None, ge=2, le=1 << 30, description="`buckets`: from where on all distances share a bucket; default 128"
    )
    learned: bool | None = Field(
        default=None, description="`slopes`: whether each has a learned factor, a parameter `slopes` [heads]"
    )
    shared: bool = Field(
        default=False, description="u and v, the buckets, or the factors of slopes are the same in every layer"
    )

    @model_validator(mode="after")
    def _of_its_kind(self) -> Relative:
        for key in sorted(self.model_fields_set - {"kind", "shared"}):
            kind = next(kind for kind, keys in _OF_KIND.items() if key in keys)
            if kind != self.kind and getattr(self, key) is not None:
                raise ValueError(f"`{key}` goes with {kind}, not with {self.kind}")
        return self

    @property
    def with_rotary(self) -> bool:
        """May queries and keys have rotary positions as well?"""
        return self.kind != "sinusoid"


_OF_KIND = {"sinusoid": ("biases",), "buckets": ("buckets", "max_distance"), "slopes": ("learned",)}
"""The keys of one kind alone."""


@dataclass(frozen=True)
class Placed:
    """Queries, and the factor that is still to come to their products with keys. near: their scores by distance, the
    first of which is for the distance `first`. added: what is added to scores instead, a formula in `i_q`, `i_k`,
    `i_h`."""

    q: Val
    scale: Any
    near: Val | None = None
    first: Any = None
    added: Any = 0


def placed(
    s: Scope,
    q: Val,
    rule: Relative,
    stem: str,
    path: Path,
    pattern: Pattern,
    scale: Any,
    a: Axes,
    later: bool | None = None,
) -> Placed:
    """Queries [batch rows heads head] as products with keys want them, with their scores by distance: [batch rows heads
    distance] and scaled, or [heads distance]. Distances that the pattern never shows are left out. later: whether half
    of the buckets are those of later keys; default: where the pattern shows any."""
    with s.at(*path):
        if rule.kind == "slopes" and not rule.learned:
            far = s.ir.parse("abs(q - k)", {c: s.ir.symbol(f"i_{c}") for c in "qk"})
            return Placed(q, scale, added=-_slope(s, a, s.ir.symbol("i_h")) * far)
        distance, first = _distances(s, pattern, a)
        if rule.kind == "sinusoid":
            return _projected(s, q, rule, stem, path, scale, a, distance, first)
        if rule.kind == "slopes":
            return Placed(q, scale, _sloped(s, rule, stem, path, a, distance, first), first)
        both = first != 0 if later is None else later
        return Placed(q, scale, _bucketed(s, rule, stem, path, a, distance, first, both), first)


def _projected(
    s: Scope, q: Val, rule: Relative, stem: str, path: Path, scale: Any, a: Axes, distance: str, first: Any
) -> Placed:
    """Queries with u, and the scores of queries with v and a projection of the distance."""
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
    if rule.biases is not None and name not in rule.biases:
        return s.map(what, s.ir.symbol("q") * scale, q=q, to=to, dtype=s.compute)
    bias = s.param(f"{stem}.{name}", own, fan_in=own, shared=rule.shared)
    formula = (s.ir.symbol("q") + s.ir.symbol("b")) * scale
    return s.map(what, formula, q=q, b=bias, to=to, dtype=s.compute)


def _bucketed(s: Scope, rule: Relative, stem: str, path: Path, a: Axes, distance: str, first: Any, both: bool) -> Val:
    """The learned score of the bucket of each distance: [distance heads]. both: later keys have buckets of their own;
    else theirs is that of distance 0."""
    many, most = rule.buckets or 32, rule.max_distance or 128
    each = many // 2 if both else many
    if each < 2 or (both and many % 2) or most <= each // 2:
        message = f"{many} buckets{' for both ways' if both else ''} do not hold the distances up to {most}"
        way = "an even number of 4 or more for both ways, and a `max_distance` over half of what one way has"
        raise SpecError.at(path, "W0402", message, way)
    rows = s.low.mint("buckets", many, (*a.query.split(), distance))
    table = s.param(f"{stem}.buckets", f"{rows} {a.query}", "position", a.query, shared=rule.shared)
    let = {"d": s.ir.symbol(f"i_{distance}") + first, "n": "abs(d)" if both or first == 0 else "max(d, 0)"}
    one, none, far = s.ir.sympy.S.One, s.ir.sympy.S.Zero, s.ir.symbol("n")
    bucket: Any = s.ir.minimum(far, s.ir.sympy.Integer(each // 2))
    bucket += sum((s.ir.where(far >= n, one, none) for n in bounds(each, most)), none)
    bucket += s.ir.where(s.ir.symbol("d") < 0, s.ir.sympy.Integer(each), none) if both else none
    bucket = s.map("bucket", bucket, to=distance, let=let, dtype="i64")
    return s.gather("near", table, bucket, at=rows)


def bounds(many: int, most: int) -> list[int]:
    """Of `many` buckets, the least distance of each that holds more than one but the first such.

    With e = many // 2 that hold one distance each, bucket e + j begins at the least n with log(n / e) / log(most / e) *
    (many - e) >= j, here without rounding: n**m >= e**(m - j) * most**j for m = many - e."""
    e = many // 2
    m = many - e
    return [bisect_left(range(most), e ** (m - j) * most**j, key=lambda n: n**m) for j in range(1, m)]


def _sloped(s: Scope, rule: Relative, stem: str, path: Path, a: Axes, distance: str, first: Any) -> Val:
    """-slope * factor * distance: [heads distance]."""
    factor = s.param(f"{stem}.slopes", a.query, rule=("ones", path), shared=rule.shared)
    place: Any = 0
    for d in a.query.split():
        place = place * s.ir.symbol(f"n_{d}") + s.ir.symbol(f"i_{d}")
    let = {"d": s.ir.symbol(f"i_{distance}") + first, "slope": _slope(s, a, place)}
    return s.map("near", "-slope*w*abs(d)", w=factor, to=f"{a.query} {distance}", let=let, dtype=s.compute)


def _slope(s: Scope, a: Axes, head: Any) -> Any:
    """The slope of a head: 2**(-8(h + 1)/n) for a power of two; of n that is none, those of the power m below it, and
    then every other one of 2m (Press et al. 2021, and their code)."""
    many = prod(map(s.low.number, a.query.split()))
    m = 1 << (many.bit_length() - 1)
    names = {"h": head}
    first = s.ir.parse(f"exp(-8*log(2)*(h + 1)/{m})", names)
    if m == many:
        return first
    return s.ir.where(head < m, first, s.ir.parse(f"exp(-4*log(2)*(2*(h - {m}) + 1)/{m})", names))


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
