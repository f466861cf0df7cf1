"""FLOPs, bytes and kinds of nodes and graphs, read off the declarations."""

import sympy as sp

from weft.ir.ops.op import kind as kind
from weft.ir.types import Graph


def flops(graph: Graph) -> sp.Expr:
    """Floating point operations over the size symbols n_dim."""
    return sp.Add(*(n.op.flops(n) for n in graph.nodes))


def bytes(graph: Graph) -> sp.Expr:
    """Bytes moved over the size symbols n_dim, each node being one kernel (flatten first: each primitive)."""
    return sp.Add(*(n.op.bytes(n) for n in graph.nodes))
