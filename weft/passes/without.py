"""A backward where some results have no gradient: their cotangents are zero, and what follows from these alone too.

before:  (d_loss, d_logits) { grad = ..(d_loss); d = d_logits + grad; d_w = einsum(d, x); d_b = reduce(d_logits) }
after:   (d_loss)           { grad = ..(d_loss);                      d_w = einsum(grad, x); d_b = 0 }

A map loses its operands that are zero, and is no node where one operand is left as it is. Any other op that mixes zeros
with other values reads zeros that are written. Same real-arithmetic function.
"""

from collections.abc import Collection

import sympy as sp

from weft.ir.builder import Builder
from weft.ir.formula import normal, operand, symbol
from weft.ir.graphs import dce
from weft.ir.ops.primitives import Map
from weft.ir.types import Graph, Node, Val


def without(graph: Graph, inputs: Collection[Val]) -> Graph:
    """The graph with these inputs zero."""
    g = Builder()
    env: dict[Val, Val | None] = {v: None if v in inputs else g.input(v.name, v.type) for v in graph.inputs}  # None: 0
    for n in graph.nodes:
        with g.at(n.src):
            zero = {i for i, v in enumerate(n.ins) if env[v] is None}
            if any(zero.issuperset(group) for group in n.op.linear_in(len(n.ins))):
                env |= dict.fromkeys(n.outs)
            elif zero and isinstance(n.op, Map) and not n.op.lets and len(n.outs) == 1:
                env[n.outs[0]] = _map(g, n, n.op, [env[v] for v in n.ins])
            else:
                outs = g.many(n.op, *(env[v] or g.zeros(v) for v in n.ins), names=[v.name for v in n.outs])
                env.update(zip(n.outs, outs))
    made = {v: n.src for n in graph.nodes for v in n.outs}
    outputs: list[Val] = []
    for v in graph.outputs:
        with g.at(made.get(v, "")):
            outputs.append(env[v] or g.zeros(v))
    return dce(g.graph(*outputs))


def _map(g: Builder, n: Node, op: Map, ins: list[Val | None]) -> Val | None:
    """A map of one formula, of what is left of its operands; None where it is zero."""
    (out,) = n.outs
    left = {f"x{i}": v for i, v in enumerate(ins) if v is not None}
    place = {operand(i): symbol(f"x{i}") if v else sp.S.Zero for i, v in enumerate(ins)}
    formula = normal(op.exprs[0].xreplace(place))
    if formula == 0:
        return None
    same = left.get(str(formula))
    if same is not None and same.type == out.type:
        return same
    return g.maps([formula], left, to=op.to, dtype=op.dtype, names=[out.name])[0]
