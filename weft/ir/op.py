"""What an op declares, and what it gets when it stays silent."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import sympy as sp

from weft.ir.degree import NONLINEAR
from weft.ir.formula import symbol
from weft.ir.types import ITEMSIZE, Graph, Node, Type, Val

if TYPE_CHECKING:
    from weft.ir.builder import Builder

Types = Type | tuple[Type, ...]
Vals = tuple[Val, ...]
Grads = Sequence[Val | None]
Cotangents = Iterable[Val | None]


KINDS = (
    *("view", "pointwise", "rowwise", "contraction", "grouped", "product", "attention", "scan", "scatter"),
    *("memory", "region", "composite"),
)
"""What a node's work is, for prices, recomputation and skeletons. contraction: a matrix product, grouped where all its
factors have a dim that is kept. product: a composite around one, which libraries have and no skeleton. memory: numbers
moved. region: a body that is no elementwise cell. composite: anything else."""
_PRODUCTS = ("contraction", "grouped", "product")


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
        """What the results become in a step of decoding, whose walk is `s` (`weft.passes.decode`), where the operands
        have become `ins`: the same op, if no result depends on another position. Raises DecodeError."""
        return s.same(n, ins)

    def unplaced(self, ins: Sequence[Val], at: Val, time: str) -> "tuple[Op, list[Val]]":
        """The op and its operands in a step before which there was nothing: without the positions `at`."""
        return self, list(ins)

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


class Composite(Op):
    """An op declared by `expand` alone: types, reference, derivative, FLOPs and shardings are its expansion's."""

    def expand(self, *args: Any, **unused: Any) -> Any:  # so typed, an override may name its operands
        """expand(g, *operands): append what the op means to `g`, and return its result or the tuple of its results."""
        raise NotImplementedError

    def meaning(self, types: tuple[Type, ...]) -> Graph:
        """The expansion as a graph; see `expansion`, which caches it."""
        from weft.ir.builder import Builder

        g = Builder()
        out = self.expand(g, *(g.input(f"a{i}", t) for i, t in enumerate(types)))
        return g.graph(*(out if isinstance(out, tuple) else (out,)))

    def infer(self, *x: Type) -> Types:
        return tuple(v.type for v in expansion(self, x).outputs)

    def work(self, types: tuple[Type, ...]) -> str:
        return _composed(expansion(self, types))

    def crossed(self, node: Node) -> frozenset[str]:
        return frozenset[str]().union(*(n.op.crossed(n) for n in expansion(self, node.types).nodes))

    def mentions(self, types: tuple[Type, ...], dim: str) -> bool:
        return any(n.op.mentions(n.types, dim) for n in expansion(self, types).nodes)

    def step(self, s: Any, n: Node, ins: Sequence[Any]) -> Iterable[Any]:
        """Where it meets positions, the step of what it means."""
        return s.inline(n, ins) if s.meets(n, ins) else s.same(n, ins)

    def role(self, node: Node, dim: str) -> str:
        from weft.ir.placement import derived_role

        return derived_role(self, node.types, dim)

    def flops(self, node: Node) -> sp.Expr:
        return _flops(self, node.types)

    def torch(self, s: Any, torch: Any, *x: Any) -> Any:
        return s.run(expansion(self, s.types), x)

    def onnx(self, e: Any, *x: Any) -> Any:
        return e.graph(expansion(self, e.types), x)

    def direct(self, types: tuple[Type, ...]) -> bool:
        """Where torch has an op of this meaning: has it for operands of these types?"""
        return True

    def pair(self, g: "Builder", x: Sequence[Val], dy: Sequence[Val], names: Sequence[str]) -> Vals | None:
        """The derivative in torch's own terms, None where it has none; see `paired`."""
        return None

    def vjp(self, g: "Builder", x: Vals, y: Vals, dy: Grads) -> Cotangents:
        from weft.ir.regions import Grad

        live = [i for i, v in enumerate(x) if v.type.floating]
        have = tuple(d is not None for d in dy)
        if not live or not any(have):
            return [None] * len(x)
        got = dict(zip(live, g.many(Grad(self, len(x), have), *x, *(d for d in dy if d is not None))))
        return [got.get(i) for i in range(len(x))]


@cache
def expansion(op: Composite, types: tuple[Type, ...]) -> Graph:
    """What a composite means on operands of these types, one level down."""
    return op.meaning(types)


def _composed(body: Graph) -> str:
    """The kind of a composite that means `body`."""
    kinds = [kind(n) for n in body.nodes]
    distinct = set(kinds) - {"view"}
    products = sum(k in _PRODUCTS for k in kinds)
    if distinct <= {"pointwise"}:
        return "pointwise"
    if distinct <= {"pointwise", "rowwise"} or _rearranges(body):
        return "rowwise"
    if products == 1 and distinct <= {*_PRODUCTS, "pointwise"}:
        return "product"
    if products >= 2 and not distinct & {"scan", "region", "memory", "scatter"}:
        return "attention"
    return "composite"


def _rearranges(body: Graph) -> bool:
    """Is it maps, reductions, and lookups at places that do not depend on the operands? A program that holds whole rows
    of the dims looked up can do it: a rotation of pairs."""
    moving = set(body.inputs)
    for n in body.nodes:
        fixed = n.op.gathers and moving.isdisjoint(n.ins[1:])
        if not fixed and kind(n) not in ("view", "pointwise", "rowwise"):
            return False
        if not moving.isdisjoint(n.ins):
            moving.update(n.outs)
    return True


@cache
def _flops(op: Composite, types: tuple[Type, ...]) -> sp.Expr:
    return sp.Add(*(n.op.flops(n) for n in expansion(op, types).nodes))
