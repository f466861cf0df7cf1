"""Loops: what they stack for their derivative, and whether a cell is linear in its state."""

from collections.abc import Collection
from dataclasses import replace

from weft.ir.builder import Builder, flatten, rebuilt
from weft.ir.formula.degree import NONLINEAR
from weft.ir.ops.primitives import Loop
from weft.ir.types import Graph, Node, Val


def keep(graph: Graph, names: Collection[str]) -> Graph:
    """loop(body) -> loop(body, stacking the body's values `names` too).

    The loop's derivative then reads them instead of computing them again: a recompute choice, made before `joint`.
    Results and their order stay as they were.
    """

    def stacking(g: Builder, n: Node, ins: list[Val]) -> list[Val] | None:
        op = n.op
        if not isinstance(op, Loop):
            return None
        k = len(op.body.outputs)
        more = [v for m in op.body.nodes for v in m.outs if v.name in names and v not in op.body.outputs]
        got = g.many(replace(op, body=replace(op.body, outputs=(*op.body.outputs, *more))), *ins)
        return [*got[:k], *got[len(got) - op.carries :]]

    return rebuilt(graph, stacking)


def linear_in_state(op: Loop) -> bool:
    """Is every next carry A * carry + b, with A and b free of the carries? Then a parallel scan may run it.

    Decided, not declared: degrees in the carries are followed through the body, and a formula whose form leaves it open
    is multiplied out. Functions with a kink or a jump are not linear, though their second derivative is zero.
    """
    body = flatten(op.body)
    degree = {v: int(i < op.carries) for i, v in enumerate(body.inputs)}
    for n in body.nodes:
        degree.update(zip(n.outs, n.op.degrees([degree[v] for v in n.ins], len(n.outs))))
    return all(degree[v] < NONLINEAR for v in body.outputs[: op.carries])
