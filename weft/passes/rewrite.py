"""Small rewrites that printing needs: maps taken apart, equal nodes computed once, statistics of rows as kernels do."""

from dataclasses import replace
from typing import Any

from sympy.logic.boolalg import Boolean

from weft.ir.builder import Builder, rebuilt
from weft.ir.formula import local, operand, symbol
from weft.ir.graphs import dce
from weft.ir.ops.op import Op
from weft.ir.ops.primitives import Map
from weft.ir.types import FLOATS, Graph, Node, Val, promote


def unlet(graph: Graph) -> Graph:
    """Every let and every result of a map a map of its own, so that a forward and its derivative share them.

    A let keeps the dtype that maps are computed in, so the numbers are those of the one map. Not inside loops."""

    def rule(g: Builder, n: Node, ins: list[Val]) -> tuple[Val, ...] | None:
        several = isinstance(n.op, Map) and (n.op.lets or len(n.op.exprs) > 1) and n.op.dtype in FLOATS
        return _unlet(g, n.op, ins, [v.name for v in n.outs]) if several else None

    return rebuilt(graph, rule)


def _unlet(g: Builder, op: Any, ins: list[Val], names: list[str]) -> tuple[Val, ...]:
    known = {operand(i): v for i, v in enumerate(ins)}
    wide = promote("f32", op.dtype, *(v.dtype for v in ins))

    def one(e: Any, name: str, dtype: str) -> Val:
        used = sorted((s for s in e.free_symbols if s in known), key=str)
        place = {s: symbol(f"x{s.name}") for s in used}
        condition = isinstance(e, Boolean) and not e.is_Symbol
        given = {place[s].name: known[s] for s in used}
        kind = "bool" if condition else dtype
        return g.maps([e.xreplace(place)], to=op.to, dtype=kind, names=[name], operands=given)[0]

    for i, e in enumerate(op.lets):
        known[local(i)] = one(e, names[0], wide)
    return tuple(one(e, name, op.dtype) for e, name in zip(op.exprs, names))


def merge(graph: Graph) -> Graph:
    """Equal ops on equal operands computed once. Every op is pure, random numbers included, so this is always right."""
    env: dict[Val, Val] = {v: v for v in graph.inputs}
    seen: dict[tuple[Op, tuple[Val, ...]], tuple[Val, ...]] = {}
    nodes = []
    for n in graph.nodes:
        ins = tuple(env[v] for v in n.ins)
        if (n.op, ins) in seen:
            env.update(zip(n.outs, seen[n.op, ins]))
            continue
        seen[n.op, ins] = n.outs
        env.update((v, v) for v in n.outs)
        nodes.append(replace(n, ins=ins))
    return dce(replace(graph, nodes=tuple(nodes), outputs=tuple(env[v] for v in graph.outputs)))


def rewritten(graph: Graph) -> Graph:
    """Norms and losses as a kernel that holds a whole row computes them, from their statistics: few reductions each.

    y, mean, rstd = with_statistics(x, w, b)
    ->  mean = sum(x) / n; c = x - mean; rstd = rsqrt(sum(c*c) / n + eps); y = c*rstd*w + b
    """
    return rebuilt(graph, lambda g, n, ins: n.op.in_rows(g, ins, [v.name for v in n.outs]))
