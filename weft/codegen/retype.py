"""A program in one float dtype throughout, to be compared with the truth in that dtype."""

from dataclasses import replace
from typing import Any

from weft.ir.program import Program
from weft.ir.regions import Opaque
from weft.ir.types import FLOATS, Graph, Type, Val


def retyped(program: Program, dtype: str) -> Program:
    """The program with every float dtype replaced."""
    return replace(
        program,
        graph=_retyped(program.graph, dtype),
        params=tuple(replace(p, dtype=dtype) for p in program.params),
        policy=replace(program.policy, params=dtype, compute=dtype, accumulate=dtype),
    )


def _retyped(graph: Graph, dtype: str) -> Graph:
    """A graph with every float dtype replaced, in types and in ops."""

    def val(v: Val) -> Val:
        return replace(v, type=typed(v.type))

    def typed(t: Type) -> Type:
        return replace(t, dtype=dtype) if t.floating else t

    def op(o: Any) -> Any:
        if isinstance(getattr(o, "body", None), Graph):
            o = replace(o, body=_retyped(o.body, dtype))
        if isinstance(o, Opaque):
            o = replace(o, outs=tuple(map(typed, o.outs)))
        return replace(o, dtype=dtype) if getattr(o, "dtype", None) in FLOATS else o

    nodes = tuple(
        replace(n, op=op(n.op), ins=tuple(map(val, n.ins)), outs=tuple(map(val, n.outs))) for n in graph.nodes
    )
    return replace(graph, inputs=tuple(map(val, graph.inputs)), nodes=nodes, outputs=tuple(map(val, graph.outputs)))
