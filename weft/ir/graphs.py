"""What is done to a graph by its nodes alone, whatever their ops."""

from collections.abc import Iterable
from dataclasses import replace

from weft.ir.ops.movement import Detach
from weft.ir.types import Graph, Node, Val


def dce(graph: Graph) -> Graph:
    """Without the nodes that no output needs."""
    live, keep = {v.name for v in graph.outputs}, list[Node]()
    for n in reversed(graph.nodes):
        if any(v.name in live for v in n.outs):
            keep.append(n)
            live |= {v.name for v in n.ins}
    return replace(graph, nodes=tuple(reversed(keep)))


def with_gradient(graph: Graph, values: Iterable[Val]) -> list[Val]:
    """Those inputs and outputs of a graph that can have a gradient: its floats, but an input that `detach` alone reads
    and an output that one makes."""
    behind = {v for n in graph.nodes if isinstance(n.op, Detach) for v in n.outs}
    before = {v for n in graph.nodes if isinstance(n.op, Detach) for v in n.ins}
    read = {v for n in graph.nodes if not isinstance(n.op, Detach) for v in n.ins} | set(graph.outputs)
    constant = behind.union(v for v in graph.inputs if v in before - read)
    return [v for v in values if v.type.floating and v not in constant]
