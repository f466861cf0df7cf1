"""A program: one graph, the table of sizes beside it, and which of its inputs are parameters."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import sympy as sp

from weft.errors import SpecError, UsageError
from weft.ir.types import Graph, Val

Size = int | sp.Expr


@dataclass(frozen=True, slots=True)
class Init:
    """How a parameter starts.

    normal: N(0, value²); uniform: U(-value, value); xavier: U(-b, b), b = value · sqrt(6 / (fan_in + fan_out)) (Glorot
    and Bengio 2010); constant: value; between: U(value, high). poles_lin, poles_inv, poles_legs: imaginary parts of the
    poles of a state space along the last dim, of n from 0 up to N (Gu et al. 2022): pi n; N/pi (N/(2n + 1) - 1); those
    of the HiPPO matrix of size 2N without its part of rank one, ascending; poles_real: log(n + 1). first: 1, then 0,
    along the last dim. `fan_in` names the dims that an output sums over, the rest count as fan_out; empty means all but
    the last.
    """

    kind: Literal[
        "normal", "uniform", "xavier", "zeros", "ones", "constant", "between", "first",
        "poles_lin", "poles_inv", "poles_legs", "poles_real",
    ]  # fmt: skip
    value: float = 0.0
    fan_in: tuple[str, ...] = ()
    high: float = 0.0


@dataclass(frozen=True, slots=True)
class Param:
    """One graph input that is a parameter.

    `value` is the graph input's name, `name` the logical state_dict name, `dims` the logical dims. With `stack`, the
    graph input is `[stack *dims]` and row i of it is the parameter `name.format(start + step * i)`. fixed: no gradient
    moves it, and no optimizer should: it is a buffer of the module. rates: what an optimizer should take for it in
    place of its own `lr` or `weight_decay`, by name.
    """

    value: str
    name: str
    dims: tuple[str, ...]
    init: Init
    dtype: str = "f32"
    stack: str | None = None
    start: int = 0
    step: int = 1
    fixed: bool = False
    rates: tuple[tuple[str, float], ...] = ()

    def rows(self, sizes: Mapping[str, int]) -> int:
        """How many logical parameters it holds."""
        return sizes[self.stack] if self.stack else 1

    def logical(self, i: int = 0) -> str:
        """The state_dict name of row i."""
        return self.name.format(self.start + self.step * i) if self.stack else self.name


@dataclass(frozen=True, slots=True)
class Runtime:
    """A dim whose size is known only when the model runs: its largest size, what must divide it, the least."""

    max: int
    align: int = 1
    least: int = 1

    def near(self, n: int) -> int:
        """A legal size close to n: a multiple of `align`, not over `max`."""
        return max(self.align, min(n, self.max) // self.align * self.align)


@dataclass(frozen=True, slots=True)
class ProgramStream:
    """A sequence: `length` is the dim that it is as long as, which no other has. once: it is read whole before decoding
    starts, as an encoder's input is; any other grows with each step."""

    name: str
    length: str
    once: bool = False


@dataclass(frozen=True, slots=True)
class ProgramState:
    """What a call leaves for the next one: rows of earlier calls, of which the last `keep` stay.

    past: the graph input that has them, [batch rows ..], [stack batch rows ..] where layers are stacked; value: the
    output, by name, with those that later calls read. rows: the run-time dim of past rows, from 0 to `keep`. start:
    what stands for the rows that the first call lacks: none, or those of a parameter. through: how many borders between
    calls a gradient goes through before one stops it. life: a sequence's: an input and an output of `forward`."""

    name: str
    past: str
    value: str
    rows: str
    keep: int
    start: Literal["empty", "parameter"] = "empty"
    life: Literal["sequence"] = "sequence"
    through: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """Dtypes of parameters, of computation between operations, and of sums inside them."""

    params: str = "f32"
    compute: str = "f32"
    accumulate: str = "f32"


