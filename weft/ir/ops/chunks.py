"""A dim cut into pieces of equal size, and pieces joined: the one way in which a dim is reshaped."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weft.ir.ops.op import Cotangents, Grads, Op, Types, Vals
from weft.ir.types import Node, Type, need

if TYPE_CHECKING:
    from weft.ir.builder import Builder


@dataclass(frozen=True)
class Chunk(Op):
    """Dim `dim` cut into `outer` pieces of n_inner coordinates; behind the last one there are zeros."""

    dim: str
    outer: str
    inner: str
    core = "memory"

    def fits(self, sizes: Mapping[str, int]) -> None:
        _cut(self.dim, self.outer, self.inner, sizes)

    def moves(self) -> tuple[str, ...]:
        return self.dim, self.outer, self.inner

    def infer(self, *x: Type) -> Types:
        need(len(x) == 1, f"chunk takes one operand, found {len(x)}")
        need(self.dim in x[0].dims, f"chunk: {x[0]} has no dim {self.dim}")
        need(self.outer != self.inner, f"chunk: two dims called {self.outer}")
        need(not {self.outer, self.inner} & {*x[0].dims}, f"chunk: {x[0]} already has {self.outer} or {self.inner}")
        return x[0].but(d for n in x[0].dims for d in ((self.outer, self.inner) if n == self.dim else (n,)))

    def role(self, node: Node, dim: str) -> str:
        return "whole" if dim in self.moves() else "parallel"

    def linear(self) -> bool:
        return True

    def torch(self, s: Any, torch: Any, *x: Any) -> Any:
        axis, (outer, inner) = s.types[0].dims.index(self.dim), (s.n(self.outer), s.n(self.inner))
        behind = [0, 0] * (x[0].ndim - axis - 1) + [0, outer * inner - x[0].shape[axis]]
        return torch.nn.functional.pad(x[0], behind).unflatten(axis, (outer, inner))

    def vjp(self, g: "Builder", x: Vals, y: Vals, dy: Grads) -> Cotangents:
        return [None if d is None else g.one(Unchunk(self.outer, self.inner, self.dim), d) for d in dy]

    def onnx(self, e: Any, *x: Any) -> Any:
        axis, dims = e.types[0].dims.index(self.dim), e.current.outs[0].dims
        more = e.node("Sub", e.node("Mul", e.size(self.outer), e.size(self.inner)), e.size(self.dim))
        padded = e.node("Pad", x[0], e.node("Concat", e.ints(0), more, axis=0), e.zero(e.types[0].dtype), e.ints(axis))
        return e.node("Reshape", padded, e.shape(dims))


@dataclass(frozen=True)
class Unchunk(Op):
    """The transpose of chunk: pieces one after another, as far as n_dim coordinates."""

    outer: str
    inner: str
    dim: str
    core = "memory"

    def fits(self, sizes: Mapping[str, int]) -> None:
        _cut(self.dim, self.outer, self.inner, sizes)

    def moves(self) -> tuple[str, ...]:
        return self.outer, self.inner, self.dim

    def infer(self, *x: Type) -> Types:
        need(len(x) == 1, f"unchunk takes one operand, found {len(x)}")
        at = [i for i, d in enumerate(x[0].dims) if d == self.outer]
        together = at and x[0].dims[at[0] + 1 : at[0] + 2] == (self.inner,)
        need(together, f"unchunk: {x[0]} has no {self.outer} {self.inner} beside each other")
        need(self.dim not in x[0].dims, f"unchunk: {x[0]} already has a dim {self.dim}")
        return x[0].but(self.dim if d == self.outer else d for d in x[0].dims if d != self.inner)

    def role(self, node: Node, dim: str) -> str:
        return "whole" if dim in self.moves() else "parallel"

    def linear(self) -> bool:
        return True

    def torch(self, s: Any, torch: Any, *x: Any) -> Any:
        axis = s.types[0].dims.index(self.outer)
        return x[0].flatten(axis, axis + 1).narrow(axis, 0, s.n(self.dim))

    def vjp(self, g: "Builder", x: Vals, y: Vals, dy: Grads) -> Cotangents:
        return [None if d is None else g.one(Chunk(self.dim, self.outer, self.inner), d) for d in dy]

    def onnx(self, e: Any, *x: Any) -> Any:
        axis, dims = e.types[0].dims.index(self.outer), e.types[0].dims
        every = e.node("Mul", e.size(self.outer), e.size(self.inner))
        sizes = [every if d == self.outer else e.size(d) for d in dims if d != self.inner]
        joined = e.node("Reshape", x[0], e.node("Concat", *sizes, axis=0))
        return e.node("Slice", joined, e.ints(0), e.size(self.dim), e.ints(axis))


def _cut(dim: str, outer: str, inner: str, sizes: Mapping[str, int]) -> None:
    have, pieces, each = sizes[dim], sizes[outer], sizes[inner]
    fits = (pieces - 1) * each < have <= pieces * each or not (have or pieces)
    need(fits, f"{dim} ({have}) is not {outer} ({pieces}) pieces of {inner} ({each})")
