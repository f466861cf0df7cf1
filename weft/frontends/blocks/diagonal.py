"""Diagonal state spaces: complex numbers that turn and decay, in real arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from math import log
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from weft.errors import Path, Problem, SpecError
from weft.frontends.blocks.chunking import chunk_dims
from weft.frontends.blocks.recurrence import starts_anew
from weft.frontends.memories import stream_of
from weft.frontends.schema_values import Init, InitRule, Rates, Size, SpecPart, one_of

if TYPE_CHECKING:
    from weft.frontends.lower.scope import Scope
    from weft.ir.types import Val

Poles = Literal["lin", "inv", "legs", "real", "random"]
Skip = Annotated[
    Annotated[Literal["zeros", "ones", "none"], Tag("text")] | Annotated[InitRule, Tag("map")],
    one_of("`zeros`, `ones`, `none`, or a map such as `{normal: 1.0}`"),
]
Drive = Annotated[
    Annotated[Literal["zeros", "ones", "none"], Tag("text")] | Annotated[InitRule, Tag("map")],
    one_of("`ones`, `none`, or a map such as `{normal: 1.0}`"),
]


class StepSizes(SpecPart):
    """The time that a step takes, a number a channel, whose logarithm is a parameter `log_dt`, uniform at first."""

    min: float = Field(default=0.001, gt=0, description="the least at first")
    max: float = Field(default=0.1, gt=0, description="the largest at first")
    parts: Literal[1, 2] = Field(
        default=1,
        description="2: one for real and one for imaginary parts of poles (DSS), parameters `log_dt_real` too",
    )

    @model_validator(mode="after")
    def _in_order(self) -> StepSizes:
        if self.min > self.max:
            raise ValueError("`min` is over `max`")
        return self


CALLED = {
    "lr": "pole_real", "li": "pole_imag", "x": "damping", "y": "angle", "t": "half", "hh": "length", "ll": "length",
    "ar": "factor_real", "ai": "factor_imag", "nr": "change_real", "ni": "change_imag", "er": "end_real",
    "ei": "end_imag", "zr": "total_real", "zi": "total_imag", "zz": "length", "br": "entry_real", "bi": "entry_imag",
    "ur": "driven_real", "ui": "driven_imag", "cr": "weight_real", "ci": "weight_imag",
}  # fmt: skip
"""What the numbers of a state space are called in a graph, by their names in formulas."""


class Diagonal(SpecPart):
    """A diagonal state space: x' = poles x + u, y = Re(weights x) + skip u, for each channel by itself, at steps `dt`.

    Its numbers are complex, its arithmetic real. Its parameters are kept in the accumulate dtype."""

    states: Size = Field(default=64, description="complex numbers that a channel keeps, each with a pole")
    discretisation: Literal["zoh", "bilinear", "none"] = Field(
        default="zoh",
        description="how a step of time acts: `zoh`: a = exp(dt*pole), and u comes in times (a - 1)/pole; `bilinear`: "
        "a = (1 + dt*pole/2)/(1 - dt*pole/2), and dt/(1 - dt*pole/2); `none`: a as of `zoh`, and u as it is",
    )
    kernel: Literal["exp", "softmax"] = Field(
        default="exp",
        description="`softmax`: the powers of each pole, over as many positions as the largest `seq`, sum to 1 before "
        "the weights (DSS); another largest `seq` is another function",
    )
    poles: Poles = Field(
        default="lin",
        description="where poles start, n from 0 up to N: `lin`: -1/2 + pi*n*i; `inv`: -1/2 + N/pi*(N/(2*n + 1) - 1)*i "
        "(both S4D); `legs`: the HiPPO matrix's, upper half; `real`: -(n + 1); `random`: -exp(N(0, 1)) + N(0, 1)*i",
    )
    imaginary: Literal["free", "exp", "none"] = Field(
        default="free",
        description="the imaginary part of a pole: a parameter, its exponential (GSS), or none, a real state space; "
        "the real part is minus an exponential",
    )
    shared: bool = Field(default=False, description="all channels have the same poles (DSS)")
    pairs: bool = Field(default=True, description="poles stand for their conjugates too, so that y is 2 Re(..)")
    dt: Annotated[
        Annotated[Literal["none"], Tag("text")] | Annotated[StepSizes, Tag("map")],
        one_of("`none`, or a map with `min` and `max`"),
    ] = Field(default=StepSizes(), description="step sizes; `none`: 1, no parameter")
    weights: Init = Field(
        default=InitRule(normal="sqrt(1/2)"), description="real and imaginary parts of what a channel's numbers weigh"
    )
    drive: Drive = Field(
        default="none",
        description="a complex factor on u for each of a channel's numbers, whose real part starts by this rule and "
        "the other at 0; `none`: 1, no parameter",
    )
    skip: Skip = Field(
        default=InitRule(normal=1.0), description="the parameter `skip`, a number a channel; `none`: none"
    )
    rates: Rates = Field(
        default=Rates(lr=0.001, weight_decay=0.0),
        description="what an optimizer takes for poles, `dt` and `drive`; default: `{lr: 0.001, weight_decay: 0.0}`",
    )
    chunk: Size = Field(default=64, description="positions in a chunk, where chunks are computed as products")

    def problems(self, path: Path) -> Iterator[Problem]:
        """Options that do not go together."""
        if self.imaginary == "exp" and self.poles != "random":
            message = f"poles that start as `{self.poles}` have imaginary parts that are no exponentials"
            yield Problem("W0403", message, (*path, "poles"), "use `poles: random`, or `imaginary: free`")
        if self.kernel == "softmax" and self.discretisation != "zoh":
            message = f"the softmax is of powers of exp(dt*pole), not `{self.discretisation}`"
            yield Problem("W0403", message, (*path, "discretisation"), "use `zoh`, or `kernel: exp`")
        two = isinstance(self.dt, StepSizes) and self.dt.parts == 2
        if two and (self.discretisation == "bilinear" or self.imaginary == "none"):
            message = "two step sizes are for the two parts of exp(dt*pole)"
            yield Problem("W0403", message, (*path, "dt", "parts"), "use one")

    def lower(self, s: Scope, u: Val, channels: str, stem: str, path: Path) -> Val:
        """y of u [batch seq ..], both in the accumulate dtype; `channels` is the dim of u that has numbers of its own.
        Raises SpecError."""
        if stream_of(s.low.model) == s.stream:
            message = "states start anew in each segment, and the memory keeps rows for attention alone"
            raise SpecError.at(path, "W0403", message, "leave out `memory`, or make it an attention")
        return _System(self, s, channels, u, stem, path).run()


class _System:
    """A state space at work: its numbers [channels states], its loop over positions."""

    def __init__(self, block: Diagonal, s: Scope, channels: str, u: Val, stem: str, path: Path) -> None:
        self.block, self.s, self.channels, self.u, self.stem, self.path = block, s, channels, u, stem, path
        self.dtype = s.accumulate
        self.states = s.low.axis(block.states, "states", (*path, "states"), (*u.dims, *s.space))
        self.real = block.imaginary == "none"
        self.acts = "zoh" if block.kernel == "softmax" else block.discretisation

    def run(self) -> Val:
        s, u = self.s, self.u
        with s.at(*self.path):
            numbers = self.numbers()
            y = self.loop(numbers)
            if self.block.skip == "none":
                return y
            rule = (self.block.skip, (*self.path, "skip"))
            d = s.param(f"{self.stem}.skip", self.channels, rule=rule, dtype=self.dtype, wide=True)
            return s.map("skipped", "y + d*u", y=y, d=d, u=u, to=" ".join(u.dims), dtype=self.dtype)

    def param(self, name: str, dims: str, init: Any) -> Val:
        rule, rates = (init, (*self.path, "weights")), None if name.startswith("weights") else self.block.rates
        return self.s.param(f"{self.stem}.{name}", dims, rule=rule, dtype=self.dtype, wide=True, rates=rates)

    def numbers(self) -> dict[str, Val]:
        """a and c, by parts: what a state is multiplied by at each step, and what y has of it."""
        block, own, each = self.block, f"{self.channels} {self.states}", self.states
        poles = each if block.shared else own
        given = {"real": self.param("poles_real", poles, self.first(True))}
        if not self.real:
            given["imag"] = self.param("poles_imag", poles, self.first(False))
        if isinstance(dt := block.dt, StepSizes):
            between = self.s.ir.Init("between", log(dt.min), high=log(dt.max))
            names = ("log_dt", "log_dt_real")[: dt.parts]
            given |= {name: self.param(name, self.channels, between) for name in names}
        given |= {f"w{p}": self.param(f"weights_{n}", own, block.weights) for p, n in self.parts}
        if block.drive != "none":
            rules = block.drive, InitRule(constant=0.0)
            given |= {f"d{p}": self.param(f"drive_{n}", own, rule) for (p, n), rule in zip(self.parts, rules)}
        formulas = self.lets("log_dt_real" in given)
        plain = {name: formulas.pop(name) for name in list(formulas) if formulas[name].isdigit()}
        for name, formula in formulas.items():
            dims, names = own if name[0] in "ac" else None, [CALLED.get(name, name)]
            (given[name],) = self.s.g.maps([formula], given, let=plain, to=dims, dtype=self.dtype, names=names)
        return {n: given[n] for n in ("ar", "ai", "cr", "ci") if n in given}

    @property
    def parts(self) -> list[tuple[str, str]]:
        """Of a number, as formulas and as parameters call them."""
        return [("r", "real")] if self.real else [("r", "real"), ("i", "imag")]

    def first(self, real: bool) -> Any:
        """How a part of the poles starts: the logarithm of minus the real part, or the imaginary one."""
        init, poles = self.s.ir.Init, self.block.poles
        if poles == "random":
            return init("normal", 1.0)
        if real:
            return init("poles_real") if poles == "real" else init("constant", log(0.5))
        turns = {"lin": init("poles_lin"), "inv": init("poles_inv"), "legs": init("poles_legs")}
        return turns.get(poles, init("zeros"))

    def lets(self, two: bool) -> dict[str, str]:
        """Formulas of a and c. x + y*i: a pole times dt. n: a - 1, without a difference of near numbers; b: what u is
        multiplied by as it comes in."""
        block = self.block
        dt = {"none": "1"}.get(str(block.dt), "exp(log_dt)")
        found = {"lr": "-exp(real)", "dt": dt, "x": f"lr*{'exp(log_dt_real)' if two else 'dt'}", "t": "tanh(x/2)"}
        if self.real:
            found |= _real(self.acts)
        else:
            found |= {"li": "exp(imag)" if block.imaginary == "exp" else "imag", "y": "li*dt"}
            found |= _complex(self.acts)
        if block.kernel == "softmax":
            found = {n: f for n, f in found.items() if n not in ("br", "bi")} | self.normalised()
        twice = "2*" if block.pairs and not self.real else ""
        if block.drive != "none":
            found |= {"ur": "br*dr"} if self.real else {"ur": "br*dr - bi*di", "ui": "br*di + bi*dr"}
        u = "u" if block.drive != "none" else "b"
        if self.real:
            return found | {"cr": f"wr*{u}r"}
        return found | {"cr": f"{twice}(wr*{u}r - wi*{u}i)", "ci": f"{twice}(wr*{u}i + wi*{u}r)"}

    def normalised(self) -> dict[str, str]:
        """b divided by 1 - a^L: with the sum of all L powers, as DSS takes a reciprocal: conj(z)/(z conj(z) + 1e-7)."""
        longest = self.s.low.dims.most[self.s.length]
        if self.real:
            return {"zr": f"lr*(exp({longest}*x) - 1)", "br": "nr*zr/(zr*zr + 1e-7)"}
        found = {"er": f"exp({longest}*x)*cos({longest}*y) - 1", "ei": f"exp({longest}*x)*sin({longest}*y)"}
        found |= {"zr": "er*lr - ei*li", "zi": "er*li + ei*lr", "zz": "zr*zr + zi*zi + 1e-7"}
        return found | {"br": "(nr*zr + ni*zi)/zz", "bi": "(ni*zr - nr*zi)/zz"}

    def loop(self, numbers: dict[str, Val]) -> Val:
        """y, without the skip: the states along positions."""
        s, u = self.s, self.u
        parts = ("re",) if self.real else ("re", "im")
        dims = (*(d for d in u.dims if d != s.length), self.states)
        b = s.ir.Builder(s.g.src)
        starts = [s.map(f"{p}_first", 0, to=" ".join(dims), dtype=self.dtype) for p in parts]
        given = {p: b.input(p, v.type) for p, v in zip(parts, starts)}
        outer = {"u": u, **numbers} | ({} if (anew := starts_anew(s)) is None else {"anew": anew})
        given |= {n: b.input(n, v.type.but(d for d in v.dims if d != s.length)) for n, v in outer.items()}
        lets = {f"{p}_was": f"where(anew > 0, 0, {p})" if anew is not None else p for p in parts}
        turned = ["ar*re_was + u"] if self.real else ["ar*re_was - ai*im_was + u", "ar*im_was + ai*re_was"]
        if anew is not None:
            turned = [f"where(anew < 0, {p}, {f})" for p, f in zip(parts, turned)]
        known = {n: v for n, v in given.items() if n[0] != "c"}
        after = b.maps(turned, known, let=lets, to=dims, dtype=self.dtype, names=[f"{p}_after" for p in parts])
        own = [d for d in dims if d != self.states]
        reads = [b.einsum(given[f"c{p[0]}"], v, to=own) for p, v in zip(("r", "i"), after)]
        y = reads[0] if self.real else b.map("a - b", a=reads[0], b=reads[1], to=own, dtype=self.dtype)
        chunks = chunk_dims(s, self.block.chunk, dims, self.path)
        before = s.low.mint(f"{s.length}_before", s.ir.symbol(f"n_{s.length}"), (*dims, s.length))
        loop = s.ir.Loop(s.length, b.graph(*after, y), len(parts), chunks=(*chunks, before))
        names = [*parts, "y", *(f"{p}_before" for p in parts)]
        found = s.g.many(loop, *starts, *outer.values(), names=names)[len(parts)]
        return s.g.expand(found, to=u.dims)


def _real(acts: str) -> dict[str, str]:
    if acts == "bilinear":
        return {"ar": "(1 + x/2)/(1 - x/2)", "br": "dt/(1 - x/2)"}
    found = {"ar": "exp(x)", "nr": "2*t/(1 - t)"}
    return found | {"br": "1" if acts == "none" else "nr/lr"}


def _complex(acts: str) -> dict[str, str]:
    if acts == "bilinear":
        found = {"hh": "(1 - x/2)**2 + (y/2)**2", "ar": "(1 - (x*x + y*y)/4)/hh", "ai": "y/hh"}
        return found | {"br": "dt*(1 - x/2)/hh", "bi": "dt*y/(2*hh)"}
    found = {"ar": "exp(x)*cos(y)", "ai": "exp(x)*sin(y)"}
    if acts == "none":
        return found | {"br": "1", "bi": "0"}
    found |= {"nr": "2*t/(1 - t)*cos(y) - 2*sin(y/2)**2", "ni": "ai", "ll": "lr*lr + li*li"}
    return found | {"br": "(nr*lr + ni*li)/ll", "bi": "(ni*lr - nr*li)/ll"}
