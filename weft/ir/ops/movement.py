"""Ops that move numbers and compute none: lookups, joins, parts, names, constants."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import sympy as sp

from weft.ir.formula import normal, symbol
from weft.ir.ops.op import Cotangents, Grads, Lookup, Op, Types, Vals, listed, size
from weft.ir.types import Dims, Node, Type, Val, need, union

if TYPE_CHECKING:
    from weft.ir.builder import Builder


def _indices(what: str, at: Dims, idx: tuple[Type, ...], dims: Dims, whole: Type) -> None:
    need(at and len(set(at)) == len(at) and set(at) <= set(dims), f"{what}: {whole} has no dims [{' '.join(at)}]")
    need(len(idx) == len(at), f"{what}: {len(at)} dims need {len(at)} indices, found {len(idx)}")
    need(all(t.dtype == "i64" for t in idx), f"{what}: indices are i64, found {listed(idx)}")


@dataclass(frozen=True)
class Gather(Op):
    """table at coordinates: dim at[k] is replaced by index k; other dims align by name; out of range reads 0."""

    at: Dims
    absent = "sum"  # a shard of the table answers 0 for rows it lacks: answers add up
    core, gathers = "memory", True

    def coordinates(self, node: Node) -> tuple[str, ...]:
        return self.at

    def lookup(self, operand: int) -> Lookup | None:
        return Lookup(self.at[operand - 1]) if operand else None

    def crossed(self, node: Node) -> frozenset[str]:
        return frozenset(self.at)

    def linear_in(self, operands: int) -> tuple[tuple[int, ...], ...]:
        return ((0,),)

    def prefer(self, dim: str) -> bool:
        return dim not in self.at

    def step(self, s: Any, n: Node, ins: Sequence[Any]) -> Iterable[Any]:
        return s.taken(n, ins) if s.in_slots(ins[:1]) else s.same(n, ins)

    def infer(self, *x: Type) -> Types:
        need(x, "gather needs a table")
        table, *idx = x
        _indices("gather", self.at, tuple(idx), table.dims, table)
        return table.but(union(*(t.dims for t in idx), [n for n in table.dims if n not in self.at]))

    def role(self, node: Node, dim: str) -> str:
        if dim in self.at and any(dim in v.dims for v in node.ins[1:]):
            return "whole"  # the name is both looked up and kept: a shard of one is not a shard of the other
        return super().role(node, dim)

    def bytes(self, node: Node) -> sp.Expr:
        return 2 * size(node.outs[0])  # the rows read, not the table

    def torch(self, s: Any, torch: Any, *x: Any) -> Any:
        return s.gather(x[0], x[1:], self.at)

    def vjp(self, g: "Builder", x: Vals, y: Vals, dy: Grads) -> Cotangents:
        out = dy[0]
        assert out is not None
        return [g.scatter(out, *x[1:], at=self.at, to=x[0].dims), *(None for _ in x[1:])]

    def onnx(self, e: Any, *x: Any) -> Any:
        return e.gather(self, *x)


@dataclass(frozen=True)
class Scatter(Op):
    """The transpose of gather: add x into zeros[to] at the coordinates; out of range is dropped."""

    at: Dims
    to: Dims
    absent = "sum"
    core = "scatter"

    def crossed(self, node: Node) -> frozenset[str]:
        return frozenset((*self.at, *node.space)).difference(d for d in self.to if d not in self.at)

    def linear_in(self, operands: int) -> tuple[tuple[int, ...], ...]:
        return ((0,),)

    def prefer(self, dim: str) -> bool:
        return dim not in self.at

    def step(self, s: Any, n: Node, ins: Sequence[Any]) -> Iterable[Any]:
        return s.sent(n, ins) if any(s.time in v.dims for v in n.ins) else s.same(n, ins)

    def infer(self, *x: Type) -> Types:
        need(x, "scatter needs an operand")
        first, *idx = x
        need(first.floating, f"scatter adds floats, found {first}")
        _indices("scatter", self.at, tuple(idx), self.to, first.but(self.to))
        missing = [n for n in self.to if n not in self.at and n not in union(*(t.dims for t in x))]
        need(not missing, f"scatter cannot make [{' '.join(self.to)}] from {listed(x)}: no {' '.join(missing)}")
        return first.but(self.to)

    def role(self, node: Node, dim: str) -> str:
        if dim in self.at and any(dim in v.dims for v in node.ins):
            return "whole"
        return super().role(node, dim)

    def torch(self, s: Any, torch: Any, *x: Any) -> Any:
        return s.scatter(x[0], x[1:], self.at, self.to)

    def vjp(self, g: "Builder", x: Vals, y: Vals, dy: Grads) -> Cotangents:
        out = dy[0]
        assert out is not None
        d = g.gather(out, *x[1:], at=self.at)
        have = [n for n in x[0].dims if n in d.dims]
        return [g.expand(g.reduce(d, to=have), to=x[0].dims), *(None for _ in x[1:])]

    def onnx(self, e: Any, *x: Any) -> Any:
        return e.scatter(self, *x)


@dataclass(frozen=True)
class Rename(Op):
    """The same numbers under another dim name: keys are time seen as `key`. A sharded dim must be gathered first."""

    old: str
    new: str
    core, shows = "view", True

    def moves(self) -> tuple[str, ...]:
        return self.old, self.new

    def step(self, s: Any, n: Node, ins: Sequence[Any]) -> Iterable[Any]:
        positions = self.old == s.time and isinstance(ins[0], Val)
        return s.keyed(ins[0], self.new) if positions else s.same(n, ins)

    def infer(self, *x: Type) -> Types:
        need(len(x) == 1, f"rename takes one operand, found {len(x)}")
        need(self.old in x[0].dims, f"rename: {x[0]} has no dim {self.old}")
        need(self.new not in x[0].dims, f"rename: {x[0]} already has a dim {self.new}")
        return x[0].but(self.new if n == self.old else n for n in x[0].dims)

    def role(self, node: Node, dim: str) -> str:
        return "whole" if dim in (self.old, self.new) else "parallel"

    def linear(self) -> bool:
        return True

    def bytes(self, node: Node) -> sp.Expr:
        return sp.Integer(0)

    def torch(self, s: Any, torch: Any, *x: Any) -> Any:
        return x[0]

    def vjp(self, g: "Builder", x: Vals, y: Vals, dy: Grads) -> Cotangents:
        return [None if d is None else g.rename(d, self.new, self.old) for d in dy]

    def onnx(self, e: Any, *x: Any) -> Any:
        return x[0]


@dataclass(frozen=True)
class Concat(Op):
    """Join along `dims[k]` of operand k under a new dim name (n_new = the sum)."""

    dims: Dims
    new: str
    core = "memory"

    def fits(self, sizes: Mapping[str, int]) -> None:
        total, new = sum(sizes[d] for d in self.dims), sizes[self.new]
        need(total == new, f"{' + '.join(self.dims)} is {total}, but {self.new} is {new}")

    def moves(self) -> tuple[str, ...]:
        return (*self.dims, self.new)

    def infer(self, *x: Type) -> Types:
        need(x and len(x) == len(self.dims), f"concat: {len(self.dims)} dims for {len(x)} operands")
        for t, d in zip(x, self.dims):
            need(d in t.dims, f"concat: {t} has no dim {d}")
        need(self.new not in x[0].dims, f"concat: {x[0]} already has a dim {self.new}")
        outs = {t.but(self.new if n == d else n for n in t.dims) for t, d in zip(x, self.dims)}
        need(len(outs) == 1, f"concat: operands differ outside the joined dim: {listed(x)}")
        return outs.pop()

    def role(self, node: Node, dim: str) -> str:
        return "whole" if dim in (*self.dims, self.new) else "parallel"

    def linear(self) -> bool:
        return True

    def torch(self, s: Any, torch: Any, *x: Any) -> Any:
        return torch.cat(x, s.types[0].dims.index(self.dims[0]))

    def vjp(self, g: "Builder", x: Vals, y: Vals, dy: Grads) -> Cotangents:
        out, start = dy[0], sp.Integer(0)
        assert out is not None
        for n in self.dims:
            yield g.part(out, self.new, n, start)
            start += symbol(f"n_{n}")

    def onnx(self, e: Any, *x: Any) -> Any:
        return e.node("Concat", *x, axis=e.types[0].dims.index(self.dims[0]))


@dataclass(frozen=True)
class Part(Op):
    """The n_new coordinates of dim `old` from `start` on, under the name `new`."""

    old: str
    new: str
    start: sp.Expr
    core, shows = "memory", True

    def fits(self, sizes: Mapping[str, int]) -> None:
        start: Any = self.start
        first = int(start.xreplace({s: sizes[str(s)[2:]] for s in start.free_symbols}))
        end, old = first + sizes[self.new], sizes[self.old]
        need(0 <= first <= end <= old, f"{self.new} ({first} to {end}) leaves {self.old} ({old})")

    def moves(self) -> tuple[str, ...]:
        return self.old, self.new

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", normal(self.start))

    def infer(self, *x: Type) -> Types:
        need(len(x) == 1, f"part takes one operand, found {len(x)}")
        need(self.old in x[0].dims, f"part: {x[0]} has no dim {self.old}")
        need(self.new not in x[0].dims, f"part: {x[0]} already has a dim {self.new}")
        need(
            all(str(v).startswith("n_") for v in self.start.free_symbols),
            f"part: start is over sizes, found {self.start}",
        )
        return x[0].but(self.new if n == self.old else n for n in x[0].dims)

    def role(self, node: Node, dim: str) -> str:
        return "whole" if dim in (self.old, self.new) else "parallel"

    def linear(self) -> bool:
        return True

    def bytes(self, node: Node) -> sp.Expr:
        return 2 * size(node.outs[0])

    def torch(self, s: Any, torch: Any, *x: Any) -> Any:
        return x[0].narrow(s.types[0].dims.index(self.old), s.value(self.start), s.n(self.new))

    def vjp(self, g: "Builder", x: Vals, y: Vals, dy: Grads) -> Cotangents:
        out = dy[0]
        assert out is not None
        at = g.map(symbol(f"i_{self.new}") + self.start, to=(self.new,), dtype="i64")
        return [g.scatter(out, at, at=(self.old,), to=x[0].dims)]

    def onnx(self, e: Any, *x: Any) -> Any:
        return e.part(self, x[0])


@dataclass(frozen=True)
class Detach(Op):
    """The same numbers, no gradient: carried caches, the maximum inside softmax."""

    core, shows = "view", True

    def infer(self, *x: Type) -> Types:
        need(len(x) == 1, f"detach takes one operand, found {len(x)}")
        return x[0]

    def linear(self) -> bool:
        return True

    def bytes(self, node: Node) -> sp.Expr:
        return sp.Integer(0)

    def torch(self, s: Any, torch: Any, *x: Any) -> Any:
        return x[0].detach()

    def vjp(self, g: "Builder", x: Vals, y: Vals, dy: Grads) -> Cotangents:
        return [None]

    def onnx(self, e: Any, *x: Any) -> Any:
        return x[0]


@dataclass(frozen=True)
class Table(Op):
    """A constant i64 tensor: `values` row-major over `dims`, whose sizes are `shape`."""

    values: tuple[int, ...]
    dims: Dims
    shape: tuple[int, ...]
    core = "memory"

    def fits(self, sizes: Mapping[str, int]) -> None:
        have = tuple(sizes[d] for d in self.dims)
        need(have == self.shape, f"a table of {self.shape} for dims of {have}")

    def infer(self, *x: Type) -> Types:
        need(not x, f"table takes no operand, found {len(x)}")
        need(len(self.shape) == len(self.dims), f"table: {len(self.dims)} dims, {len(self.shape)} sizes")
        need(len(self.values) == prod(self.shape), f"table: {len(self.values)} values do not fill {self.shape}")
        need(all(-(2**63) <= v < 2**63 for v in self.values), "table: a value does not fit i64")
        return Type("i64", self.dims)

    def role(self, node: Node, dim: str) -> str:
        return "whole"

    def torch(self, s: Any, torch: Any, *x: Any) -> Any:
        return torch.tensor(self.values, dtype=torch.int64, device=s.device).reshape(self.shape)

    def vjp(self, g: "Builder", x: Vals, y: Vals, dy: Grads) -> Cotangents:
        return []

    def onnx(self, e: Any, *x: Any) -> Any:
        return e.table(self)
