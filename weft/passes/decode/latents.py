"""Keys and values that are products of something narrower: that is what a step keeps, and new queries meet it.

before: k = einsum(c, wk) to=[batch seq heads head]; v = einsum(c, wv); o = attend(q, rename(k, ..), rename(v, ..))
kept:   c_key = rename(c, seq -> key); k = einsum(c_key, wk) to=[batch key heads head]; .. o = attend(q, k, v)
step:   qc = einsum(q, wk) to=[batch seq heads rank]; oc = attend(qc, c_key, c_key); o = einsum(oc, wv)

The same sums in another order: q·(wk c) is (wk q)·c, and what weighs keys sums over c what it would over wv c. A key
may be joined of parts, some of which all heads share and some of which are products: what they are made of is joined,
kept as one row, and in a step stands for keys and values both, of which a result's part is read. A prompt is computed
as it was, with keys and values made of what is kept.

It fires where a position then leaves fewer bytes and a step takes no longer, by the target's prices for attention alone
at the longest sequence; what the weights take is the same. It does not fire on keys or values that anything else is
done to (a bias, a norm, positions), nor where heads have parts of their own that are no product.

Source: the absorbed form of multi-head latent attention (DeepSeek-V2, Liu et al. 2024, section 2.1.2).
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from math import prod
from typing import Any

import sympy as sp

from weft.ir import library
from weft.ir.builder import Builder
from weft.ir.formula import symbol
from weft.ir.graphs import dce
from weft.ir.ops.primitives import Concat, Einsum, Part, Rename
from weft.ir.program import Size
from weft.ir.types import ITEMSIZE, Decision, Graph, Node, Val
from weft.targets import Target


@dataclass(frozen=True, slots=True)
class _Factor:
    """A part of keys along `dim`, or values: `kept` times `weight` over `rank`, or `kept` itself, shared by heads."""

    dim: str
    kept: Val
    weight: Val | None = None
    rank: str = ""

    @property
    def own(self) -> str:
        """The dim of `kept` that is no row."""
        return self.rank or self.dim


@dataclass(frozen=True, slots=True)
class _Factors:
    """What an attend's keys are joined of, and its values' product."""

    keys: tuple[_Factor, ...]
    values: _Factor

    @property
    def kept(self) -> tuple[Val, ...]:
        return tuple(dict.fromkeys(f.kept for f in (*self.keys, self.values)))

    @property
    def apart(self) -> bool:
        """Are values of something that no part of a key is of?"""
        return self.values.kept not in [f.kept for f in self.keys]


@dataclass(frozen=True, slots=True)
class _Origins:
    """Where the values of a graph come from, and which are made of parameters alone."""

    made: Mapping[Val, Node]
    fixed: Collection[Val]

    @classmethod
    def of(cls, graph: Graph, parameters: Collection[str]) -> "_Origins":
        fixed = {v for v in graph.inputs if v.name in parameters}
        for n in graph.nodes:
            if fixed.issuperset(n.ins):
                fixed.update(n.outs)
        return cls({v: n for n in graph.nodes for v in n.outs}, fixed)

    def factors(self, op: library.Attend, q: Val, k: Val, v: Val) -> _Factors | None:
        """Keys and values as products, None where they are none."""
        keys = tuple(self._factor(x, d) for x, d in self.parts(k, op.contract))
        own = [d for d in v.dims if d != op.over and (d == op.contract or d not in q.dims)]
        values = self._factor(v, own[0]) if len(own) == 1 else None
        if values is None or values.weight is None or all(f.weight is None for f in keys):
            return None
        alike = {(frozenset(f.kept.dims) - {f.own}, f.kept.dtype) for f in (*keys, values)}
        return _Factors(keys, values) if len(alike) == 1 else None

    def parts(self, x: Val, dim: str) -> list[tuple[Val, str]]:
        """What a value is joined of along `dim`, with the dim of each."""
        n = self.made.get(x)
        dims = () if n is None else n.op.moves()[:-1]
        return list(zip(n.ins, dims)) if n is not None and n.op == Concat(dims, dim) else [(x, dim)]

    def whole(self, found: _Factors) -> Val | None:
        """The value that has the parts of keys as its own, one after another."""
        if len(found.keys) == 1:
            return found.keys[0].kept
        nodes = [self.made.get(f.kept) for f in found.keys]
        if nodes[0] is None or len(nodes[0].ins) != 1:
            return None
        (joined,), start = nodes[0].ins, sp.S.Zero
        for f, n in zip(found.keys, nodes):
            dim = next((d for d in joined.dims if d not in f.kept.dims), "")
            if n is None or n.ins != (joined,) or n.op != Part(dim, f.own, start):
                return None
            start = start + symbol(f"n_{f.own}")
        return joined

    def _factor(self, x: Val, dim: str) -> _Factor:
        """A part of keys, or values, as a product over one dim of something with a parameter; else as what is repeated
        over heads."""
        n = self.made.get(x)
        if n is not None and n.op == Einsum(x.dims) and len(n.ins) == 2:
            for kept, weight in (n.ins, n.ins[::-1]):
                over = {*kept.dims, *weight.dims}.difference(x.dims)
                if weight in self.fixed and kept not in self.fixed and len(over) == 1 and dim in weight.dims:
                    (rank,) = over
                    if rank in kept.dims and rank in weight.dims and dim not in kept.dims:
                        return _Factor(dim, kept, weight, rank)
        return _Factor(dim, n.ins[0] if n is not None and _repeats(n) else x)


def _repeats(n: Node) -> bool:
    """Is a node its operand, repeated along more dims?"""
    alike = len(n.ins) == 1 and n.ins[0].dtype == n.outs[0].dtype and set(n.ins[0].dims) <= set(n.outs[0].dims)
    return alike and n.op.core == "pointwise" and n.op.linear()


@dataclass(frozen=True, slots=True)
class KeptRows:
    """What was decided about an attend. saved: bytes of a position, against keys and values; 0 where these are kept."""

    saved: int


@dataclass(frozen=True, slots=True)
class NarrowedGraph:
    """graph: of a block, with keys and values made along the keys, of what a step keeps. sizes: of its new dims."""

    graph: Graph
    sizes: Mapping[str, Size]
    decisions: tuple[Decision, ...]


def narrowed(
    graph: Graph, sizes: Mapping[str, int], time: str, parameters: Collection[str], target: Target
) -> NarrowedGraph:
    """The graph of a block that decodes along `time`. sizes[time]: the most positions there will be."""
    origins, decisions = _Origins.of(graph, parameters), list[Decision]()
    chosen: dict[Node, _Factors] = {}
    for n in graph.nodes:
        of = n.op.attention
        if of is None or of is not n.op or of.query != time:
            continue
        names = [origins.made.get(v) for v in n.ins[1:3]]
        if any(b is None or b.op != Rename(time, of.over) for b in names):
            continue
        k, v = (b.ins[0] for b in names if b is not None)
        found = origins.factors(replace(of, over=time), n.ins[0], k, v)
        if found is None or any(time not in x.dims for x in found.kept):
            continue
        fires, decision = _priced(n, found, (k, v), sizes, time, target)
        decisions.append(decision)
        chosen |= {n: found} if fires else {}
    made = _Narrowing(origins, time, {*sizes}).run(graph, chosen) if chosen else (graph, {})
    return NarrowedGraph(*made, tuple(decisions))


def _priced(
    n: Node, found: _Factors, plain: tuple[Val, Val], sizes: Mapping[str, int], time: str, target: Target
) -> tuple[bool, Decision]:
    """Does it gain, and what that was decided on: bytes of a position of a sequence, FLOPs and seconds of a new one."""
    op: Any = n.op
    rows = prod(sizes[d] for d in n.ins[0].dims if d not in ("batch", time, op.contract))

    def cost(kept: Iterable[Val], dims: int) -> tuple[int, int, float]:
        left = sum(prod(sizes[d] for d in v.dims if d not in ("batch", time)) * ITEMSIZE[v.dtype] for v in kept)
        flops = 2 * rows * dims * sizes[time]
        return left, flops, target.seconds(left * sizes[time], flops, n.ins[0].dtype, matrix=True)

    key, value = sum(sizes[f.own] for f in found.keys), sizes[found.values.rank]
    wide = cost(plain, sizes[op.contract] + sizes[found.values.dim])
    narrow = cost(found.kept, key + (value if found.apart else key))
    fires = narrow[0] < wide[0] and narrow[2] <= wide[2]
    told = [
        (("bytes a position", left), ("FLOPs a step", flops), ("microseconds", round(1e6 * seconds, 3)))
        for left, flops, seconds in (wide, narrow)
    ]
    names = ["keys and values", " and ".join(v.name for v in found.kept)]
    one, other = (1, 0) if fires else (0, 1)
    why = "more bytes" if fires or narrow[0] >= wide[0] else "slower"
    rejected = ((f"keep {names[other]}", why, told[other]),)
    saved = KeptRows(wide[0] - narrow[0] if fires else 0)
    choice = f"keep {names[one]}"
    return fires, Decision("latents", n.outs[0].name, choice, "numerics", told[one], rejected, n.src, saved)


class _Narrowing:
    """A graph that is written with keys and values of what is kept. taken: the dims that there are."""

    def __init__(self, origins: _Origins, time: str, taken: set[str]) -> None:
        self.origins, self.time, self.taken = origins, time, taken
        self.g, self.sizes = Builder(), dict[str, Size]()

    def run(self, graph: Graph, chosen: Mapping[Node, _Factors]) -> tuple[Graph, Mapping[str, Size]]:
        g = self.g
        self.env = {v: g.input(v.name, v.type) for v in graph.inputs}
        for n in graph.nodes:
            with g.at(n.src):
                ins = [self.env[v] for v in n.ins]
                if n in chosen:
                    ins[1:3] = self.keyed(n, chosen[n])
                self.env.update(zip(n.outs, g.many(n.op, *ins, names=[v.name for v in n.outs])))
        made = g.graph(*(self.env[v] for v in graph.outputs))
        return dce(replace(made, inputs=tuple(self.env[v] for v in graph.inputs))), self.sizes

    def keyed(self, n: Node, found: _Factors) -> list[Val]:
        """Keys and values of an attend, of what is kept of them."""
        op: Any = n.op
        kept = self.kept(found, op.over)
        return [self.again(self.origins.made[v].ins[0], op.over, kept) for v in n.ins[1:3]]

    def kept(self, found: _Factors, key: str) -> dict[Val, Val]:
        """What is kept, along the keys: of the parts of keys, one row of all."""
        g = self.g
        named = lambda x: g.one(Rename(self.time, key), x, names=["kept"])  # noqa: E731
        own = dict.fromkeys((f.kept, f.own) for f in found.keys)
        rows = {(found.values.kept, found.values.own)} if found.apart else set[tuple[Val, str]]()
        if len(own) == 1:
            return {v: named(self.env[v]) for v, _ in (*own, *rows)}
        dims = tuple(d for _, d in own)
        new = next(d for i in count() if (d := f"kept_{i}" if i else "kept") not in self.taken)
        self.taken.add(new)
        self.sizes[new] = sp.Add(*(symbol(f"n_{d}") for d in dims))
        batch = [d for d in found.values.kept.dims if d not in (self.time, found.values.own)]
        each = [g.expand(self.env[v], to=(*batch, self.time, d)) for v, d in own]
        whole, start = named(g.one(Concat(dims, new), *each, names=["latents"])), sp.S.Zero
        made: dict[Val, Val] = {}
        for v, d in own:
            made[v], start = g.part(whole, new, d, start), start + symbol(f"n_{d}")
        return made | {v: named(self.env[v]) for v, _ in rows}

    def again(self, v: Val, key: str, kept: Mapping[Val, Val]) -> Val:
        """A value along the keys."""
        if v in kept:
            return kept[v]
        n, to = self.origins.made[v], [key if d == self.time else d for d in v.dims]
        ins = [self.env[x] if x in self.origins.fixed else self.again(x, key, kept) for x in n.ins]
        if _repeats(n):
            return self.g.expand(ins[0], to=to)
        return self.g.one(Einsum(tuple(to)) if n.op == Einsum(v.dims) else n.op, *ins, names=[v.name])


def absorbed(graph: Graph, parameters: Collection[str]) -> Graph:
    """The graph of a step with the weights of kept keys and values at the queries and the results."""
    origins, g = _Origins.of(graph, parameters), Builder()
    env = {v: g.input(v.name, v.type) for v in graph.inputs}
    for n in graph.nodes:
        of = n.op.attention
        found = origins.factors(of, *n.ins[:3]) if of is not None and of is n.op else None
        keys = None if found is None else origins.whole(found)
        with g.at(n.src):
            if of is not None and found is not None and keys is not None:
                env.update(zip(n.outs, _met(g, env, n, of, found, keys, origins)))
            else:
                env.update(zip(n.outs, g.many(n.op, *(env[v] for v in n.ins), names=[v.name for v in n.outs])))
    return dce(replace(g.graph(*(env[v] for v in graph.outputs)), inputs=tuple(env[v] for v in graph.inputs)))


def _met(
    g: Builder, env: Mapping[Val, Val], n: Node, op: library.Attend, found: _Factors, keys: Val, origins: _Origins
) -> tuple[Val, Val]:
    """An attend whose queries meet what is kept, as one row `keys`."""
    rows = tuple(d for d in n.ins[0].dims if d != op.contract)
    rest = tuple(d for d in found.values.kept.dims if d != found.values.own)
    (contract,) = {*keys.dims}.difference(rest)
    queries = [
        q if f.weight is None else g.einsum(q, env[f.weight], to=(*rows, f.own))
        for f, q in zip(found.keys, _queries(g, env, n, op, found, origins))
    ]
    dims = tuple(f.own for f in found.keys)
    q = queries[0] if len(queries) == 1 else g.concat(*queries, dims=dims, new=contract)
    k = g.expand(env[keys], to=(*rest, contract))
    v = g.expand(env[found.values.kept], to=(*rest, found.values.own)) if found.apart else k
    names = [f"{n.outs[0].name}_kept", n.outs[1].name]
    out, lse = g.many(replace(op, contract=contract), q, k, v, *(env[x] for x in n.ins[3:]), names=names)
    if not found.apart and len(queries) > 1:
        before = next(i for i, f in enumerate(found.keys) if f.kept == found.values.kept)
        start = sp.Add(*(symbol(f"n_{d}") for d in dims[:before]))
        out = g.part(out, contract, found.values.own, start)
    assert found.values.weight is not None
    return g.one(Einsum(n.outs[0].dims), out, env[found.values.weight], names=[n.outs[0].name]), lse


def _queries(
    g: Builder, env: Mapping[Val, Val], n: Node, op: library.Attend, found: _Factors, origins: _Origins
) -> Iterator[Val]:
    """The queries in the parts that keys have."""
    dims = [f.dim for f in found.keys]
    made = origins.parts(n.ins[0], op.contract)
    if [d for _, d in made] == dims:
        yield from (env[x] for x, _ in made)
        return
    start: Any = sp.S.Zero
    for d in dims:
        yield g.part(env[n.ins[0]], op.contract, d, start)
        start = start + symbol(f"n_{d}")
