"""FLOPs, bytes and fusion class of nodes and graphs: all derived from the declarations, never declared."""

from functools import lru_cache

import sympy as sp

from weft.ir.op import Composite, Op, expansion
from weft.ir.primitives import Call, Detach, Einsum, Gather, Loop, Map, Reduce, Rename, Scatter
from weft.ir.types import Graph, Node, Type

KINDS = ("pointwise", "rowwise", "contraction", "attention", "scan", "region", "view", "memory", "composite")


def flops(graph: Graph) -> sp.Expr:
    """Floating point operations over the size symbols n_dim."""
    return sp.Add(*(n.op.flops(n) for n in graph.nodes))


def bytes(graph: Graph) -> sp.Expr:
    """Bytes moved over the size symbols n_dim, each node being one kernel (flatten first: each primitive)."""
    return sp.Add(*(n.op.bytes(n) for n in graph.nodes))


def kind(node: Node) -> str:
    """pointwise | rowwise | contraction | attention | scan | region | view | memory | composite."""
    return _kind(node.op, node.types)


@lru_cache(maxsize=1 << 12)
def _kind(op: Op, types: tuple[Type, ...]) -> str:
    match op:
        case Rename() | Detach():
            return "view"
        case Map():
            return "pointwise"
        case Einsum():
            return "contraction"
        case Reduce():
            return "rowwise"
        case Loop(body=body):
            return "scan" if all(isinstance(n.op, Map) for n in body.nodes) else "region"
        case Call():
            return "region"
        case Composite():
            return _composite([(kind(n), n.op) for n in expansion(op, types).nodes])
        case Gather() | Scatter():
            return "memory"
        case _:
            return "memory" if type(op).__name__ in ("Concat", "Part", "Table") else "composite"


def _composite(inner: list[tuple[str, Op]]) -> str:
    kinds = [k for k, _ in inner]
    distinct = set(kinds) - {"view"}
    if distinct <= {"pointwise"}:
        return "pointwise"
    if distinct <= {"pointwise", "rowwise"}:
        return "rowwise"
    if kinds.count("contraction") == 1 and distinct <= {"contraction", "pointwise"}:
        return "contraction"
    if kinds.count("contraction") >= 2 and not distinct & {"scan", "region", "memory"}:
        return "attention"
    return "composite"
