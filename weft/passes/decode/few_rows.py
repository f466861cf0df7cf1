"""In a step of decoding, a product of parameters meets the few new rows factor by factor.

before: r = einsum(c [distance width], w [width heads head]); near = einsum(q [batch seq heads head], r)
after:  qw = einsum(q, w) to=[batch seq heads width]; near = einsum(qw, c)

What relative positions project is as long as attention reaches back: for one new row the product with the weight comes
first. The same sums in another order. It does not fire on products of values that depend on anything but parameters, on
one that is read twice, nor where a dim that the first sums over is one of the second's.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

from weft.ir.builder import Builder
from weft.ir.graphs import dce
from weft.ir.ops.primitives import Einsum
from weft.ir.types import Graph, Node, Val


def few_rows(graph: Graph, parameters: Collection[str]) -> Graph:
    """The graph of a step; parameters: names of the inputs that are such."""
    fixed = {v for v in graph.inputs if v.name in parameters}
    uses = Counter(v for n in graph.nodes for v in n.ins) + Counter(graph.outputs)
    made: dict[Val, Node] = {}
    g = Builder()
    env = {v: g.input(v.name, v.type) for v in graph.inputs}
    for n in graph.nodes:
        if fixed.issuperset(n.ins):
            fixed.update(n.outs)
            made |= dict.fromkeys(n.outs, n)
        found = None if n.outs[0] in fixed else _factors(n, made, uses)
        with g.at(n.src):
            if found is None:
                env.update(zip(n.outs, g.many(n.op, *(env[v] for v in n.ins), names=[v.name for v in n.outs])))
                continue
            x, weight, rest = found
            to = [d for d in dict.fromkeys((*x.dims, *weight.dims)) if d in (*rest.dims, *n.outs[0].dims)]
            first = g.einsum(env[x], env[weight], to=to)
            env[n.outs[0]] = g.one(n.op, first, env[rest], names=[n.outs[0].name])
    return dce(replace(g.graph(*(env[v] for v in graph.outputs)), inputs=tuple(env[v] for v in graph.inputs)))


def _factors(n: Node, made: dict[Val, Node], uses: Counter[Val]) -> tuple[Val, Val, Val] | None:
    """The new rows, the factor that they meet in a sum, the other one."""
    if not isinstance(n.op, Einsum) or len(n.ins) != 2:
        return None
    for x, product in (n.ins, n.ins[::-1]):
        of = made.get(product)
        if of is None or not isinstance(of.op, Einsum) or len(of.ins) != 2 or uses[product] > 1:
            continue
        inner = {d for v in of.ins for d in v.dims}.difference(product.dims)
        summed = {*x.dims, *product.dims}.difference(n.outs[0].dims)
        for weight, rest in (of.ins, of.ins[::-1]):
            if inner.isdisjoint(x.dims) and summed and summed.issubset(weight.dims) and summed.isdisjoint(rest.dims):
                return x, weight, rest
    return None
