"""What an op declares, and what it gets when it stays silent."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import sympy as sp

from weft.ir.formula import symbol
from weft.ir.formula.degree import NONLINEAR
from weft.ir.types import ITEMSIZE, Graph, Node, Type, Val

if TYPE_CHECKING:
    from weft.ir.builder import Builder
    from weft.ir.composite import Composite

Types = Type | tuple[Type, ...]
Vals = tuple[Val, ...]
Grads = Sequence[Val | None]
Cotangents = Iterable[Val | None]


KINDS = (
    *("view", "pointwise", "rowwise", "contraction", "grouped", "product", "attention", "scan", "matrix_scan"),
    *("chunked", "scatter", "memory", "region", "composite"),
)
"""What a node's work is, for prices, recomputation and skeletons. contraction: a matrix product, grouped where all its
factors have a dim that is kept. product: a composite around one, which libraries have and no skeleton. scan: a loop
whose body is an elementwise cell; matrix_scan: one whose states are small matrices (`matrix_cell`). chunked: what a
linear recurrence is within a chunk of positions. memory: numbers moved. region: any other body. composite: anything
else."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """Elements of `input` are coordinates of `dim`, or `ignore`, which counts for nothing. target: of a loss."""

    dim: str
    ignore: int | None = None
    target: bool = False
    input: str = ""


class Op:
    """Base of every declaration: a frozen dataclass whose fields are its attributes.

    `infer`, `torch` and `vjp` are required; every other method has a default and is overridden where it differs."""

    absent: Any = "whole"  # role of a dim that operands have and results lack: sum | max | whole
    attention: Any = None  # the attention that the op is, or is the derivative of
    core: str = "composite"  # one of KINDS
    block: bool = False  # is it a block: one module, nothing fuses across its border
    shows: bool = False  # do the results lie in the first operand's memory?
    regularizes: bool = False  # is it the first operand when not training?
    scalars: Mapping[int, str] = MappingProxyType({})  # operands that are numbers of the run -> which: seed, layer
    again: bool = True  # may it be computed a second time? Not where that might decide otherwise
    gathers: bool = False  # the first operand is a table, of which the rows at the others are read

    def infer(self, *x: Type) -> Types:
        """Types of the results from the types of the operands; raises VerifyError."""
        raise NotImplementedError

    def torch(self, s: Any, torch: Any, *x: Any) -> Any:
        """The reference: torch values from torch values. `s` is the `reference.Site`."""
        raise NotImplementedError

    def vjp(self, g: "Builder", x: Vals, y: Vals, dy: Grads) -> Cotangents:
        """Cotangents of the operands (None: no gradient) from those of the results, appended to `g`."""
        raise NotImplementedError

    def onnx(self, e: Any, *x: Any) -> Any:
        """The ONNX form, through the emitter `e`."""
        raise NotImplementedError(f"{op_name(type(self))} has no ONNX form")

    def opened(self, types: tuple[Type, ...]) -> Graph | None:
        """What it means in other ops, one level down, on operands of these types; None: it is a primitive."""
        return None

    def role(self, node: Node, dim: str) -> str:
        """parallel | sum | max | whole | sequential: what sharding `dim` means for this node."""
        return "parallel" if all(dim in v.dims for v in node.outs) else self.absent

    def work(self, types: tuple[Type, ...]) -> str:
        """One of KINDS, for operands of these types. Asked through `kind`, which caches it."""
        return self.core

    def crossed(self, node: Node) -> frozenset[str]:
        """Dims along which an element of the results needs other elements of the operands."""
        return frozenset()

    def prefer(self, dim: str) -> bool:
        """False: shard another dim if there is one."""
        return True

    def linear(self) -> bool:
        """True: a partial sum of every operand gives a partial sum of every result."""
        return False

    def coordinates(self, node: Node) -> tuple[str, ...]:
        """Dims whose coordinates a kernel of it has to know."""
        return ()

    def lookup(self, operand: int) -> "Lookup | None":
        """What an operand's elements are coordinates of."""
        return None

    def fits(self, sizes: Mapping[str, int]) -> None:
        """Raises VerifyError where dims of these sizes cannot be."""

    def linear_in(self, operands: int) -> tuple[tuple[int, ...], ...]:
        """Groups of operands that every result is linear in, the others held fixed: zero where a group is."""
        return (tuple(range(operands)),) if operands and self.linear() else ()

    def degrees(self, ins: Sequence[int], results: int) -> list[int]:
        """Degrees of the results in something, from those of the operands: 0 free of it, 1 affine, NONLINEAR else."""
        groups = self.linear_in(len(ins))
        if any(d and all(i not in g for g in groups) for i, d in enumerate(ins)):
            return [NONLINEAR] * results
        return [min(sum(max(ins[i] for i in g) for g in groups), NONLINEAR)] * results

    def wide(self, results: int) -> tuple[bool, ...] | None:
        """Which results stay float32 at least in a model moved to a narrower dtype; None: those of wide operands."""
        return None

    def paired(self, g: "Builder", x: Sequence[Val], names: Sequence[str], again: bool) -> Vals | None:
        """The op in the terms in which torch joins forwards to backwards, None as it is. again: its derivative stands
        in the graph too."""
        return None

    def step(self, s: Any, n: Node, ins: Sequence[Any]) -> Iterable[Any]:
        """What the results become in a step of decoding, whose walk is `s` (`weft.passes.decode.step`), where the
        operands have become `ins`: the same op, if no result depends on another position. Raises DecodeError.

        A formula finds a row among past and new keys by n_<key> - n_<time>, how many are past; a prompt has no dim of
        these."""
        return s.same(n, ins)

    def untrained(self, node: Node) -> Node:
        """The node of this op in a model that is not training."""
        return node

    def unplaced(self, ins: Sequence[Val], at: Val, time: str) -> "tuple[Op, list[Val]]":
        """The op and its operands in a step before which there was nothing: without the positions `at`."""
        return self, list(ins)

    def reach(self, sizes: Mapping[str, int], time: str) -> tuple[str, int | None] | None:
        """The dim of positions that results along `time` read, and how many back from their own, that one counted, as
        far as any of them; None: no end. None: it reads no positions by another name."""
        return None

    def refitted(self, rows: str, has: bool) -> "Op":
        """The op for operands some of which have the dim `rows` (has: True) where none had it, or the reverse."""
        return self

    def moves(self) -> tuple[str, ...]:
        """Dims that the op takes under another name, joined or in part; then what it calls them."""
        return ()

    def mentions(self, types: tuple[Type, ...], dim: str) -> bool:
        """Does the meaning read the coordinate or the size of a dim, or move it?"""
        read = {str(s) for v in self.attrs().values() if isinstance(v, sp.Basic) for s in v.free_symbols}
        return not read.isdisjoint((f"i_{dim}", f"n_{dim}")) or dim in self.moves()

    def follows(self, x: Vals) -> "tuple[Composite, Vals, Vals] | None":
        """An op and its operands, whose last results some of the operands must be: then those come last."""
        return None

    def in_rows(self, g: "Builder", x: Sequence[Val], names: Sequence[str]) -> Vals | None:
        """What the op means where a kernel holds whole rows, if that is not its expansion. Same function."""
        return None

    def flops(self, node: Node) -> sp.Expr:
        """Floating point operations, over the size symbols n_dim."""
        return sp.Integer(0)

    def bytes(self, node: Node) -> sp.Expr:
        """Bytes read and written when the node is one kernel, over the size symbols n_dim."""
        return sp.Add(*(size(v) for v in (*node.ins, *node.outs)))

    def attrs(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}  # pyright: ignore[reportArgumentType]


_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@cache
def op_name(cls: type) -> str:
    """The name in the text form: CrossEntropy -> cross_entropy."""
    return _WORD.sub("_", cls.__name__).lower()


def kind(node: Node) -> str:
    """The kind of a node's work, one of KINDS."""
    return _kind(node.op, node.types)


@lru_cache(maxsize=1 << 12)
def _kind(op: Op, types: tuple[Type, ...]) -> str:
    return op.work(types)


def body_of(op: Op) -> Graph | None:
    """The graph that an op runs, of a loop once a step."""
    return getattr(op, "body", None)


def tupled(types: Types) -> tuple[Type, ...]:
    return types if isinstance(types, tuple) else (types,)


def listed(types: Iterable[Type]) -> str:
    """Types, for messages."""
    return ", ".join(map(str, types)) or "nothing"


def points(dims: Iterable[str]) -> sp.Expr:
    """The number of points of a space, over the size symbols."""
    return sp.Mul(*(symbol(f"n_{d}") for d in dims))


def size(v: Val) -> sp.Expr:
    """Bytes of a value, over the size symbols."""
    return points(v.dims) * ITEMSIZE[v.dtype]
