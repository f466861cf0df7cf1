"""Which values of a float32 model stay float32 at least when it is moved to a narrower dtype, as torch keeps them:
statistics of norms, losses, log-sum-exps of losses and attention, and what is computed from them outside a composite.

A package of one float dtype says no dtypes, so that it can be moved; what a kernel makes has the dtype of an operand of
its own, and would be narrow. Half precision holds no rstd over 65,504, and three digits of a log-sum-exp.
"""

from collections.abc import Collection

from weft.ir.graphs import with_gradient
from weft.ir.types import Graph, Node


def wide(graph: Graph, given: Collection[str] = ()) -> frozenset[str]:
    """The names of a graph's wide values. given: those of its inputs."""
    found = {v.name for v in graph.inputs if v.name in given}
    for n in graph.nodes:
        found |= {v.name for v, is_wide in zip(n.outs, _wide(n, found)) if is_wide and v.type.floating}
    return frozenset(found)


def wide_of_joint(joint: Graph, outputs: int) -> frozenset[str]:
    """The names of wide values of a joint graph whose first `outputs` results are the forward's: a cotangent, an input
    at the end of the others, is as wide as its result."""
    forward = wide(joint)
    floats = with_gradient(joint, joint.outputs[:outputs])
    cotangents = joint.inputs[len(joint.inputs) - len(floats) :]
    return wide(joint, {d.name for v, d in zip(floats, cotangents) if v.name in forward})


def _wide(n: Node, known: set[str]) -> tuple[bool, ...]:
    said = n.op.wide(len(n.outs))
    return said or (any(v.name in known for v in n.ins if v.type.floating),) * len(n.outs)
