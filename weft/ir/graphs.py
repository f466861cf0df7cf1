"""What is done to a graph by its nodes alone, whatever their ops."""

from dataclasses import replace

from weft.ir.types import Graph, Node


def dce(graph: Graph) -> Graph:
    """Without the nodes that no output needs."""
    live, keep = {v.name for v in graph.outputs}, list[Node]()
    for n in reversed(graph.nodes):
        if any(v.name in live for v in n.outs):
            keep.append(n)
            live |= {v.name for v in n.ins}
    return replace(graph, nodes=tuple(reversed(keep)))
