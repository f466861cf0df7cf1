"""A program lowered for training as the same model without its losses and its dropout.

    loss, logits = call head(x, targets, w)   ->   logits = call head(x, w)
    y = dropout(x, seed, layer)               ->   x
    o = attend(q, k, v, seed, layer)          ->   o = attend(q, k, v)

Applied to a program without training it does nothing. What only losses and dropout read goes too: targets, the seed.
An input that nothing reads stays where it alone tells how large a run is, as under a head that is the same for every
row.
"""

from collections.abc import Iterable
from dataclasses import replace

from weft.ir.ops.op import body_of
from weft.ir.program import Program
from weft.ir.types import Graph, Node, Val
from weft.ir.verify import verify

LOSSES = ("loss", "aux_loss")
"""Outputs that a program has for training alone."""


def inference(program: Program) -> Program:
    """The program without training."""
    if not program.train:
        return program
    keep = [i for i, name in enumerate(program.outputs) if name not in LOSSES]
    graph, _ = narrowed(program.graph, keep)
    inputs = (*graph.inputs, *_telling(program, graph))
    names = {v.name for v in inputs}
    return replace(
        program,
        graph=verify(replace(graph, inputs=inputs)),
        params=tuple(p for p in program.params if p.value in names),
        inputs=tuple(name for name in program.inputs if name in names),
        outputs=tuple(program.outputs[i] for i in keep),
        train=False,
    )


def _telling(program: Program, graph: Graph) -> list[Val]:
    """Inputs of the program that the graph lacks, without which nothing tells the size of a run-time dim."""
    public = [v for v in map(program.input, program.inputs) if v not in graph.inputs]
    told = {d for v in graph.inputs if v.name in program.inputs for d in v.dims}
    more: list[Val] = []
    for dim in program.runtime:
        found = [v for v in public if dim in v.dims][:1] if dim not in told else []
        more += found
        told |= {d for v in found for d in v.dims}
    return more


def narrowed(graph: Graph, outputs: Iterable[int], inputs: Iterable[int] = ()) -> tuple[Graph, list[int]]:
    """The graph of these outputs, without dropout, and which of its inputs it has left: those read, and `inputs`."""
    same: dict[Val, Val] = {}
    for n in graph.nodes:
        if n.op.regularizes:
            same[n.outs[0]] = same.get(n.ins[0], n.ins[0])
    results = tuple(same.get(v, v) for v in (graph.outputs[i] for i in outputs))
    live, nodes = set(results), list[Node]()
    for n in reversed(graph.nodes):
        if n.op.regularizes or not any(v in live for v in n.outs):
            continue
        new = _node(n.op.untrained(replace(n, ins=tuple(same.get(v, v) for v in n.ins))), live)
        nodes.append(new)
        live |= set(new.ins)
    left = [i for i, v in enumerate(graph.inputs) if v in live or i in tuple(inputs)]
    made = replace(graph, inputs=tuple(graph.inputs[i] for i in left), nodes=tuple(reversed(nodes)), outputs=results)
    return made, left


def _node(n: Node, live: set[Val]) -> Node:
    """A node, its body narrowed to the results that are read; a loop keeps what it carries."""
    body = body_of(n.op)
    if body is None:
        return n
    c, k = getattr(n.op, "carries", 0), len(body.outputs)
    keep = [i for i in range(k) if i < c or n.outs[i] in live]
    made, left = narrowed(body, keep, range(c))
    outs = tuple(n.outs[i] for i in (*keep, *range(k, len(n.outs))))
    return replace(n, op=replace(n.op, body=made), ins=tuple(n.ins[i] for i in left), outs=outs)  # type: ignore[type-var]
