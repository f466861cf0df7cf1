"""Forward and backward in one graph."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from weft.ir.backward import backward
from weft.ir.builder import Builder
from weft.ir.graphs import dce, with_gradient
from weft.ir.types import Graph, Val


def joint(graph: Graph, wrt: Iterable[str], named: bool = False) -> Graph:
    """Forward and backward in one graph.

    Inputs: the graph's, then a cotangent `d_name` per float output that can have one. Outputs: the graph's, then those
    of `wrt`. named: the cotangent of every value x is called d_x, where that is free."""
    g = Builder()
    x = [g.input(v.name, v.type) for v in graph.inputs]
    out = g.inline(graph, x)
    seeds: dict[Val, Val] = {}
    live = with_gradient(graph, graph.outputs)
    for v in (v for v, own in zip(out, graph.outputs) if own in live):
        d = g.input(f"d_{v.name}", v.type)
        seeds[v] = d if v not in seeds else g.map("a + b", a=seeds[v], b=d, to=v.dims, dtype=v.dtype)
    cot = backward(g, g.nodes[:], seeds)
    by = {v.name: v for v in x}
    made = dce(g.graph(*out, *(cot.get(by[n]) or g.zeros(by[n]) for n in wrt), decisions=graph.decisions))
    return renamed(made, {d: f"d_{v.name}" for v, d in cot.items()}) if named else made


def renamed(graph: Graph, names: Mapping[Val, str]) -> Graph:
    """The graph with values that nodes make called otherwise, as far as the names are free."""
    taken = {v.name for v in graph.inputs} | {v.name for n in graph.nodes for v in n.outs}
    new: dict[Val, Val] = {}
    for v in (v for n in graph.nodes for v in n.outs):
        name = names.get(v, v.name)
        if name not in taken:
            new[v] = replace(v, name=name)
            taken.add(name)

    def swap(vs: tuple[Val, ...]) -> tuple[Val, ...]:
        return tuple(new.get(v, v) for v in vs)

    nodes = tuple(replace(n, ins=swap(n.ins), outs=swap(n.outs)) for n in graph.nodes)
    return replace(graph, nodes=nodes, outputs=swap(graph.outputs))
