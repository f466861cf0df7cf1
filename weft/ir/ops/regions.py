"""Ops with a body: loops and fused regions; and modules that are planned around."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sympy as sp

from weft.ir.formula import symbol
from weft.ir.ops.loop_derivative import loop_vjp
from weft.ir.ops.matrix_cell import matrix_cell
from weft.ir.ops.op import Cotangents, Grads, Op, Types, Vals, listed
from weft.ir.types import Dims, Graph, Node, Type, Val, need

if TYPE_CHECKING:
    from weft.ir.builder import Builder


@dataclass(frozen=True)
class Loop(Op):
    """Run `body` along `dim`: carries first, then operands (sliced where they have `dim`, else shared).

    Gives the final carries, the stacked outputs, and the carries as they were before each step (free unless used);
    what is stacked has `dim` first. Layers, time, windows. reverse: from the last coordinate to the first. chunks: dims
    that `dim` can be cut into, where its body is linear in the carries: chunks, places in one, the same by two more
    names; and `dim` by another name, where one has it. padded: the last operand says where there is something, which
    is nowhere behind a place where there is nothing; there the carries stay."""

    dim: str
    body: Graph
    carries: int
    reverse: bool = False
    chunks: Dims = ()
    padded: bool = False

    def work(self, types: tuple[Type, ...]) -> str:
        """A scan when its body is an elementwise cell: maps alone."""
        if all(n.op.core == "pointwise" for n in self.body.nodes):
            return "scan"
        return "matrix_scan" if matrix_cell(self.body, self.carries) else "region"

    def crossed(self, node: Node) -> frozenset[str]:
        return frozenset((self.dim,)).union(*(n.op.crossed(n) for n in self.body.nodes))

    def mentions(self, types: tuple[Type, ...], dim: str) -> bool:
        return any(n.op.mentions(n.types, dim) for n in self.body.nodes)

    def role(self, node: Node, dim: str) -> str:
        return "sequential" if dim == self.dim else super().role(node, dim)

    def inner(self, t: Type) -> Type:
        """The type of an operand as the body sees it."""
        return t.but(n for n in t.dims if n != self.dim)

    def infer(self, *x: Type) -> Types:
        c, outs = self.carries, [v.type for v in self.body.outputs]
        need(0 <= c <= min(len(x), len(outs)), f"loop: {c} carries, {len(x)} operands, {len(outs)} results of the body")
        want = [v.type for v in self.body.inputs]
        need(
            [self.inner(t) for t in x] == want,
            f"loop: operands {listed(x)} do not fit the body's {listed(tuple(want))}",
        )
        need(all(self.dim not in t.dims for t in x[:c]), f"loop: a carry has the dim {self.dim} of the loop")
        need(
            list(x[:c]) == outs[:c],
            f"loop: a carry changes type in the body: {listed(x[:c])} to {listed(tuple(outs[:c]))}",
        )
        need(all(self.dim not in t.dims for t in outs), f"loop: the body makes the dim {self.dim} of the loop")
        return (*x[:c], *(t.but((self.dim, *t.dims)) for t in (*outs[c:], *x[:c])))

    def step(self, s: Any, n: Node, ins: Sequence[Any]) -> Iterable[Any]:
        """Along time, the cell goes on from where it was left; any other loop is the same if its body is."""
        if self.dim == s.time:
            return s.cell(n, ins)
        if s.time in self.crossed(n) or self.mentions(n.types, s.time):
            raise s.refusal(n, f"runs a loop over {self.dim} that mixes positions along {s.time}")
        if any(isinstance(x, Val) and set(v.dims) != set(x.dims) for v, x in zip(n.ins, ins)):
            raise s.refusal(n, f"runs a loop over {self.dim} on what differs from row to row")
        return s.same(n, ins)

    def flops(self, node: Node) -> sp.Expr:
        return symbol(f"n_{self.dim}") * sp.Add(*(n.op.flops(n) for n in self.body.nodes))

    def bytes(self, node: Node) -> sp.Expr:
        """An elementwise cell is one kernel that keeps its carries on chip; another body moves its own at each step."""
        if self.work(()) == "scan":
            return super().bytes(node)
        return symbol(f"n_{self.dim}") * sp.Add(*(n.op.bytes(n) for n in self.body.nodes))

    def torch(self, s: Any, torch: Any, *x: Any) -> Any:
        return s.loop(self, x)

    def onnx(self, e: Any, *x: Any) -> Any:
        return e.scan(self, x)

    def vjp(self, g: "Builder", x: Vals, y: Vals, dy: Grads) -> Cotangents:
        return loop_vjp(self, g, x, y, dy)


@dataclass(frozen=True)
class Opaque(Op):
    """A wrapped nn.Module that is planned around, never looked into.

    Operands: the module's inputs, then its parameters in the order of `params` (their names in the module). The
    interpreter is given the modules by `key`. No dim of it can be sharded."""

    key: str
    outs: tuple[Type, ...]
    params: tuple[str, ...] = ()
    again = False

    def crossed(self, node: Node) -> frozenset[str]:
        return frozenset(node.space)

    def infer(self, *x: Type) -> Types:
        need(len(x) >= len(self.params), f"opaque {self.key}: {len(self.params)} parameters, {len(x)} operands")
        need(self.outs, f"opaque {self.key}: no results")
        return self.outs

    def role(self, node: Node, dim: str) -> str:
        return "whole"

    def torch(self, s: Any, torch: Any, *x: Any) -> Any:
        return s.opaque(self, x)

    def vjp(self, g: "Builder", x: Vals, y: Vals, dy: Grads) -> Cotangents:
        live = [i for i, v in enumerate(x) if v.type.floating]
        have = tuple(d is not None for d in dy)
        if not live:
            return [None] * len(x)
        got = dict(zip(live, g.many(OpaqueGrad(self, len(x), have), *x, *(d for d in dy if d is not None))))
        return [got.get(i) for i in range(len(x))]


@dataclass(frozen=True)
class OpaqueGrad(Op):
    """The derivative of a wrapped module, by torch autograd; operands and results as those of Grad."""

    of: Opaque
    n: int
    have: tuple[bool, ...]
    again = False

    def crossed(self, node: Node) -> frozenset[str]:
        return frozenset(node.space)

    def infer(self, *x: Type) -> Types:
        want = tuple(t for t, h in zip(self.of.outs, self.have) if h)
        need(
            len(self.have) == len(self.of.outs), f"opaque_grad: {len(self.have)} flags for {len(self.of.outs)} results"
        )
        need(x[self.n :] == want, f"opaque_grad: cotangents {listed(x[self.n :])}, expected {listed(want)}")
        return tuple(t for t in x[: self.n] if t.floating)

    def role(self, node: Node, dim: str) -> str:
        return "whole"

    def torch(self, s: Any, torch: Any, *x: Any) -> Any:
        return s.opaque_grad(self, x)


@dataclass(frozen=True)
class Fused(Op):
    """A region as one op: `body` says what it means, `kernel` is the name of the op that runs it."""

    kernel: str
    body: Graph

    def crossed(self, node: Node) -> frozenset[str]:
        return frozenset[str]().union(*(n.op.crossed(n) for n in self.body.nodes))

    def infer(self, *x: Type) -> Types:
        need([v.type for v in self.body.inputs] == list(x), "a region runs on values of its own types")
        return tuple(v.type for v in self.body.outputs)

    def torch(self, s: Any, torch: Any, *x: Any) -> Any:
        return s.run(self.body, x)
