"""Rotary positions: which dims of a head turn, and how fast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from weft.errors import FormulaError, Path, Problem
from weft.frontends.resolve import Dims
from weft.frontends.schema_values import Size, SpecPart

if TYPE_CHECKING:
    from weft.frontends.lower.scope import Scope
    from weft.ir.types import Val


class RotaryScaling(SpecPart):
    """How a model's rotary frequencies are changed so that it reads further than it was first trained for; the formulas
    are those of Hugging Face's `rope_type`. Frequencies are the same for every length of a run."""

    kind: Literal["linear", "ntk", "yarn", "llama3"] = Field(
        description="`linear`: all frequencies are divided by `factor`; `ntk`: the base is multiplied by "
        "factor**(dims/(dims - 2)); `yarn`: slow frequencies are divided, from `beta_fast` to `beta_slow` turns within "
        "`original` positions less and less (Peng et al. 2023); `llama3`: those slower than `high_frequency` turns, "
        "below `low_frequency` turns wholly"
    )
    factor: float = Field(ge=1, description="by how much further the model reads")
    original: Size | None = Field(
        default=None, description="`yarn`, `llama3`: positions that the model was first trained for; required there"
    )
    beta_fast: float | None = Field(default=None, gt=0, description="`yarn`: default 32")
    beta_slow: float | None = Field(default=None, gt=0, description="`yarn`: default 1")
    truncate: bool | None = Field(
        default=None, description="`yarn`: whether the ramp begins and ends at whole pairs; default true"
    )
    attention_factor: float | None = Field(
        default=None, gt=0, description="`yarn`: factor on queries and on keys that turn; default 0.1*log(factor) + 1"
    )
    low_frequency: float | None = Field(default=None, gt=0, description="`llama3`: default 1")
    high_frequency: float | None = Field(default=None, gt=0, description="`llama3`: default 4")

    @field_validator("kind", mode="before")
    @classmethod
    def _of_one_length(cls, value: Any) -> Any:
        if value in ("dynamic", "longrope"):
            raise ValueError(
                f"`{value}` has other frequencies for longer runs, so that a step would not give what the whole gives; "
                "`ntk` or `yarn` with the factor of the longest run"
            )
        return value

    @model_validator(mode="after")
    def _fits(self) -> RotaryScaling:
        for key in sorted(self.model_fields_set - {"kind", "factor", *_OF_SCALING.get(self.kind, ())}):
            kinds = " and ".join(kind for kind, keys in _OF_SCALING.items() if key in keys)
            raise ValueError(f"`{key}` goes with {kinds}, not with {self.kind}")
        if "original" in _OF_SCALING.get(self.kind, ()) and self.original is None:
            raise ValueError(f"{self.kind} needs `original`, the positions that the model was first trained for")
        if self.betas[0] <= self.betas[1]:
            raise ValueError("`beta_fast` must be over `beta_slow`")
        if self.turns[0] >= self.turns[1]:
            raise ValueError("`low_frequency` must be under `high_frequency`")
        return self

    @property
    def betas(self) -> tuple[float, float]:
        """Of `yarn`: turns within the original positions where the ramp begins and ends."""
        return self.beta_fast or 32.0, self.beta_slow or 1.0

    @property
    def turns(self) -> tuple[float, float]:
        """Of `llama3`: turns below which a frequency is divided, and above which it is kept."""
        return self.low_frequency or 1.0, self.high_frequency or 4.0


_OF_SCALING = {
    "yarn": ("original", "beta_fast", "beta_slow", "truncate", "attention_factor"),
    "llama3": ("original", "low_frequency", "high_frequency"),
}
"""The keys of one kind of scaling alone."""


class RotaryPositions(SpecPart):
    """Rotary positions on queries and keys (Su et al. 2021)."""

    base: float = Field(default=10000.0, gt=1, description="wavelength base")
    interleaved: bool = Field(default=False, description="rotate pairs (2i, 2i+1) instead of (i, i + half)")
    dims: Size | None = Field(
        default=None,
        description="how many leading dims of a head turn, an even number such as `head // 4`; default: all",
    )
    scaling: RotaryScaling | None = Field(default=None, description="frequencies for more positions than at first")


def rotary_problems(rule: RotaryPositions, dims: Dims, head: int | str, path: Path) -> Iterator[Problem]:
    """Dims of a head that cannot turn."""
    try:
        many = dims.size(head)
        some = many if rule.dims is None else dims.size(rule.dims)
    except FormulaError:
        return
    if rule.dims is None and many % 2:
        message = f"rotary positions turn pairs, and a head of {many} has no last pair"
        yield Problem("W0402", message, path, "make `head` even")
    elif some % 2 or some > many:
        message = f"rotary positions turn pairs of a head of {many}, not {some} of its dims"
        yield Problem("W0402", message, (*path, "dims"), f"an even number up to {many}")
    elif rule.scaling is not None and rule.scaling.kind == "ntk" and some < 4:
        message = "ntk leaves the first pair as it is, and there is no other"
        yield Problem("W0402", message, (*path, "scaling"), "turn 4 dims or more")


