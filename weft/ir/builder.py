"""The builder: appends nodes to a graph. Every append infers the types, so a built graph is a verified one."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import sympy as sp
from sympy.logic.boolalg import Boolean

from weft.ir.formula import local, normal, operand, parse, symbol
from weft.ir.graphs import dce
from weft.ir.ops import primitives as P
from weft.ir.ops.op import Op, body_of, op_name, tupled
from weft.ir.types import Decision, Dims, Graph, Node, Type, Val, checked, need, promote, union

Formula = str | int | sp.Basic
Names = str | Iterable[str]


def dims_of(names: Names) -> Dims:
    """ "batch seq" or an iterable of names -> dims."""
    return tuple(names.split() if isinstance(names, str) else names)


def _read(f: Formula, names: Sequence[str] = ()) -> Any:
    return parse(f, names, open=True) if isinstance(f, str) else normal(f)


class Builder:
    """`one(op, *operands)` appends an op with one result, `many` any op; a primitive also has its method."""

    def __init__(self, src: str = "") -> None:
        self.inputs: list[Val] = []
        self.nodes: list[Node] = []
        self.src = src
        self._used: set[str] = set()
        self._next: dict[str, int] = {}

    def fresh(self, stem: str) -> str:
        """`stem`, or `stem_1`, `stem_2`, .. when it is taken."""
        name, k = stem, self._next.get(stem, 1)
        while name in self._used:
            name, k = f"{stem}_{k}", k + 1
        self._next[stem] = k
        self._used.add(name)
        return name

    @contextmanager
    def at(self, src: str) -> Generator["Builder"]:
        """Nodes appended inside come from `src` ("spec.yaml:14"); an empty `src` changes nothing."""
        before, self.src = self.src, src or self.src
        try:
            yield self
        finally:
            self.src = before

    def body(self) -> "Builder":
        """A builder of another graph, for the body of a loop: nothing of this one is in it, nor its `src`."""
        return Builder()

    def input(self, name: str, type_: Type) -> Val:
        self.inputs.append(checked(Val(self.fresh(name), type_)))
        return self.inputs[-1]

    def many(self, op: Op, *ins: Val, names: Sequence[str] | None = None) -> tuple[Val, ...]:
        """Append `op`; raises VerifyError when the operands do not fit. names: wanted names of the results."""
        types = tupled(op.infer(*(v.type for v in ins)))
        stems = names or [op_name(type(op))] * len(types)
        outs = tuple(checked(Val(self.fresh(n), t)) for n, t in zip(stems, types, strict=True))
        self.nodes.append(Node(op, tuple(ins), outs, self.src))
        return outs

    def one(self, op: Op, *ins: Val, names: Sequence[str] | None = None) -> Val:
        """Append an op that has one result."""
        outs = self.many(op, *ins, names=names)
        need(len(outs) == 1, f"{op_name(type(op))} has {len(outs)} results: use Builder.many")
        return outs[0]

    def add(self, op: Op, *ins: Val, names: Sequence[str] | None = None) -> Any:
        """Append `op`: its result, or the tuple of its results when it has several."""
        outs = self.many(op, *ins, names=names)
        return outs[0] if len(outs) == 1 else outs

    def inline(
        self, graph: Graph, args: Sequence[Val], expand: bool = False, given: Mapping[str, Val] | None = None
    ) -> tuple[Val, ...]:
        """Replay a graph here on other operands, names and sources kept.

        expand: composites (calls too) become what they mean. given: values, by name, not to compute again."""
        env = {p.name: a for p, a in zip(graph.inputs, args, strict=True)} | dict(given or {})
        for n in graph.nodes:
            if all(v.name in env for v in n.outs):
                continue
            ins = tuple(env[v.name] for v in n.ins)
            with self.at(n.src):
                if expand and (meaning := n.op.opened(tuple(v.type for v in ins))) is not None:
                    outs = self.inline(meaning, ins, True)
                else:
                    op = _flattened(n.op) if expand else n.op
                    outs = self.many(op, *ins, names=[v.name for v in n.outs])
            env = dict(zip((v.name for v in n.outs), outs)) | env
        return tuple(env[v.name] for v in graph.outputs)

    def graph(self, *outputs: Val, decisions: tuple[Decision, ...] = ()) -> Graph:
        return Graph(tuple(self.inputs), tuple(self.nodes), tuple(outputs), decisions)

    def einsum(self, *x: Val, to: Names) -> Val:
        """Multiply the operands, sum every dim that `to` leaves out."""
        return self.one(P.Einsum(dims_of(to)), *x)

    def map(
        self,
        *formulas: Formula,
        to: Names | None = None,
        dtype: str | None = None,
        let: Mapping[str, Formula] | None = None,
        names: Sequence[str] | None = None,
        **operands: Val,
    ) -> Any:
        """g.map("x * sigmoid(w)", x=x, w=w): formulas over named operands, lets, coordinates i_dim and sizes n_dim.

        One formula: a Val, several: a tuple. See `maps`."""
        outs = self.maps(formulas, operands, to=to, dtype=dtype, let=let, names=names)
        return outs[0] if len(formulas) == 1 else outs

    def maps(
        self,
        formulas: Iterable[Formula],
        operands: Mapping[str, Val] | None = None,
        *,
        to: Names | None = None,
        dtype: str | None = None,
        let: Mapping[str, Formula] | None = None,
        names: Sequence[str] | None = None,
        **more: Val,
    ) -> tuple[Val, ...]:
        """The values of formulas over operands by name (in `operands` or as keywords), always a tuple.

        Operands and lets that no formula uses are dropped. `to` defaults to the union of the operands' dims, `dtype` to
        bool for conditions, else to the widest float operand's, else f32. names: of the results."""
        given = {**(operands or {}), **more}
        known = (*given, *(let or ()))
        for n in known:
            need(n[:2] not in ("i_", "n_"), f"{n} cannot be an operand or a let: i_ and n_ are coordinates and sizes")
        exprs = [_read(f, known) for f in formulas]
        lets = {symbol(k): _read(f, known) for k, f in (let or {}).items()}
        used: set[Any] = set().union(*(e.free_symbols for e in exprs))
        for k in reversed(lets):
            used |= lets[k].free_symbols if k in used else set()
        live = {symbol(k): v for k, v in given.items() if symbol(k) in used}
        lets = {k: e for k, e in lets.items() if k in used}
        space = union(*(v.dims for v in live.values())) if to is None else dims_of(to)
        if dtype is None:
            conditions = all(isinstance(e, Boolean) and not e.is_Symbol for e in exprs)
            dtype = "bool" if exprs and conditions else promote(*(v.dtype for v in live.values()))
        place = {k: operand(i) for i, k in enumerate(live)} | {k: local(i) for i, k in enumerate(lets)}
        placed, outs = (tuple(e.xreplace(place) for e in some) for some in (lets.values(), exprs))
        return self.many(P.Map(placed, outs, space, dtype), *live.values(), names=names)

    def reduce(self, x: Val, to: Names, kind: str = "sum") -> Val:
        """sum, max or argmax over every dim of x that `to` leaves out."""
        left = dims_of(to)
        return x if left == x.dims and kind != "argmax" else self.one(P.Reduce(left, kind), x)

    def gather(self, table: Val, *idx: Val, at: Names) -> Val:
        """table at coordinates: dim at[k] is replaced by index k; out of range reads 0."""
        return self.one(P.Gather(dims_of(at)), table, *idx)

    def scatter(self, x: Val, *idx: Val, at: Names, to: Names) -> Val:
        """Add x into zeros[to] at the coordinates; out of range is dropped."""
        return self.one(P.Scatter(dims_of(at), dims_of(to)), x, *idx)

    def rename(self, x: Val, old: str, new: str) -> Val:
        return self.one(P.Rename(old, new), x)

    def concat(self, *x: Val, dims: Names, new: str) -> Val:
        """Join along dims[k] of operand k under the name `new`."""
        return self.one(P.Concat(dims_of(dims), new), *x)

    def part(self, x: Val, old: str, new: str, start: Formula = 0) -> Val:
        """The n_new coordinates of `old` from `start` on, under the name `new`."""
        return self.one(P.Part(old, new, _read(start)), x)

    def detach(self, x: Val) -> Val:
        return self.one(P.Detach(), x)

    def table(self, values: Iterable[int], dims: Names, shape: Sequence[int]) -> Val:
        """A constant i64 tensor, row-major."""
        return self.one(P.Table(tuple(values), dims_of(dims), tuple(shape)))

    def expand(self, x: Val, to: Names) -> Val:
        """x repeated along the dims of `to` it lacks, in the order of `to`."""
        return x if dims_of(to) == x.dims else self.map("x", x=x, to=to, dtype=x.dtype)

    def zeros(self, v: Val) -> Val:
        """Zeros of v's type."""
        return self.map(0, to=v.dims, dtype=v.dtype)

    def cast(self, x: Val, dtype: str) -> Val:
        return x if x.dtype == dtype else self.map("x", x=x, to=x.dims, dtype=dtype)

    def mean(self, x: Val, over: Names) -> Val:
        out = dims_of(over)
        total = self.reduce(x, to=[n for n in x.dims if n not in out])
        return self.map(parse("x") / sp.Mul(*(symbol(f"n_{n}") for n in out)), x=total, dtype=x.dtype)

    def loop(self, dim: str, body: Graph, carries: int, *ins: Val, reverse: bool = False) -> tuple[Val, ...]:
        """Final carries, then stacked outputs, then the carries as they were before each step."""
        return self.many(P.Loop(dim, body, carries, reverse), *ins)

    def scan(
        self,
        along: str,
        state: Mapping[str, tuple[Formula, Val]],
        out: Mapping[str, Formula],
        let: Mapping[str, Formula] | None = None,
        reverse: bool = False,
        operands: Mapping[str, Val] | None = None,
        to: Names | None = None,
        dtype: str | None = None,
        **more: Val,
    ) -> dict[str, Val]:
        """A recurrent cell by formula, elementwise, along a dim.

        state: name -> (next value, initial value); out: name -> formula; operands: by keyword or in `operands`. Those
        that have `along` are read step by step, others shared. to, dtype: of a step's results, as for `maps`. Gives
        final states and stacked outputs by name."""
        given = {**(operands or {}), **more}
        b = Builder(self.src)
        vals = {n: b.input(n, init.type) for n, (_, init) in state.items()}
        vals |= {n: b.input(n, v.type.but(d for d in v.dims if d != along)) for n, v in given.items()}
        names = [*state, *out]
        formulas = [*(f for f, _ in state.values()), *out.values()]
        space = union(*(v.dims for v in vals.values())) if to is None else dims_of(to)
        cell = b.graph(*b.maps(formulas, vals, let=let, to=space, dtype=dtype, names=names))
        starts = [v for _, v in state.values()]
        return dict(zip(names, self.loop(along, cell, len(state), *starts, *given.values(), reverse=reverse)))

    def repeat(
        self, along: str, layer: Callable[..., Val], carry: Val, stacked: Sequence[Val], shared: Sequence[Val] = ()
    ) -> Val:
        """layer(b, carry, *stacked, *shared) along a stack: operands that have `along` are one slice per layer."""
        b = Builder(self.src)
        ins = [b.input(v.name, v.type.but(d for d in v.dims if d != along)) for v in (carry, *stacked, *shared)]
        return self.loop(along, b.graph(layer(b, *ins)), 1, carry, *stacked, *shared)[0]


def rebuilt(graph: Graph, rule: Callable[[Builder, Node, list[Val]], Sequence[Any] | None]) -> Graph:
    """The graph with what `rule` appends in place of each node, on what the node's operands have become; None: the node
    as it is. Names, sources and decisions are kept."""
    g = Builder()
    env = {v: g.input(v.name, v.type) for v in graph.inputs}
    for n in graph.nodes:
        ins = [env[v] for v in n.ins]
        with g.at(n.src):
            outs = rule(g, n, ins)
            outs = g.many(n.op, *ins, names=[v.name for v in n.outs]) if outs is None else outs
        env.update(zip(n.outs, outs, strict=True))
    return g.graph(*(env[v] for v in graph.outputs), decisions=graph.decisions)


def _flattened(op: Any) -> Any:
    """An op whose body, if it has one, is flat."""
    body = body_of(op)
    return op if body is None else replace(op, body=flatten(body))


def flatten(graph: Graph) -> Graph:
    """Every composite and call replaced by its meaning, inside loops too."""
    g = Builder()
    ins = [g.input(v.name, v.type) for v in graph.inputs]
    return dce(g.graph(*g.inline(graph, ins, expand=True), decisions=graph.decisions))
