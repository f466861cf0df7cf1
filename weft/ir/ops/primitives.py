"""The primitive ops. One class is one declaration: fields are attributes, methods are what differs from the default."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import sympy as sp
from sympy.logic.boolalg import Boolean

from weft.ir.formula import local, names_in, normal, operand, symbol
from weft.ir.formula.degree import degrees
from weft.ir.formula.evaluate import op_count
from weft.ir.formula.functions import diff, where
from weft.ir.ops.chunks import Chunk, Unchunk
from weft.ir.ops.movement import Concat, Detach, Gather, Part, Rename, Scatter, Table
from weft.ir.ops.op import Cotangents, Grads, Op, Types, Vals, listed, points
from weft.ir.ops.regions import Loop, Opaque, OpaqueGrad
from weft.ir.types import DTYPES, Dims, Node, Type, Val, need, union

if TYPE_CHECKING:
    from weft.ir.builder import Builder


def with_or_without(dims: Dims, dim: str, has: bool) -> Dims:
    """The dims with one at their head, if they do not have it, or without it."""
    return ((dim, *dims) if dim not in dims else dims) if has else tuple(d for d in dims if d != dim)


@dataclass(frozen=True)
class Einsum(Op):
    """Multiply the operands and sum every dim that `to` leaves out."""

    to: Dims
    absent = "sum"

    def work(self, types: tuple[Type, ...]) -> str:
        """A product, unless one factor has all that is kept: then it is a weighted sum, or sums nothing."""
        sides = [set(t.dims) for t in types]
        if set().union(*sides) == set(self.to):
            return "pointwise"
        if any(s.issuperset(self.to) for s in sides):
            return "rowwise"
        return "grouped" if set(self.to).intersection(*sides) else "contraction"

    def crossed(self, node: Node) -> frozenset[str]:
        return frozenset(node.space).difference(self.to)

    def linear_in(self, operands: int) -> tuple[tuple[int, ...], ...]:
        return tuple((i,) for i in range(operands))

    def refitted(self, rows: str, has: bool) -> Op:
        return replace(self, to=with_or_without(self.to, rows, has))

    def infer(self, *x: Type) -> Types:
        need(x, "einsum needs an operand")
        need(len({t.dtype for t in x}) == 1, f"einsum of different dtypes: {listed(x)}; cast them first")
        need(x[0].floating, f"einsum multiplies floats, found {listed(x)}")
        need(
            set(self.to) <= set(union(*(t.dims for t in x))),
            f"einsum cannot make [{' '.join(self.to)}] from {listed(x)}",
        )
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
    core = "pointwise"

    def __post_init__(self) -> None:
        object.__setattr__(self, "lets", tuple(normal(e) for e in self.lets))
        object.__setattr__(self, "exprs", tuple(normal(e) for e in self.exprs))

    def infer(self, *x: Type) -> Types:
        need(self.dtype in DTYPES, f"map to unknown dtype {self.dtype!r}; the dtypes are {' '.join(DTYPES)}")
        lost = set(union(*(t.dims for t in x))) - set(self.to)
        need(not lost, f"map to [{' '.join(self.to)}] would lose {' '.join(sorted(lost))} of {listed(x)}")
        need(self.exprs, "map without a formula")
        ready = {f"_{i}" for i in range(len(x))}
        used: set[str] = set()
        for i, e in enumerate((*self.lets, *self.exprs)):
            names = names_in(e)
            for n in sorted(names):
                if n.startswith("i_"):
                    need(n[2:] in self.to, f"map has no coordinate {n}: it goes to [{' '.join(self.to)}]")
                elif not n.startswith("n_"):
                    need(n in ready, f"map formula reads {n}, which is no operand or earlier let")
            used |= names
            ready |= {f"_t{i}"} if i < len(self.lets) else set()
        idle = sorted(ready - used)
        need(not idle, f"map never reads {', '.join(idle)}")
        for e in self.exprs:
            logical = isinstance(e, Boolean) and not e.is_Symbol
            need(self.dtype == "bool" or not logical, f"map of a condition has dtype bool, not {self.dtype}")
        return (Type(self.dtype, self.to),) * len(self.exprs)

    @property
    def symbols(self) -> set[str]:
        """The names that the formulas read."""
        return set[str]().union(*map(names_in, (*self.lets, *self.exprs)))

    def replaced(self, by: Mapping[Any, Any]) -> "Map":
        """The map with symbols of its formulas replaced."""
        lets, exprs = (tuple(e.xreplace(by) for e in some) for some in (self.lets, self.exprs))
        return replace(self, lets=lets, exprs=exprs)

    def coordinates(self, node: Node) -> tuple[str, ...]:
        return tuple(n[2:] for n in sorted(self.symbols) if n.startswith("i_"))

    def refitted(self, rows: str, has: bool) -> Op:
        return replace(self, to=with_or_without(self.to, rows, has))

    def mentions(self, types: tuple[Type, ...], dim: str) -> bool:
        return not self.symbols.isdisjoint((f"i_{dim}", f"n_{dim}"))

    def step(self, s: Any, n: Node, ins: Sequence[Any]) -> Iterable[Any]:
        """The coordinate becomes the position; a formula in the length depends on positions that are not there yet."""
        if s.in_slots(ins):
            return s.same(n, ins)
        if f"n_{s.time}" in self.symbols:
            raise s.refusal(n, f"depends on the length along {s.time}")
        if f"i_{s.time}" not in self.symbols:
            return s.same(n, ins)
        placed = self.replaced({symbol(f"i_{s.time}"): operand(len(ins))})
        return s.same(replace(n, op=placed), [*ins, s.fed.at])

    def unplaced(self, ins: Sequence[Val], at: Val, time: str) -> tuple[Op, list[Val]]:
        if at not in ins:
            return self, list(ins)
        place = ins.index(at)
        order = {operand(i): operand(i - (i > place)) for i in range(len(ins))} | {operand(place): symbol(f"i_{time}")}
        return self.replaced(order), [v for v in ins if v != at]

    def linear(self) -> bool:
        """A sum of operands, and nothing else."""
        e: Any = self.exprs[0]
        if self.lets or len(self.exprs) > 1 or self.dtype in ("i64", "bool"):
            return False
        names: Any = e.free_symbols
        return bool(names) and all(v.name[0] == "_" for v in names) and e == sp.Add(*names)

    def degrees(self, ins: Sequence[int], results: int) -> list[int]:
        return degrees(self.lets, self.exprs, ins) if any(ins) else [0] * results

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
            got |= dict(zip(live, g.maps([rules[i] for i in live], {**xs, **d}, let=lets, to=self.to)))
        return [g.cast(g.reduce(got[i], to=v.dims), v.dtype) if i in got else None for i, v in enumerate(x)]

    def reverse(self, seeds: Sequence[str | None]) -> tuple[dict[sp.Symbol, Any], dict[str, Any]]:
        """The cotangent of every symbol, and all lets with their cotangents `d_tk`, for seeds named by result.

        A let that a `where` has not chosen has cotangent 0, and gives 0 on whatever its slope is there."""
        bars: dict[sp.Symbol, Any] = {}
        lets: dict[str, Any] = {f"_t{i}": e for i, e in enumerate(self.lets)}

        def spread(e: Any, seed: str, chosen: bool = False) -> None:
            for v in sorted(e.free_symbols, key=str):
                if (slope := diff(e, v)) != 0:
                    part = symbol(seed) * slope
                    part = where(sp.Ne(symbol(seed), 0), part, 0) if chosen and slope.free_symbols else part
                    bars[v] = bars.get(v, sp.S.Zero) + part

        for e, seed in zip(self.exprs, seeds):
            if seed is not None:
                spread(e, seed)
        for i in reversed(range(len(self.lets))):
            bar = normal(bars.get(local(i), sp.S.Zero))
            if bar != 0:
                lets[f"d_t{i}"] = bar
                spread(self.lets[i], f"d_t{i}", bar.has(where))
        return {v: normal(e) for v, e in bars.items()}, lets


@dataclass(frozen=True)
class Reduce(Op):
    """sum, max or argmax over every dim that `to` leaves out; the results are permuted to the order of `to`."""

    to: Dims
    kind: str = "sum"
    core = "rowwise"

    def crossed(self, node: Node) -> frozenset[str]:
        return frozenset(node.space).difference(self.to)

    @property
    def absent(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return {"sum": "sum", "max": "max"}.get(self.kind, "whole")

    def infer(self, *x: Type) -> Types:
        need(len(x) == 1, f"reduce takes one operand, found {len(x)}")
        need(self.kind in ("sum", "max", "argmax"), f"reduce knows sum, max and argmax, not {self.kind!r}")
        need(set(self.to) <= set(x[0].dims), f"reduce cannot make [{' '.join(self.to)}] from {x[0]}")
        need(
            self.kind != "argmax" or len(x[0].dims) == len(self.to) + 1,
            f"argmax is over one dim, found {x[0]} to {self.to}",
        )
        need(x[0].dtype != "bool", "reduce of conditions: map them to numbers first")
        return Type("i64" if self.kind == "argmax" else x[0].dtype, self.to)

    def linear(self) -> bool:
        return self.kind == "sum"

    def refitted(self, rows: str, has: bool) -> Op:
        return replace(self, to=with_or_without(self.to, rows, has))

    def flops(self, node: Node) -> sp.Expr:
        return points(node.space)

    def torch(self, s: Any, torch: Any, *x: Any) -> Any:
        over = [i for i, n in enumerate(s.types[0].dims) if n not in self.to]
        left = tuple(n for n in s.types[0].dims if n in self.to)
        out = x[0]
        if over:
            out = (
                torch.argmax(out, over[0])
                if self.kind == "argmax"
                else (torch.sum if self.kind == "sum" else torch.amax)(out, over)
            )
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


PRIMITIVES: tuple[type[Op], ...] = (
    *(Einsum, Map, Reduce, Gather, Scatter, Rename, Concat, Part, Chunk, Unchunk, Detach, Table),
    *(Loop, Opaque, OpaqueGrad),
)
