"""A backward where some results have no gradient: their cotangents are zero, and what follows from these alone too.

before:  (d_loss, d_logits) { grad = ..(d_loss); d = d_logits + grad; d_w = einsum(d, x); d_b = reduce(d_logits) }
after:   (d_loss)           { grad = ..(d_loss);                      d_w = einsum(grad, x); d_b = 0 }

A map loses its operands that are zero, and is no node where one operand is left as it is. Any other op that mixes zeros
with other values reads zeros that are written. Same real-arithmetic function.
"""

from collections.abc import Collection

import sympy as sp

from weft.ir.builder import Builder, dce
from weft.ir.formula import normal, operand, symbol
from weft.ir.movement import Gather, Scatter
from weft.ir.primitives import Einsum, Grad, Map
from weft.ir.types import Graph, Node, Val

from .fast import FromStatistics, RotaryBack, SoftmaxGrad


def without(graph: Graph, inputs: Collection[Val]) -> Graph:
    """The graph with these inputs zero."""
    g = Builder()
    env: dict[Val, Val | None] = {v: None if v in inputs else g.input(v.name, v.type) for v in graph.inputs}  # None: 0
    for n in graph.nodes:
        with g.at(n.src):
            zero = {v for v in n.ins if env[v] is None}
            if _vanishes(n, zero):
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


def _vanishes(n: Node, zero: set[Val]) -> bool:
    """Are a node's results zero, where `zero` are those of its operands that are?"""
    op, ins = n.op, n.ins
    if isinstance(op, Einsum):
        return bool(zero)
    if isinstance(op, Grad):
        return zero.issuperset(ins[op.n :])
    if isinstance(op, FromStatistics | SoftmaxGrad):
        return ins[-1] in zero
    if isinstance(op, RotaryBack | Gather | Scatter):
        return ins[0] in zero
    return bool(ins) and op.linear() and zero.issuperset(ins)


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
