"""What lowering keeps for the whole model: sizes, parameters, inputs, places; and the body of one block being built."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from math import prod
from typing import TYPE_CHECKING, Any

import sympy as sp
from sympy.logic.boolalg import Boolean

from weft.errors import FormulaError, Path, Problem, SpecError
from weft.frontends import vocabulary
from weft.frontends.lower import gating, weight_norm
from weft.frontends.lower.norms import normalised
from weft.frontends.lower.operands import OF_HEADS, OF_STREAM, Names, Operand, finite, numbered
from weft.frontends.resolve import Dims
from weft.frontends.schema_values import Init, InitRule, Norm, NormRule, Rates
from weft.frontends.streams import of_heads
from weft.ir import program as ir
from weft.ir.builder import Builder, Formula
from weft.ir.composite import Call
from weft.ir.formula import parse, symbol
from weft.ir.formula.evaluate import scalar
from weft.ir.library import Dropout
from weft.ir.ops.primitives import Einsum, Gather, Part, Rename
from weft.ir.types import Type, Val

if TYPE_CHECKING:
    from weft.frontends.blocks.memory.among import TokenRows
    from weft.frontends.blocks.projected import QkNorm
    from weft.frontends.schema import Model, RowContent


@dataclass
class Lowering:
    """A model on its way to a graph: what does not belong to one block."""

    model: Model
    dims: Dims
    train: bool
    places: Callable[[Path], str]
    top: Builder = field(default_factory=Builder)
    sizes: dict[str, ir.Size] = field(default_factory=dict)
    params: list[ir.Param] = field(default_factory=list)
    values: dict[str, Val] = field(default_factory=dict)
    """Graph inputs by logical name of the parameter or name of the public input."""
    problems: list[Problem] = field(default_factory=list)
    dropouts: Iterator[int] = field(default_factory=count)
    roles: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What part of the language each dim is the size of: heads, inner, vocab; see `Program`."""
    stages: set[str] = field(default_factory=set)
    streams: dict[str, Val] = field(default_factory=dict)
    """What each stream has come to."""
    counted: dict[str, Val] = field(default_factory=dict[str, Val])
    """Of each stream whose rows hold documents or padding, by name: where its tokens stand, and in which document."""
    stage: int = 0
    """The place in the stack of the stage at hand."""
    contexts: set[str] = field(default_factory=set[str])
    """The streams that blocks of another one read."""
    memory: dict[str, tuple[str, int]] = field(default_factory=dict[str, tuple[str, int]])
    """The dims of rows of earlier segments, once a block has them, and the most there are."""
    remembers: set[str] = field(default_factory=set[str])
    """The streams whose memory a block has."""
    among: dict[str, TokenRows] = field(default_factory=dict[str, "TokenRows"])
    """The rows of a stream with memory tokens."""
    states: dict[str, tuple[ir.ProgramState, Val]] = field(default_factory=dict[str, tuple[ir.ProgramState, Val]])
    """What calls leave to later ones, and the value that does."""

    @property
    def several(self) -> bool:
        """Are there several streams, so that names tell which?"""
        return len(self.model.sequences) > 1

    def length(self, stream: str) -> str:
        """The length dim of a stream."""
        return self.model.sequences[stream].length

    def rows(self, stream: str) -> str:
        """The dim of a stream's rows between its embedding and its heads, memory tokens among them."""
        return self.among[stream].rows if stream in self.among else self.length(stream)

    def called(self, stream: str, name: str, between: str = "_") -> str:
        """What something of a stream is called in the model: source_tokens, source.embed."""
        return f"{stream}{between}{name}" if self.several else name

    @property
    def inputs(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Every public input that the model can have, with dtype and dims, in the order of `forward`."""
        of_streams = {
            self.called(stream, name): (dtype, ("batch", self.length(stream)))
            for stream in self.model.sequences
            for name, dtype in OF_STREAM.items()
        }
        dims = {"targets": ("batch", self.length(of_heads(self.model))), "labels": ("batch",), "seed": ()}
        return of_streams | {name: (dtype, dims[name]) for name, dtype in OF_HEADS.items()}

    @contextmanager
    def reading(self, path: Path, code: str = "W0301") -> Generator[None]:
        """A formula that is refused inside becomes a problem of the value at `path`."""
        try:
            yield
        except FormulaError as error:
            column = max(0, error.column - 1)
            raise SpecError([Problem(code, error.message, path, error.hint, column)]) from None

    @contextmanager
    def collecting(self) -> Generator[None]:
        """Problems found inside are kept for the end, so that all are told at once."""
        try:
            yield
        except SpecError as error:
            self.problems += [p for p in error.problems if p not in self.problems]

    def axis(self, size: int | str, name: str, path: Path, avoid: Iterable[str] = (), frozen: bool = True) -> str:
        """The dim that `size` stands for: the dim it names, else one called `name`. `avoid`: dims it must not share a
        tensor with. `frozen`: it may not depend on a run-time size."""
        if isinstance(size, str) and size in self.dims.values and size not in avoid:
            value = self.dims.sizes[size]
            if isinstance(value, int) or not frozen:
                self.sizes[size] = value
                return self.plays(size, name)
        with self.reading(path, "W0201"):
            return self.mint(name, self.dims.size(size) if frozen else self.dims.symbolic(size), avoid)

    def mint(self, name: str, size: ir.Size, avoid: Iterable[str] = ()) -> str:
        """A dim of this size, called `name` if that is free."""
        taken = {**self.dims.sizes, **self.sizes}
        found = next(n for n in numbered(name) if n not in avoid and taken.get(n, size) == size)
        self.sizes[found] = size
        return self.plays(found, name)

    def plays(self, dim: str, role: str) -> str:
        """The dim, which from now on is known to be the size of that part of the language."""
        self.roles[dim] = tuple(dict.fromkeys((*self.roles.get(dim, ()), role)))
        return dim

    def number(self, dim: str) -> int:
        """The size of a frozen dim."""
        return int(self.sizes[dim])

    def remembering(self, name: str = "memory", keep: int = 0) -> tuple[str, int]:
        """The dim of rows of earlier segments, chosen at run time, and the most there are; default: the memory's."""
        if name not in self.memory:
            with self.reading(("memory", "keep"), "W0201"):
                keep = keep or self.dims.size(getattr(self.model.memory, "keep", 0))
            names = numbered(name if name == "memory" else f"past_{name}")
            dim = next(n for n in names if n not in {*self.dims.sizes, *self.sizes})
            self.sizes[dim] = symbol(f"n_{dim}")
            self.memory[name] = dim, keep
        return self.memory[name]

    def formula(self, text: float | str, path: Path, names: dict[str, Any] | None = None) -> sp.Expr:
        """A formula of the spec. Dims are numbers in it, `batch` and `seq` the largest: a prefix then computes what it
        does in the whole, and a step what the forward does."""
        if not isinstance(text, str):
            return vocabulary.exact(text)
        known = {d: sp.Integer(n) for d, n in self.dims.most.items()} | (names or {})
        return self.read(text, path, known, names or {})

    def read(self, text: str, path: Path, known: Names, used: Names, parse: Callable[..., Any] = parse) -> Any:
        """A formula in the names `known` that gives a number, as `parse` reads it. A refused one is kept as a problem,
        and the sum of `used` stands for it, so that whatever else is wrong is found as well."""
        try:
            found = parse(text, known)
            if found.is_Symbol or not isinstance(found, Boolean):
                return found
            error = FormulaError("expected a number, found a condition", text, 1, "write where(condition, 1, 0)")
        except FormulaError as refused:
            error = refused
        self.tell(Problem("W0301", error.message, path, error.hint, max(0, error.column - 1)))
        return sum(used.values(), sp.Integer(0))

    def constant(self, text: float | str, path: Path, names: dict[str, Any] | None = None) -> sp.Expr:
        """A formula of the spec that comes to a finite number when compiling; 1 stands for one that does not."""
        found: Any = self.formula(text, path, names)
        if not found.free_symbols and finite(found):
            return found
        self.tell(Problem("W0301", f"'{text}' is not a finite number", path, "a number, or a formula over dims"))
        return sp.S.One

    def tell(self, problem: Problem) -> None:
        """Keep a problem for the end, once."""
        self.problems += [problem] if problem not in self.problems else []

    def init(self, rule: Init | ir.Init, path: Path, dims: Sequence[str], fan_in: Sequence[str]) -> ir.Init:
        """A rule of the spec for a parameter of these dims; its formulas are worked out to numbers."""
        if not isinstance(rule, InitRule):
            return rule if isinstance(rule, ir.Init) else ir.Init(rule)
        sizes = {d: self.number(d) for d in dims}
        into = prod(sizes[d] for d in fan_in)
        fan = {"fan_in": sp.Integer(into), "fan_out": sp.Integer(prod(sizes.values()) // into)}
        kind, value = next(iter(rule.model_dump(exclude_none=True).items()))
        return ir.Init(kind, float(scalar(self.constant(value, (*path, kind), fan))), tuple(fan_in))  # type: ignore[arg-type]  # the keys of InitRule

    def role(self, role: str) -> tuple[Init, Path]:
        """The rule for a role, or the one it falls back to, and where that stands."""
        inits = self.model.init
        falls_back = {"position": "embedding", "embedding": "weight", "output": "weight", "expert_output": "experts"}
        if role == "expert_output" and inits.experts is None:
            role = "output"
        rule = getattr(inits, role, None)
        return (rule, ("init", role)) if rule is not None else self.role(falls_back.get(role, "weight"))

    def public(self, name: str) -> Val:
        """A public input of the model."""
        if name not in self.values:
            dtype, dims = self.inputs[name]
            self.values[name] = self.top.input(name, Type(dtype, dims))
        return self.values[name]

    def own(self, param: ir.Param) -> Val:
        """The graph input of a parameter, made at its first use; a second use of the name is the same parameter."""
        if param.name not in self.values:
            dims = (param.stack, *param.dims) if param.stack else param.dims
            self.values[param.name] = self.top.input(param.value, Type(param.dtype, dims))
            self.params.append(replace(param, value=self.values[param.name].name))
        return self.values[param.name]


class Scope:
    """The body of one block: a builder, and what each of its inputs is. `ir`: the words that graphs are written with.

    left: what it leaves to the next call, by part; handed: of those that start as a parameter, their rows. `prefix`
    starts the logical names of its parameters ("layers.{}."). `stream` is the one that it is on, `length` the dim of
    its rows and `space` the dims of its running value: [batch length width]. ends: no memory tokens stand among them.
    """

    ir = vocabulary

    def __init__(self, low: Lowering, prefix: str, stream: str, ends: bool = False):
        self.low, self.prefix, self.stream = low, prefix, stream
        self.length = low.length(stream) if ends else low.rows(stream)
        self.space = ("batch", self.length, "width")
        self.rows = f"batch {self.length}"
        self.g = Builder()
        self.operands: list[Operand] = []
        self.found: dict[str, Val] = {}
        self.left: dict[str, Val] = {}
        self.handed: dict[str, str] = {}
        self.compute, self.accumulate = low.model.dtype.compute, low.model.dtype.accumulate

    def _input(self, operand: Operand, name: str, type_: Type) -> Val:
        if operand.key not in self.found:
            self.operands.append(operand)
            self.found[operand.key] = self.g.input(name, type_)
        return self.found[operand.key]

    def carry(self, name: str, dims: Sequence[str], dtype: str = "") -> Val:
        """The value that comes from the block before."""
        return self._input(Operand("carry", name), name, Type(dtype or self.compute, tuple(dims)))

    def running(self) -> Val:
        """The running value of its stream: [batch length width]."""
        return self.carry("x", self.space)

    def other(self, stream: str) -> Val:
        """What another stream has come to: [batch length width]."""
        self.low.contexts.add(stream)
        return self._input(Operand("stream", stream), stream, self.low.streams[stream].type)

    def state(self, part: str, dims: Sequence[str]) -> Val:
        """What earlier calls left to a part of this block."""
        return self._input(Operand("state", part), f"past_{part}", Type(self.compute, tuple(dims)))

    def rows_of(self, stream: str = "") -> RowContent:
        """What the rows of this stream hold, or of that one."""
        return self.low.model.sequences[stream or self.stream].rows

    def place(self, stream: str = "") -> Val | None:
        """The positions of a stream's tokens: i64[batch length]; None where they are their coordinates."""
        rule = self.rows_of(stream)
        if rule.positions == "given":
            return self.shared("positions", stream)
        return self.counted("place", stream) if rule.counts else None

    def counted(self, name: str, stream: str = "") -> Val:
        """Of a stream's tokens their `place` in their document, over what is no padding, or the number of that
        `document` in its row: i64[batch length]."""
        stream = stream or self.stream
        type_ = Type("i64", ("batch", self.low.length(stream)))
        return self._input(Operand("counted", f"{stream}.{name}"), self.low.called(stream, name), type_)

    def shared(self, name: str, stream: str = "") -> Val:
        """A public input, of this stream or that one, or `layer`: the number of this layer in its stage."""
        name = self.low.called(stream or self.stream, name) if name in OF_STREAM else name
        dtype, dims = self.low.inputs.get(name, ("i64", ()))
        return self._input(Operand("shared", name), name, Type(dtype, dims))

    def param(
        self,
        name: str,
        dims: str,
        role: str = "weight",
        fan_in: str = "",
        rule: tuple[Init | ir.Init, Path] | None = None,
        dtype: str = "",
        shared: bool = False,
        fixed: bool = False,
        wide: bool = False,
        rates: Rates | None = None,
    ) -> Val:
        """A parameter of this block, cast to the dtype it is used in. Initialised by `rule`, else by its role. shared:
        it is the same in every layer that has one of this name. fixed: no gradient moves it. wide: it is kept in the
        accumulate dtype where parameters are of 16 bits. rates: those of an optimizer."""
        axes = tuple(dims.split())
        init = self.low.init(*(rule or self.low.role(role)), axes, tuple(fan_in.split()))
        if self.prefix + name in self.found:
            path = rule[1] if rule else ()
            raise SpecError.at(path, "W0403", f"two parameters are called '{name}'", "rename a part of the block")
        of = self.low.model.dtype
        stored = of.accumulate if wide and of.params in ("f16", "bf16") else of.params
        local = name.replace(".", "_")
        local = f"{local}_table" if local in {*self.low.inputs, *self.low.streams} else local
        full = (self.prefix.removesuffix("layers.{}.") if shared else self.prefix) + name
        param = ir.Param(local, full, axes, init, stored, fixed=fixed, rates=rates.given if rates else ())
        operand = Operand("common" if shared else "param", full, param)
        return self.g.cast(self._input(operand, local, Type(stored, axes)), dtype or self.compute)

    def tied(self, logical: str) -> Val:
        """A parameter of another block, under its logical name."""
        value = self.low.values[logical]
        known = next(p for p in self.low.params if p.name == logical)
        return self.g.cast(self._input(Operand("param", logical, known), value.name, value.type), self.compute)

    @contextmanager
    def at(self, *path: str | int) -> Generator[None]:
        """Nodes made inside come from the spec line of `path`."""
        with self.g.at(self.low.places(path)):
            yield

    def einsum(self, name: str, *x: Val, to: str) -> Val:
        return self.g.one(Einsum(tuple(to.split())), *x, names=[name])

    def map(self, name: str, formula: Formula, to: str | None = None, **operands: Any) -> Val:
        return self.g.map(formula, to=to, names=[name], **operands)

    def linear(
        self,
        name: str,
        x: Val,
        dims: str,
        to: str,
        stem: str,
        bias: str | None = None,
        role: str = "weight",
        fan_in: str = "width",
        rule: tuple[Init, Path] | None = None,
    ) -> Val:
        """x times the matrix `stem`.weight [dims], plus `stem`.bias [bias] if it has one."""
        y = self.einsum(name, x, self.param(f"{stem}.weight", dims, role, fan_in, rule), to=to)
        if bias is None:
            return y
        return self.map(name, "y + b", y=y, b=self.param(f"{stem}.bias", bias, "bias"), to=to, dtype=self.compute)

    def dropout(self, x: Val, rate: float) -> Val:
        """x itself when the model is not for training or nothing is dropped."""
        if not self.low.train or rate == 0:
            return x
        op = Dropout(vocabulary.exact(rate), next(self.low.dropouts))
        return self.g.one(op, x, self.shared("seed"), self.shared("layer"), names=["dropped"])

    def norm(self, x: Val, rule: Norm, stem: str, path: Path, over: str = "width") -> Val:
        """x normalised over a dim, with the gain (and bias) `stem`.weight (`stem`.bias)."""
        rule = NormRule(kind=rule) if isinstance(rule, str) and rule != "none" else rule
        if isinstance(rule, str):
            return x
        with self.at(*path):
            return normalised(self, x, rule, stem, (over,))

    def normalised(
        self, x: Val, rule: NormRule | QkNorm, stem: str, over: tuple[str, ...], each: tuple[str, ...] = ()
    ) -> Val:
        """x normalised over dims, with weights [each over] called by `stem`."""
        return normalised(self, x, rule, stem, over, each)

    def activation(self, text: str, path: Path, gated: bool = False) -> sp.Expr:
        """See `gating`."""
        return gating.activation(self.low, text, path, gated)

    hidden = gating.hidden
    weights = weight_norm.weights

    def gather(self, name: str, table: Val, *index: Val, at: str) -> Val:
        return self.g.one(Gather(tuple(at.split())), table, *index, names=[name])

    def part(self, name: str, x: Val, old: str, new: str, start: Any) -> Val:
        """The rows along `old` from `start` on, along `new`."""
        return self.g.one(Part(old, new, sp.Integer(0) + start), x, names=[name])

    def rename(self, name: str, x: Val, old: str, new: str) -> Val:
        return self.g.one(Rename(old, new), x, names=[name])

    def call(self, name: str, *outputs: Val) -> Call:
        """The finished block."""
        return Call(name, self.g.graph(*outputs))
