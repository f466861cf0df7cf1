"""A graph made ready to print: composites without a torch spelling opened, equal nodes merged, dead ones dropped."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sympy.logic.boolalg import Boolean

from weft.ir.builder import Builder, dce
from weft.ir.op import Composite, Op, expansion
from weft.ir.formula import local, operand, symbol
from weft.ir.primitives import Loop, Map
from weft.ir.types import Graph, Type, Val

Known = Callable[[Op, tuple[Type, ...]], bool]


def prepare(graph: Graph, known: Known) -> Graph:
    """The same function; every composite left in it is `known`. Names and sources are kept where a node survives."""
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
            if isinstance(n.op, Composite) and not known(n.op, types):
                outs = _open(g, expansion(n.op, types), ins, known)
            else:
                op = replace(n.op, body=prepare(n.op.body, known)) if isinstance(n.op, Loop) else n.op
                outs = list(g.many(op, *ins, names=[v.name for v in n.outs]))
        env.update(zip(n.outs, outs, strict=True))
    return [env[v] for v in graph.outputs]


def unlet(graph: Graph) -> Graph:
    """Every let of a map a map of its own, so that a forward and its derivative share them.

    Not in graphs of several float dtypes, where a map is computed wide and rounded once; not inside loops."""
    vals = [*graph.inputs, *(v for n in graph.nodes for v in n.outs)]
    if len({v.dtype for v in vals if v.type.floating}) > 1 or not {v.dtype for v in vals} <= {"f32", "f64", "i64", "bool"}:
        return graph
    g = Builder()
    env = {v: g.input(v.name, v.type) for v in graph.inputs}
    for n in graph.nodes:
        ins = [env[v] for v in n.ins]
        with g.at(n.src):
            if isinstance(n.op, Map) and n.op.lets and n.op.dtype in ("f32", "f64"):
                outs = _unlet(g, n.op, ins, [v.name for v in n.outs])
            else:
                outs = g.many(n.op, *ins, names=[v.name for v in n.outs])
        env.update(zip(n.outs, outs, strict=True))
    return g.graph(*(env[v] for v in graph.outputs), decisions=graph.decisions)


def _unlet(g: Builder, op: Map, ins: list[Val], names: list[str]) -> tuple[Val, ...]:
    known: dict[Any, Val | Any] = {operand(i): v for i, v in enumerate(ins)}

    def one(e: Any, name: str) -> Val:
        used = sorted((s for s in e.free_symbols if s in known), key=str)
        logical = isinstance(e, Boolean) and not e.is_Symbol
        vals = {s.name.replace("_", "x", 1): known[s] for s in used}
        e = e.xreplace({s: symbol(s.name.replace("_", "x", 1)) for s in used})
        to = op.to
        return g.map(e, to=to, dtype="bool" if logical else op.dtype, names=[name], **vals)

    for i, e in enumerate(op.lets):
        known[local(i)] = one(e, names[0])
    return tuple(one(e, name) for e, name in zip(op.exprs, names))


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
