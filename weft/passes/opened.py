"""A graph made ready to print: composites without a torch spelling opened, equal nodes merged, loops made short."""

from collections.abc import Callable
from dataclasses import replace

from weft.ir.builder import Builder
from weft.ir.graphs import dce
from weft.ir.ops.op import Op
from weft.ir.ops.primitives import Loop
from weft.ir.types import Graph, Type, Val
from weft.passes.rewrite import merge
from weft.passes.short_loops import short_loops

Known = Callable[[Op, tuple[Type, ...]], bool]


def prepare(graph: Graph, known: Known) -> Graph:
    """The same function; every composite left in it is `known`. Names and sources are kept where a node survives."""
    return short_loops(opened(graph, known))


def opened(graph: Graph, known: Known) -> Graph:
    """`prepare` that leaves loops as long as they are."""
    g = Builder()
    inputs = [g.input(v.name, v.type) for v in graph.inputs]
    outputs = _open(g, graph, inputs, known)
    return merge(dce(g.graph(*outputs, decisions=graph.decisions)))


def _open(g: Builder, graph: Graph, args: list[Val], known: Known) -> list[Val]:
    """Replay `graph` into `g`, opening what is not known."""
    env = dict(zip(graph.inputs, args, strict=True))
    for n in graph.nodes:
        ins = [env[v] for v in n.ins]
        types = tuple(v.type for v in ins)
        with g.at(n.src):
            if (meaning := n.op.opened(types)) is not None and not known(n.op, types):
                outs = _open(g, meaning, ins, known)
            else:
                op = replace(n.op, body=prepare(n.op.body, known)) if isinstance(n.op, Loop) else n.op
                outs = list(g.many(op, *ins, names=[v.name for v in n.outs]))
        env.update(zip(n.outs, outs, strict=True))
    return [env[v] for v in graph.outputs]
