"""Recurrences whose states are tensors of named dims: linear attention and its kin, from formulas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field, Tag, model_validator

from weft.errors import Path, Problem, SpecError
from weft.frontends.blocks.kind import Aux, BlockKind
from weft.frontends.memories import stream_of
from weft.frontends.schema_values import Formula, Init, Name, Norm, Rates, Size, SpecPart, one_of
from weft.frontends.suggest import did_you_mean

if TYPE_CHECKING:
    from weft.frontends.lower.scope import Scope
    from weft.frontends.resolve import Dims
    from weft.ir.types import Val

TAKEN = ("output", "norm", "sum", "softmax", "cumsum", "next", "i", "forwards", "backwards")
"""Names that stand for something else: parameters of the block, and what formulas call."""


class StateTensor(SpecPart):
    """A state of a tensor recurrence."""

    dims: list[Name] = Field(description="its dims")
    init: float = Field(default=0.0, description="every entry before the first position")


class CellParameter(SpecPart):
    """A parameter of a tensor recurrence."""

    dims: list[Name] = Field(description="its dims")
    init: Init = Field(default="zeros", description="its rule")
    rates: Rates | None = Field(default=None, description="what an optimizer takes for it")


class CellMatrix(SpecPart):
    """A matrix of a tensor recurrence."""

    over: list[Name] = Field(min_length=1, description="dims of what it multiplies, that are summed")
    to: list[Name] | None = Field(default=None, description="dims of the product in their place; default: as `over`")
    each: list[Name] = Field(
        default_factory=list, description="dims along which every place has a matrix of its own, such as `heads`"
    )
    init: Init | None = Field(default=None, description="its rule; default as `weight`")


class SummedDims(NamedTuple):
    """What a matrix of a cell sums, what it makes, and what has one each."""

    over: list[str]
    to: list[str]
    each: list[str]
    init: Init | None


class TensorRecurrence(BlockKind):
    """A recurrence along `seq` whose states are tensors, as formulas: linear attention, state spaces, delta rules, and
    cells with recurrent matrices such as an LSTM.

    Values meet by the names of their dims: `k*v` of `k: [heads, key]` and `v: [heads, value]` is an outer product
    [heads key value]. `sum(key, q*s)` sums along a dim, `softmax(key, q)` and `cumsum(key, q)` go along one too,
    `i(heads)` is the place along one, and dims are numbers. In a formula: the states (their value before this step),
    `inputs`, `parameters` and earlier lets; in `output` also `next(s)`, the value of the state `s` after this step;
    and the products `r(h)` of `matrices`. A matrix takes the output from its dims to `width`.

    Where each state's next value is linear in the states, and these are read by sums alone, chunks of positions are
    computed as products; `weft explain` says which, and why not.
    """

    kind: Literal["tensor_recurrence"] = "tensor_recurrence"
    inputs: dict[Name, list[Name]] = Field(
        description="projected inputs and their dims; each has a matrix from the layer's input"
    )
    state: dict[
        Name,
        Annotated[
            Annotated[list[Name], Tag("list")] | Annotated[StateTensor, Tag("map")],
            one_of("a list of dims, or a map with `dims`"),
        ],
    ] = Field(min_length=1, description="the states and their dims; they start at 0 where `init` says nothing else")
    parameters: dict[Name, CellParameter] = Field(default_factory=dict, description="parameters of their own")
    matrices: dict[
        Name,
        Annotated[
            Annotated[list[Name], Field(min_length=1), Tag("list")] | Annotated[CellMatrix, Tag("map")],
            one_of("a list of dims, or a map with `over`"),
        ],
    ] = Field(
        default_factory=dict,
        description="matrices that formulas call: `r(h)` is the product of r with h. Of a list of dims the last is "
        "summed and made, along the others every place has a matrix of its own",
    )
    let: dict[Name, Formula] = Field(default_factory=dict, description="named steps, in order")
    update: dict[Name, Formula] = Field(description="each state's next value")
    output: Formula = Field(description="what a position gives, such as `sum(key, q*next(s))`")
    norm: Norm = Field(
        default="none", description="normalisation of the output over its last dim, with one gain for all its rows"
    )
    gate: Formula | None = Field(
        default=None, description="factor on the output after `norm`, such as `silu(z)`: a formula without states"
    )
    direction: Literal["forward", "backward", "both"] = Field(
        default="forward",
        description="`backward`: from the last position to the first; `both`: a cell each way, with parameters of its "
        "own, `forwards` and `backwards`, whose outputs are added behind their matrices. No model with one that is "
        "not `forward` decodes step by step",
    )
    chunk: Size = Field(default=64, description="positions in a chunk, where chunks are computed as products")

    @model_validator(mode="after")
    def _complete(self) -> TensorRecurrence:
        if set(self.update) != set(self.state):
            raise ValueError("`update` must give the next value of each state, and of nothing else")
        names = [*TAKEN, *self.inputs, *self.state, *self.parameters, *self.matrices, *self.let]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)}: a name may stand for one thing only")
        return self

    @property
    def shapes(self) -> dict[str, tuple[Path, list[str]]]:
        """The dims of each state, input and parameter, and where they stand."""
        states = {n: ((n, "dims"), v.dims) if isinstance(v, StateTensor) else ((n,), v) for n, v in self.state.items()}
        found: dict[str, tuple[Path, list[str]]] = {n: (("state", *at), dims) for n, (at, dims) in states.items()}
        found |= {n: (("inputs", n), dims) for n, dims in self.inputs.items()}
        return found | {n: (("parameters", n, "dims"), p.dims) for n, p in self.parameters.items()}

    @property
    def multiplied(self) -> dict[str, SummedDims]:
        """The dims of each matrix."""
        return {
            name: SummedDims(m[-1:], m[-1:], m[:-1], None)
            if isinstance(m, list)
            else SummedDims(m.over, m.over if m.to is None else m.to, m.each, m.init)
            for name, m in self.matrices.items()
        }

    @property
    def starts(self) -> dict[str, float]:
        """What each state is before the first position."""
        return {name: state.init if isinstance(state, StateTensor) else 0.0 for name, state in self.state.items()}

    def lower(self, s: Scope, x: Val, stem: str, path: Path) -> tuple[Val, Aux]:
        """A loop over positions whose body is one step, its states in the accumulate dtype."""
        if stream_of(s.low.model) == s.stream:
            message = "the states of a cell start anew in each segment, and the memory keeps rows for attention alone"
            raise SpecError.at(path, "W0403", message, "leave out `memory`, or make it an attention")
        with s.at(*path):
            axes = self.axes(s, path)
            if self.direction != "both":
                return self.read(s, x, stem, path, axes, self.direction == "backward"), []
            ways = [self.read(s, x, f"{stem}.{way}s", path, axes, way == "backward") for way in ("forward", "backward")]
            return s.map(stem.rsplit(".", 1)[-1], "a + b", a=ways[0], b=ways[1], dtype=s.compute), []

    def read(self, s: Scope, x: Val, stem: str, path: Path, axes: dict[str, str], backward: bool) -> Val:
        """What the cell gives, [batch seq width], one way along `seq`."""
        from weft.frontends.blocks.tensor_formulas import Cell  # SymPy, which the language alone does without

        cell = Cell(s, self, path, stem, axes, x, backward)
        with s.at(*path, "update"):
            out = cell.run()
        to = s.rows.split()
        own = [d for d in out.dims if d not in to]
        out = s.map("read", "o", to=" ".join(out.dims), o=out, dtype=s.compute)
        if self.norm != "none":
            if not own:
                message = "the output has no dim to normalise over"
                raise SpecError.at((*path, "norm"), "W0403", message, "leave it out, or give the output a dim")
            out = s.norm(out, self.norm, f"{stem}.norm", (*path, "norm"), own[-1])
        if self.gate is not None:
            with s.at(*path, "gate"):
                out = cell.gated(out)
            own = [d for d in out.dims if d not in to]
        name, matrix = stem.rsplit(".", 1)[-1], " ".join([*own, "width"])
        return s.linear(name, out, matrix, " ".join(s.space), f"{stem}.output", None, "output", " ".join(own))

    def axes(self, s: Scope, path: Path) -> dict[str, str]:
        """The dim of the graph for each dim that the block names."""
        found: dict[str, str] = {}
        problems: list[Problem] = []
        dims = s.low.dims
        for at, names in self.named():
            for i, name in enumerate(names):
                where = (*path, *at, i)
                if name not in dims.values:
                    problems.append(
                        Problem("W0202", f"no dim is called '{name}'", where, did_you_mean(name, dims.values))
                    )
                elif name in s.space or not isinstance(dims.sizes[name], int):
                    hint = "give it a dim of its own, whose size is a number"
                    problems.append(Problem("W0403", f"'{name}' cannot be a dim of a cell", where, hint))
                elif name in names[:i]:
                    hint = "a second dim of this size under another name"
                    problems.append(Problem("W0402", f"'{name}' stands twice in one shape", where, hint))
                else:
                    found[name] = s.low.axis(name, name, where, s.space)
        if problems:
            raise SpecError(problems)
        return found

    def named(self) -> Iterator[tuple[Path, list[str]]]:
        """Every list of dims, and where it stands."""
        yield from self.shapes.values()
        for name, m in self.matrices.items():
            if isinstance(m, list):
                yield ("matrices", name), m
            else:
                given = {"over": m.over, "to": m.to or [], "each": m.each}
                yield from ((("matrices", name, key), dims) for key, dims in given.items())

    def problems(self, dims: Dims, path: Path) -> Iterator[Problem]:
        """Names that a formula could read in two ways, and matrices that have a dim in two places."""
        where = {name: (*path, at[0], name) for name, (at, _) in self.shapes.items()}
        where |= {name: (*path, key, name) for key in ("matrices", "let") for name in getattr(self, key)}
        for name, at in where.items():
            if name in dims.values:
                yield Problem("W0403", f"'{name}' is a dim already, a number in formulas", at, "give it another name")
        for name, m in self.multiplied.items():
            if twice := [d for d in m.each if d in (*m.over, *m.to)]:
                message = f"'{twice[0]}' has a matrix for each place and is summed or made too"
                yield Problem("W0402", message, (*path, "matrices", name, "each"), "leave it out of one")

    def warnings(self, dims: Dims, path: Path, predicts: bool) -> Iterator[Problem]:
        """A cell that shows a language head what it is to predict."""
        if predicts and self.direction != "forward":
            message = "a token sees later ones; targets that are the next tokens would be seen, not predicted"
            yield Problem("W0503", message, (*path, "direction"), "a model of masked tokens is meant so")
