"""The primitive ops. One class is one declaration: fields are attributes, methods are what differs from the default."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import sympy as sp
from sympy.logic.boolalg import Boolean

from weft.ir.evaluate import op_count
from weft.ir.formula import local, normal, operand, symbol
from weft.ir.functions import diff
from weft.ir.op import Composite, Cotangents, Op, Types, op_name, points, size
from weft.ir.types import DTYPES, Dims, Graph, Node, Type, Val, need, union

if TYPE_CHECKING:
    from weft.ir.builder import Builder

Vals = tuple[Val, ...]
Grads = Sequence[Val | None]


def _listed(x: tuple[Type, ...]) -> str:
    return ", ".join(map(str, x)) or "nothing"


@dataclass(frozen=True)
class Einsum(Op):
    """Multiply the operands and sum every dim that `to` leaves out."""

    to: Dims
    absent = "sum"

    def infer(self, *x: Type) -> Types:
        need(x, "einsum needs an operand")
        need(len({t.dtype for t in x}) == 1, f"einsum of different dtypes: {_listed(x)}; cast them first")
        need(x[0].floating, f"einsum multiplies floats, found {_listed(x)}")
        need(set(self.to) <= set(union(*(t.dims for t in x))), f"einsum cannot make [{' '.join(self.to)}] from {_listed(x)}")
        return x[0].but(self.to)

    def flops(self, node: Node) -> sp.Expr:
        return points(node.space) * len(node.ins)

    def torch(self, s: Any, torch: Any, *x: Any) -> Any:
        return torch.einsum(s.equation(), *x)

    def vjp(self, g: "Builder", x: Vals, y: Vals, dy: Grads) -> Cotangents:
        out = dy[0]
        assert out is not None
        for i, xi in enumerate(x):
            rest = [out, *x[:i], *x[i + 1 :]]
            have = union(*(v.dims for v in rest))
            d = g.einsum(*rest, to=[n for n in xi.dims if n in have])
            yield g.expand(d, to=xi.dims)  # along a dim that only xi has, its gradient is constant

    def onnx(self, e: Any, *x: Any) -> Any:
        return e.node("Einsum", *x, equation=e.equation())


@dataclass(frozen=True)
class Map(Op):
    """Formulas at every point of `to`.

    `_k` is operand k, broadcast by name; `_tk` the k-th let; `i_d`, `n_d` coordinate and size of dim d. Lets stay lets:
    substituting them would make derivatives grow exponentially. Every result has `dtype`, so a cast is a map. It is
    computed in the widest float dtype of operands and result, at least f32, and rounded once."""

    lets: tuple[sp.Expr, ...]
    exprs: tuple[sp.Expr, ...]
    to: Dims
    dtype: str = "f32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "lets", tuple(normal(e) for e in self.lets))
        object.__setattr__(self, "exprs", tuple(normal(e) for e in self.exprs))

    def infer(self, *x: Type) -> Types:
        need(self.dtype in DTYPES, f"map to unknown dtype {self.dtype!r}; the dtypes are {' '.join(DTYPES)}")
        lost = set(union(*(t.dims for t in x))) - set(self.to)
        need(not lost, f"map to [{' '.join(self.to)}] would lose {' '.join(sorted(lost))} of {_listed(x)}")
        need(self.exprs, "map without a formula")
        ready = {f"_{i}" for i in range(len(x))}
        used: set[str] = set()
        for i, e in enumerate((*self.lets, *self.exprs)):
            names = {v.name for v in e.free_symbols}
            for n in sorted(names):
                if n.startswith("i_"):
                    need(n[2:] in self.to, f"map has no coordinate {n}: it goes to [{' '.join(self.to)}]")
                elif not n.startswith("n_"):
                    need(n in ready, f"map formula reads {n}, which is no operand or earlier let")
            need(_total(e), f"map formula has a Piecewise without a default: {e}")
            used |= names
            ready |= {f"_t{i}"} if i < len(self.lets) else set()
        idle = sorted(ready - used)
        need(not idle, f"map never reads {', '.join(idle)}")
        for e in self.exprs:
            logical = isinstance(e, Boolean) and not e.is_Symbol
            need(self.dtype == "bool" or not logical, f"map of a condition has dtype bool, not {self.dtype}")
        return (Type(self.dtype, self.to),) * len(self.exprs)

    def linear(self) -> bool:
        """A sum of operands, and nothing else."""
        e = self.exprs[0]
        if self.lets or len(self.exprs) > 1 or self.dtype in ("i64", "bool"):
            return False
        names = e.free_symbols
        return bool(names) and all(v.name[0] == "_" for v in names) and e == sp.Add(*names)

    def flops(self, node: Node) -> sp.Expr:
        return op_count((*self.lets, *self.exprs)) * points(self.to)

    def torch(self, s: Any, torch: Any, *x: Any) -> Any:
        return s.formula(self, x)

    def onnx(self, e: Any, *x: Any) -> Any:
        return e.formula(self, x)

    def vjp(self, g: "Builder", x: Vals, y: Vals, dy: Grads) -> Cotangents:
        """Reverse mode over the lets, each differentiated by itself: d(let) becomes a new let."""
        d = {f"dy{j}": v for j, v in enumerate(dy) if v is not None}
        bars, lets = self.reverse([f"dy{j}" if f"dy{j}" in d else None for j in range(len(dy))])
        rules: list[Any] = [bars.get(operand(i), sp.S.Zero) if v.type.floating else sp.S.Zero for i, v in enumerate(x)]
        got = {i: d[e.name] for i, e in enumerate(rules) if e.is_Symbol and e.name in d}  # passes through as it is
        live = [i for i, e in enumerate(rules) if e != 0 and i not in got]
        xs = {f"_{i}": v for i, v in enumerate(x)}
        if live:
            got |= dict(zip(live, g.maps([rules[i] for i in live], let=lets, to=self.to, **xs, **d)))
        return [g.cast(g.reduce(got[i], to=v.dims), v.dtype) if i in got else None for i, v in enumerate(x)]

    def reverse(self, seeds: Sequence[str | None]) -> tuple[dict[sp.Symbol, Any], dict[str, Any]]:
        """The cotangent of every symbol, and all lets with their cotangents `d_tk`, for seeds named by result."""
        bars: dict[sp.Symbol, Any] = {}
        lets: dict[str, Any] = {f"_t{i}": e for i, e in enumerate(self.lets)}

        def spread(e: Any, seed: str) -> None:
            for v in sorted(e.free_symbols, key=str):
                bars[v] = bars.get(v, sp.S.Zero) + symbol(seed) * diff(e, v)

        for e, seed in zip(self.exprs, seeds):
            if seed is not None:
                spread(e, seed)
        for i in reversed(range(len(self.lets))):
            bar = normal(bars.get(local(i), sp.S.Zero))
            if bar != 0:
                lets[f"d_t{i}"] = bar
                spread(self.lets[i], f"d_t{i}")
        return {v: normal(e) for v, e in bars.items()}, lets


def _total(e: Any) -> bool:
    return all(p.args[-1].cond == sp.true for p in e.atoms(sp.Piecewise))


@dataclass(frozen=True)
class Reduce(Op):
    """sum, max or argmax over every dim that `to` leaves out; the results are permuted to the order of `to`."""

    to: Dims
    kind: str = "sum"

    @property
    def absent(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return {"sum": "sum", "max": "max"}.get(self.kind, "whole")

    def infer(self, *x: Type) -> Types:
        need(len(x) == 1, f"reduce takes one operand, found {len(x)}")
        need(self.kind in ("sum", "max", "argmax"), f"reduce knows sum, max and argmax, not {self.kind!r}")
        need(set(self.to) <= set(x[0].dims), f"reduce cannot make [{' '.join(self.to)}] from {x[0]}")
        need(self.kind != "argmax" or len(x[0].dims) == len(self.to) + 1, f"argmax is over one dim, found {x[0]} to {self.to}")
        need(x[0].dtype != "bool", "reduce of conditions: map them to numbers first")
        return Type("i64" if self.kind == "argmax" else x[0].dtype, self.to)

    def linear(self) -> bool:
        return self.kind == "sum"

    def flops(self, node: Node) -> sp.Expr:
        return points(node.space)

    def torch(self, s: Any, torch: Any, *x: Any) -> Any:
        over = [i for i, n in enumerate(s.types[0].dims) if n not in self.to]
        left = tuple(n for n in s.types[0].dims if n in self.to)
        out = x[0]
        if over:
            out = torch.argmax(out, over[0]) if self.kind == "argmax" else (torch.sum if self.kind == "sum" else torch.amax)(out, over)
        return s.align(out, left, self.to)

    def onnx(self, e: Any, *x: Any) -> Any:
        return e.reduce(self, x[0])

    def vjp(self, g: "Builder", x: Vals, y: Vals, dy: Grads) -> Cotangents:
        out = dy[0]
        if self.kind == "argmax" or out is None:
            return [None]
        if self.kind == "sum":
            return [g.expand(out, to=x[0].dims)]
        hit = g.map("where(x == m, 1, 0)", x=x[0], m=y[0], to=x[0].dims, dtype=x[0].dtype)  # ties share the gradient
        return [g.map("dy * hit / n", dy=out, hit=hit, n=g.reduce(hit, to=self.to), to=x[0].dims, dtype=x[0].dtype)]


def _indices(what: str, at: Dims, idx: tuple[Type, ...], dims: Dims, whole: Type) -> None:
    need(at and len(set(at)) == len(at) and set(at) <= set(dims), f"{what}: {whole} has no dims [{' '.join(at)}]")
    need(len(idx) == len(at), f"{what}: {len(at)} dims need {len(at)} indices, found {len(idx)}")
    need(all(t.dtype == "i64" for t in idx), f"{what}: indices are i64, found {_listed(idx)}")


@dataclass(frozen=True)
class Gather(Op):
    """table at coordinates: dim at[k] is replaced by index k; other dims align by name; out of range reads 0."""

    at: Dims
    absent = "sum"  # a shard of the table answers 0 for rows it lacks: answers add up

    def prefer(self, dim: str) -> bool:
        return dim not in self.at

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

    def prefer(self, dim: str) -> bool:
        return dim not in self.at

    def infer(self, *x: Type) -> Types:
        need(x, "scatter needs an operand")
        first, *idx = x
        need(first.floating, f"scatter adds floats, found {first}")
        _indices("scatter", self.at, tuple(idx), self.to, first.but(self.to))
        missing = [n for n in self.to if n not in self.at and n not in union(*(t.dims for t in x))]
        need(not missing, f"scatter cannot make [{' '.join(self.to)}] from {_listed(x)}: no {' '.join(missing)}")
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

    def infer(self, *x: Type) -> Types:
        need(x and len(x) == len(self.dims), f"concat: {len(self.dims)} dims for {len(x)} operands")
        for t, d in zip(x, self.dims):
            need(d in t.dims, f"concat: {t} has no dim {d}")
        need(self.new not in x[0].dims, f"concat: {x[0]} already has a dim {self.new}")
        outs = {t.but(self.new if n == d else n for n in t.dims) for t, d in zip(x, self.dims)}
        need(len(outs) == 1, f"concat: operands differ outside the joined dim: {_listed(x)}")
        return outs.pop()

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

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", normal(self.start))

    def infer(self, *x: Type) -> Types:
        need(len(x) == 1, f"part takes one operand, found {len(x)}")
        need(self.old in x[0].dims, f"part: {x[0]} has no dim {self.old}")
        need(self.new not in x[0].dims, f"part: {x[0]} already has a dim {self.new}")
        need(all(v.name.startswith("n_") for v in self.start.free_symbols), f"part: start is over sizes, found {self.start}")
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


@dataclass(frozen=True)
class Loop(Op):
    """Run `body` along `dim`: carries first, then operands (sliced where they have `dim`, else shared).

    Gives the final carries, the stacked outputs, and the carries as they were before each step (free unless used);
    what is stacked has `dim` first. Layers, time, windows. reverse: from the last coordinate to the first."""

    dim: str
    body: Graph
    carries: int
    reverse: bool = False

    def role(self, node: Node, dim: str) -> str:
        return "sequential" if dim == self.dim else super().role(node, dim)

    def inner(self, t: Type) -> Type:
        """The type of an operand as the body sees it."""
        return t.but(n for n in t.dims if n != self.dim)

    def infer(self, *x: Type) -> Types:
        c, outs = self.carries, [v.type for v in self.body.outputs]
        need(0 <= c <= min(len(x), len(outs)), f"loop: {c} carries, {len(x)} operands, {len(outs)} results of the body")
        want = [v.type for v in self.body.inputs]
        need([self.inner(t) for t in x] == want, f"loop: operands {_listed(x)} do not fit the body's {_listed(tuple(want))}")
        need(all(self.dim not in t.dims for t in x[:c]), f"loop: a carry has the dim {self.dim} of the loop")
        need(list(x[:c]) == outs[:c], f"loop: a carry changes type in the body: {_listed(x[:c])} to {_listed(tuple(outs[:c]))}")
        need(all(self.dim not in t.dims for t in outs), f"loop: the body makes the dim {self.dim} of the loop")
        return (*x[:c], *(t.but((self.dim, *t.dims)) for t in (*outs[c:], *x[:c])))

    def flops(self, node: Node) -> sp.Expr:
        return symbol(f"n_{self.dim}") * sp.Add(*(n.op.flops(n) for n in self.body.nodes))

    def torch(self, s: Any, torch: Any, *x: Any) -> Any:
        return s.loop(self, x)

    def onnx(self, e: Any, *x: Any) -> Any:
        return e.scan(self, x)

    def vjp(self, g: "Builder", x: Vals, y: Vals, dy: Grads) -> Cotangents:
        from weft.ir.loops import loop_vjp

        return loop_vjp(self, g, x, y, dy)


@dataclass(frozen=True)
class Call(Composite):
    """Run `body` once: a block. One nn.Module, one autograd boundary; nothing fuses across it."""

    name: str
    body: Graph

    def meaning(self, types: tuple[Type, ...]) -> Graph:
        want = tuple(v.type for v in self.body.inputs)
        need(types == want, f"call {self.name}: operands {_listed(types)} do not fit the body's {_listed(want)}")
        return self.body

    def expand(self, g: "Builder", *x: Val) -> Vals:
        return g.inline(self.body, x)


@dataclass(frozen=True)
class Grad(Composite):
    """The derivative of a composite, kept as one op.

    Operands: the composite's n, then the cotangents of the results in `have`. Results: the cotangents of its float
    operands."""

    inner: Composite
    n: int
    have: tuple[bool, ...]

    def meaning(self, types: tuple[Type, ...]) -> Graph:
        need(0 < self.n <= len(types), f"grad: {self.n} operands of {op_name(type(self.inner))}, {len(types)} given")
        from weft.ir.op import expansion

        outs = [v.type for v in expansion(self.inner, types[: self.n]).outputs]
        need(len(outs) == len(self.have), f"grad: {len(self.have)} flags for {len(outs)} results")
        want = tuple(t for t, h in zip(outs, self.have) if h)
        need(types[self.n :] == want, f"grad: cotangents {_listed(types[self.n :])}, expected {_listed(want)}")
        return super().meaning(types)

    def expand(self, g: "Builder", *x: Val) -> Vals:
        from weft.ir.derive import backward
        from weft.ir.op import expansion

        own = x[: self.n]
        start = len(g.nodes)
        out = g.inline(expansion(self.inner, tuple(v.type for v in own)), own)
        seeds: dict[Val, Val] = {}
        for v, d in zip([v for v, h in zip(out, self.have) if h], x[self.n :], strict=True):
            seeds[v] = d if v not in seeds else g.map("a + b", a=seeds[v], b=d, to=v.dims, dtype=v.dtype)
        cot = backward(g, g.nodes[start:], seeds)
        return tuple(cot.get(v) or g.zeros(v) for v in own if v.type.floating)


@dataclass(frozen=True)
class Opaque(Op):
    """A wrapped nn.Module that is planned around, never looked into.

    Operands: the module's inputs, then its parameters in the order of `params` (their names in the module). The
    interpreter is given the modules by `key`. No dim of it can be sharded."""

    key: str
    outs: tuple[Type, ...]
    params: tuple[str, ...] = ()

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

    def infer(self, *x: Type) -> Types:
        want = tuple(t for t, h in zip(self.of.outs, self.have) if h)
        need(len(self.have) == len(self.of.outs), f"opaque_grad: {len(self.have)} flags for {len(self.of.outs)} results")
        need(x[self.n :] == want, f"opaque_grad: cotangents {_listed(x[self.n :])}, expected {_listed(want)}")
        return tuple(t for t in x[: self.n] if t.floating)

    def role(self, node: Node, dim: str) -> str:
        return "whole"

    def torch(self, s: Any, torch: Any, *x: Any) -> Any:
        return s.opaque_grad(self, x)


PRIMITIVES = (Einsum, Map, Reduce, Gather, Scatter, Rename, Concat, Part, Detach, Table, Loop, Call, Grad, Opaque, OpaqueGrad)
