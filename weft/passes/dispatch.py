"""Give every kind of product that reads a dispatch a dispatch of its own, so that each may gather where it multiplies.

    d = scatter(x, e, p) ; h = einsum(d, w) ; g = einsum(d, y)   ->   d = scatter(..) ; h = einsum(d, w)
                                                                      d_1 = scatter(..) ; g = einsum(d_1, y)

Products over equal dims stay together: they may share the factor in one kernel. It does not fire where anything but a
product reads the dispatch, which is then there anyway, or where the products are of one kind. A dispatch that no kernel
takes in is merged again with its equals when torch ops are printed.
"""

from dataclasses import replace
from typing import Any

from weft.ir.ops.primitives import Einsum
from weft.ir.types import Graph, Node, Val


def dispatches(node: Node) -> bool:
    """Does a node send rows to places of several dims, as a router says?"""
    op: Any = node.op
    return op.core == "scatter" and len(op.at) > 1


def dispatched(graph: Graph) -> Graph:
    """The graph with a dispatch for each kind of product."""
    taken = {v.name for v in graph.inputs} | {v.name for n in graph.nodes for v in n.outs}
    swaps: dict[Node, dict[Val, Val]] = {}
    copies: dict[Node, list[Node]] = {}
    for node in (n for n in graph.nodes if dispatches(n)):
        (sent,) = node.outs
        kinds: dict[object, list[Node]] = {}
        readers = [n for n in graph.nodes if sent in n.ins]
        for n in readers:
            kinds.setdefault((frozenset(n.space), frozenset(n.outs[0].dims)), []).append(n)
        if sent in graph.outputs or not all(isinstance(n.op, Einsum) for n in readers):
            continue
        for own in list(kinds.values())[1:]:
            name = next(f"{sent.name}_{i}" for i in range(1, len(taken) + 2) if f"{sent.name}_{i}" not in taken)
            taken.add(name)
            copy = replace(sent, name=name)
            copies.setdefault(node, []).append(replace(node, outs=(copy,)))
            for n in own:
                swaps.setdefault(n, {})[sent] = copy
    nodes: list[Node] = []
    for n in graph.nodes:
        own = swaps.get(n, {})
        nodes.append(replace(n, ins=tuple(own.get(v, v) for v in n.ins)) if own else n)
        nodes += copies.get(n, [])
    return replace(graph, nodes=tuple(nodes)) if copies else graph