def turned(s: Scope, x: Val, rule: RotaryPositions, seq: str, head: str, path: Path, name: str, past: str = "") -> Val:
    """x with rotary positions along `seq`; past: the dim of rows before the first.

    What a scaling says of scores is in the queries where the rule says which dims turn, else in `score_factor`."""
    many = s.low.number(head)
    with s.low.reading((*path, "dims"), "W0201"):
        some = many if rule.dims is None else s.low.dims.size(rule.dims)
    style, fraction = "interleaved" if rule.interleaved else "half", s.ir.sympy.Rational(some, many)
    with s.low.reading((*path, "scaling", "original"), "W0201"):
        changed: dict[str, Any] = _scaled(s, rule, some) if rule.scaling else {"theta": s.ir.exact(rule.base)}
    with s.at(*path):
        given = [at] if (at := _places(s, seq, past)) is not None else []
        x = s.g.one(s.ir.Rotary(seq, head, style=style, fraction=fraction, **changed), x, *given, names=[name])
        factor = _on_scores(s, rule)
        if rule.dims is None or factor == 1 or not name.startswith("query"):
            return x
        formula = f"where(i_{head} < {some}, {factor}*x, x)"
        return s.map(name, formula, x=x, to=" ".join(x.dims), dtype=s.compute)


def _places(s: Scope, seq: str, past: str) -> Val | None:
    """The positions of rows along `seq`: of a stream's tokens, or of its first ones; None: they are coordinates."""
    if past:
        return s.map("place", s.ir.parse(f"i_{seq} + n_{past}"), to=seq, dtype="i64")
    stream = next((name for name, x in s.low.model.sequences.items() if x.length == seq), "")
    at = s.place(stream)
    if at is None or stream:
        return at
    first = s.map("index", s.ir.symbol(f"i_{seq}"), to=seq, dtype="i64")
    return s.g.expand(s.gather("place", at, first, at=s.length), to=f"batch {seq}")


def score_factor(s: Scope, rule: RotaryPositions) -> Any:
    """What a rotary scaling multiplies scores by, where a rule leaves all dims of a head to turn."""
    return s.ir.sympy.S.One if rule.dims is not None else _on_scores(s, rule)


def _on_scores(s: Scope, rule: RotaryPositions) -> Any:
    """The factor on q·k of the dims that turn: that of a scaling on queries, times that on keys."""
    scaling, sympy = rule.scaling, s.ir.sympy
    if scaling is None or scaling.kind != "yarn":
        return sympy.S.One
    given = scaling.attention_factor
    own = s.ir.exact(given) if given is not None else sympy.log(s.ir.exact(scaling.factor)) / 10 + 1
    return _number(s, own**2)


def _scaled(s: Scope, rule: RotaryPositions, dims: int) -> dict[str, Any]:
    """What a scaling makes of a rotation of `dims` coordinates: fields of the op, numbers exact to 30 digits."""
    scaling, sympy = rule.scaling, s.ir.sympy
    assert scaling is not None
    base, factor = s.ir.exact(rule.base), s.ir.exact(scaling.factor)
    if scaling.kind == "ntk":
        more = sympy.Rational(dims, max(dims - 2, 1))  # fewer are told as a problem
        return {"theta": _number(s, base * factor**more)}
    changed: dict[str, Any] = {"theta": base, "factor": factor}
    if scaling.kind == "linear":
        return changed
    turn = 2 * sympy.pi / s.low.dims.size(scaling.original or 1)
    if scaling.kind == "llama3":
        return changed | {"ramp": "frequency", "bounds": tuple(_number(s, s.ir.exact(t) * turn) for t in scaling.turns)}
    ends = [_number(s, -dims * sympy.log(s.ir.exact(b) * turn) / (2 * sympy.log(base))) for b in scaling.betas]
    if scaling.truncate is not False:
        ends = [sympy.floor(ends[0]), sympy.ceiling(ends[1])]
    kept, stretched = sympy.Max(ends[0], 0), sympy.Min(ends[1], dims - 1)
    stretched = stretched + sympy.Rational(1, 1000) if stretched == kept else stretched
    return changed | {"ramp": "pair", "bounds": (stretched, kept)}


def _number(s: Scope, value: Any) -> Any:
    """A real number to 30 digits."""
    return s.ir.sympy.Rational(str(value.evalf(30)))
