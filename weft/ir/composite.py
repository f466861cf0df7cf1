"""Ops that say only what they mean in others; and those that stand around them: blocks, derivatives kept as one op."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import sympy as sp

from weft.ir.backward import backward
from weft.ir.builder import Builder, flatten
from weft.ir.ops.op import Cotangents, Grads, Op, Types, Vals, kind, listed, op_name
from weft.ir.placement import derived_role
from weft.ir.types import Graph, Node, Type, Val, need

_PRODUCTS = ("contraction", "grouped", "product")


class Composite(Op):
    """An op declared by `expand` alone: types, reference, derivative, FLOPs and shardings are its expansion's."""

    def expand(self, *args: Any, **unused: Any) -> Any:  # so typed, an override may name its operands
        """expand(g, *operands): append what the op means to `g`, and return its result or the tuple of its results."""
        raise NotImplementedError

    def meaning(self, types: tuple[Type, ...]) -> Graph:
        """The expansion as a graph; see `expansion`, which caches it."""
        g = Builder()
        out = self.expand(g, *(g.input(f"a{i}", t) for i, t in enumerate(types)))
        return g.graph(*(out if isinstance(out, tuple) else (out,)))

    def infer(self, *x: Type) -> Types:
        return tuple(v.type for v in expansion(self, x).outputs)

    def opened(self, types: tuple[Type, ...]) -> Graph | None:
        return expansion(self, types)

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
        return _role(self, node.types, dim)

    def flops(self, node: Node) -> sp.Expr:
        return _flops(self, node.types)

    def torch(self, s: Any, torch: Any, *x: Any) -> Any:
        return s.run(expansion(self, s.types), x)

    def onnx(self, e: Any, *x: Any) -> Any:
        return e.graph(expansion(self, e.types), x)

    def direct(self, types: tuple[Type, ...]) -> bool:
        """Where torch has an op of this meaning: has it for operands of these types?"""
        return True

    def pair(self, g: Builder, x: Sequence[Val], dy: Sequence[Val], names: Sequence[str]) -> Vals | None:
        """The derivative in torch's own terms, None where it has none; see `paired`."""
        return None

    def vjp(self, g: Builder, x: Vals, y: Vals, dy: Grads) -> Cotangents:
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
    if products >= 2 and not distinct & {"scan", "matrix_scan", "region", "memory", "scatter"}:
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


@cache
def _role(op: Composite, types: tuple[Type, ...], dim: str) -> str:
    return derived_role(flatten(expansion(op, types)), dim)


@dataclass(frozen=True)
class Call(Composite):
    """Run `body` once: a block. One nn.Module, one autograd boundary; nothing fuses across it."""

    name: str
    body: Graph
    block = True

    def work(self, types: tuple[Type, ...]) -> str:
        return "region"

    def meaning(self, types: tuple[Type, ...]) -> Graph:
        want = tuple(v.type for v in self.body.inputs)
        need(types == want, f"call {self.name}: operands {listed(types)} do not fit the body's {listed(want)}")
        return self.body

    def expand(self, g: Builder, *x: Val) -> Vals:
        return g.inline(self.body, x)

    def bytes(self, node: Node) -> sp.Expr:
        """What the ops of the block move; the block itself is no kernel."""
        return sp.Add(*(n.op.bytes(n) for n in self.body.nodes))


@dataclass(frozen=True)
class Grad(Composite):
    """The derivative of a composite, kept as one op.

    Operands: the composite's n, then the cotangents of the results in `have`. Results: the cotangents of its float
    operands."""

    inner: Composite
    n: int
    have: tuple[bool, ...]

    def paired(self, g: Builder, x: Sequence[Val], names: Sequence[str], again: bool) -> Vals | None:
        return self.inner.pair(g, x[: self.n], x[self.n :], names)

    def linear_in(self, operands: int) -> tuple[tuple[int, ...], ...]:
        return (tuple(range(self.n, operands)),)

    def wide(self, results: int) -> tuple[bool, ...] | None:
        return (False,) * results

    def meaning(self, types: tuple[Type, ...]) -> Graph:
        need(0 < self.n <= len(types), f"grad: {self.n} operands of {op_name(type(self.inner))}, {len(types)} given")
        outs = [v.type for v in expansion(self.inner, types[: self.n]).outputs]
        need(len(outs) == len(self.have), f"grad: {len(self.have)} flags for {len(outs)} results")
        want = tuple(t for t, h in zip(outs, self.have) if h)
        need(types[self.n :] == want, f"grad: cotangents {listed(types[self.n :])}, expected {listed(want)}")
        return super().meaning(types)

    def expand(self, g: Builder, *x: Val) -> Vals:
        own = x[: self.n]
        start = len(g.nodes)
        out = g.inline(expansion(self.inner, tuple(v.type for v in own)), own)
        seeds: dict[Val, Val] = {}
        for v, d in zip([v for v, h in zip(out, self.have) if h], x[self.n :], strict=True):
            seeds[v] = d if v not in seeds else g.map("a + b", a=seeds[v], b=d, to=v.dims, dtype=v.dtype)
        cot = backward(g, g.nodes[start:], seeds)
        return tuple(cot.get(v) or g.zeros(v) for v in own if v.type.floating)
