"""Regions as nodes: a group of nodes that one kernel runs, and graphs in which such groups stand as single nodes."""

from collections.abc import Iterable, Mapping, Sequence

from weft.ir.ops.op import kind
from weft.ir.ops.regions import Fused
from weft.ir.types import Graph, Node, Val
from weft.passes.fusion.grouping import Region


def bodies(graph: Graph, regions: Iterable[Region]) -> dict[str, Graph]:
    """Each region's nodes as a graph, by the region's id: what they read from outside -> what others read of them.

    Views of values made inside come along; views of other values are inputs."""
    makers = {v: n for n in graph.nodes for v in n.outs}
    out: dict[str, Graph] = {}
    for r in regions:
        inside = {n for n in graph.nodes if n.outs[0].name in r.nodes}
        made = {v for n in inside for v in n.outs}
        for n in graph.nodes:
            if kind(n) == "view" and n.ins[0] in made:
                inside.add(n)
                made.update(n.outs)
        inside = _wanted(graph, inside, set(r.nodes))
        nodes = tuple(n for n in graph.nodes if n in inside)
        made = {v for n in nodes for v in n.outs}
        read = {v for n in graph.nodes if n not in inside for v in n.ins} | set(graph.outputs)
        inputs = tuple(dict.fromkeys(v for n in nodes for v in n.ins if v not in made))
        assert all(v in makers or v in graph.inputs for v in inputs)
        out[r.id] = Graph(inputs, nodes, tuple(v for n in nodes for v in n.outs if v in read))
    return out


def _wanted(graph: Graph, inside: set[Node], core: set[str]) -> set[Node]:
    """Without the views that no node of the region reads: they stay outside, views of its results."""
    while True:
        read = {v for n in inside for v in n.ins}
        idle = {n for n in inside if n.outs[0].name not in core and n.outs[0] not in read}
        if not idle:
            return inside
        inside = inside - idle


def collapse(graph: Graph, regions: Sequence[Region], kernels: Mapping[str, tuple[str, Graph]]) -> Graph:
    """The graph with regions as nodes. kernels: region id -> (kernel, body); the nodes of any other stay as they are.

    `regions` are in an order in which they can run."""
    items: list[Node] = []
    held: set[Node] = set()
    for r in regions:
        if r.id in kernels:
            kernel, body = kernels[r.id]
            items.append(Node(Fused(kernel, body), body.inputs, body.outputs, r.src))
            held.update(body.nodes)
        else:
            items += [n for n in graph.nodes if n.outs[0].name in r.nodes]
    views = {v: n for n in graph.nodes if n not in held and kind(n) == "view" for v in n.outs}
    nodes: list[Node] = []
    placed: set[Node] = set()

    def place(node: Node) -> None:
        for v in node.ins:
            show(v)
        nodes.append(node)

    def show(v: Val) -> None:
        if v in views and views[v] not in placed:
            placed.add(views[v])
            place(views[v])

    for n in items:
        place(n)
    for v in graph.outputs:
        show(v)
    return Graph(graph.inputs, tuple(nodes), graph.outputs, graph.decisions)