@dataclass(frozen=True)
class Program:
    """A model ready for the passes.

    `sizes` gives each dim an integer or an expression over other dims' sizes (`n_batch`, `n_seq`, ...); equalities such
    as key = seq stand there too. `runtime` holds the dims that stay open. `inputs` and `outputs` are the public ones,
    by name, in the order of `forward`: an input is a graph input, an output names the graph output at its place.
    `roles` says what part of the language a dim is the size of, whatever it is called: heads, inner, vocab, experts.
    A value belongs to the stream whose length it has. What `states` carry from call to call are inputs and outputs too,
    behind the others.
    """

    name: str
    graph: Graph
    sizes: Mapping[str, Size]
    runtime: Mapping[str, Runtime]
    params: tuple[Param, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    train: bool = True
    source: str = ""
    policy: Policy = field(default_factory=Policy)
    notes: tuple[str, ...] = ()
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    streams: tuple[ProgramStream, ...] = (ProgramStream("seq", "seq"),)
    states: tuple[ProgramState, ...] = ()

    @property
    def through(self) -> int:
        """How many borders between calls a gradient goes through; 0 without states."""
        return max((s.through for s in self.states), default=0)

    @property
    def growing(self) -> tuple[str, ...]:
        """The lengths that grow with each step of decoding."""
        return tuple(s.length for s in self.streams if not s.once)

    @property
    def carried(self) -> frozenset[str]:
        """The inputs and outputs that states carry, by name."""
        return frozenset(name for s in self.states for name in (s.past, s.value))

    def shown(self, names: Iterable[str]) -> list[str]:
        """Inputs or outputs as `forward` has them: what states carry is one of them, `memory`."""
        plain = [name for name in names if name not in self.carried]
        return [*plain, "memory"] if self.states else plain

    def part(self, name: str) -> str:
        """What an input is in the language, whatever its stream is called: tokens, types, segments, valid."""
        of = next((s.name for s in self.streams if s.length in self.input(name).dims), "")
        return name.removeprefix(f"{of}_") if len(self.streams) > 1 else name

    def resolve(self, **override: int) -> dict[str, int]:
        """Every dim's size as an integer. `override` replaces any dim's entry before the others are computed from it.

        A run-time dim that the call does not name gets a small legal size: about 2 for batch, 64 for any other.
        Raises UsageError for an unknown dim and SpecError for a size that its declaration forbids; both name the dim.
        """
        known = {*self.sizes, *self.runtime, *_dims(self.graph)}
        for dim in override:
            if dim not in known:
                raise UsageError(f"no dim is called {dim!r}; this model has {', '.join(sorted(known))}")
        table: dict[str, Size] = {d: r.near(2 if d == "batch" else 64) for d, r in self.runtime.items()}
        table |= dict(self.sizes) | override
        done: dict[str, int] = {}
        for dim in table:
            _size(dim, table, done, (), self.runtime)
        for dim, limit in self.runtime.items():
            _check(dim, done[dim], limit)
        return done

    def parameter_count(self, **override: int) -> int:
        """Number of parameters; a shared one counts once."""
        sizes = self.resolve(**override)
        return sum(p.rows(sizes) * math.prod(sizes[d] for d in p.dims) for p in self.params)

    def logical_names(self, **override: int) -> dict[str, tuple[Param, int]]:
        """state_dict name -> (its parameter, its row in the stack), in the order of `params`."""
        sizes = self.resolve(**override)
        return {p.logical(i): (p, i) for p in self.params for i in range(p.rows(sizes))}

    @property
    def buffers(self) -> frozenset[str]:
        """The state_dict names that no gradient moves."""
        return frozenset(name for name, (p, _) in self.logical_names().items() if p.fixed)

    def input(self, name: str) -> Val:
        """The graph input of that name."""
        found = next((v for v in self.graph.inputs if v.name == name), None)
        if found is None:
            raise UsageError(f"{self.name} has no input {name!r}")
        return found


def _dims(graph: Graph) -> set[str]:
    return {d for v in graph.inputs for d in v.dims}


def _size(
    dim: str, table: Mapping[str, Size], done: dict[str, int], path: tuple[str, ...], runtime: Mapping[str, Runtime]
) -> int:
    """table[dim] as an integer; sizes it is computed from come first."""
    if dim in done:
        return done[dim]
    if dim in path:
        raise SpecError.at(("sizes", dim), "size-cycle", f"the size of {dim} depends on itself: {' -> '.join(path)}")
    if dim not in table:
        raise SpecError.at(("sizes", dim), "size-missing", f"{path[-1]} is computed from {dim}, which has no size")
    size: Any = table[dim]
    if isinstance(size, sp.Expr):
        used = {s: _size(str(s)[2:], table, done, (*path, dim), runtime) for s in size.free_symbols}
        size = size.xreplace({s: sp.Integer(n) for s, n in used.items()})
        if not size.is_Integer:
            raise SpecError.at(("sizes", dim), "size-fraction", f"the size of {dim} comes out as {size}, no integer")
    least = runtime[dim].least if dim in runtime else 1
    if size < least:
        raise SpecError.at(("sizes", dim), "size-positive", f"the size of {dim} is {size}; it must be at least {least}")
    done[dim] = int(size)
    return done[dim]


def _check(dim: str, size: int, limit: Runtime) -> None:
    if size > limit.max:
        raise SpecError.at(("sizes", dim), "size-max", f"{dim} is {size}, over its declared maximum {limit.max}")
    if size % limit.align:
        raise SpecError.at(("sizes", dim), "size-align", f"{dim} is {size}, not a multiple of {limit.align}")
