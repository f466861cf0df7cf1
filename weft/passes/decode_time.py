"""How the nodes of a block meet the time dim: what reads its coordinate or its length, how far back attention sees."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from math import prod
from typing import Any

import sympy as sp

from weft.errors import DecodeError
from weft.ir.builder import Builder, dce
from weft.ir.formula import operand, symbol
from weft.ir.library import Attend
from weft.ir.op import Composite, Op, expansion, op_name
from weft.ir.pattern import max_distance
from weft.ir.primitives import Einsum, Map, Reduce, Rename
from weft.ir.types import Graph, Node, Type, Val


def refusal(n: Node, why: str) -> DecodeError:
    """The error that a node cannot be followed step by step."""
    return DecodeError(f"{n.outs[0].name} = {op_name(type(n.op))}", n.src, why)


def symbols(op: Map) -> set[str]:
    """The names that a map's formulas read."""
    return {str(s) for e in (*op.lets, *op.exprs) for s in e.free_symbols}


def replaced(op: Map, by: Mapping[Any, Any]) -> Map:
    """A map with symbols of its formulas replaced."""
    return replace(op, lets=tuple(e.xreplace(by) for e in op.lets), exprs=tuple(e.xreplace(by) for e in op.exprs))


def placed(op: Map, time: str, operands: int) -> Map:
    """i_time becomes a further operand: the positions."""
    return replaced(op, {symbol(f"i_{time}"): operand(operands)})


def refitted(op: Op, was: Sequence[Val], now: Sequence[Val], rows: str) -> Op:
    """The op for operands that have the dim `rows` where none had it, or the other way round."""
    before, after = (any(rows in v.dims for v in vs) for vs in (was, now))
    if before == after or not isinstance(op, Map | Einsum | Reduce) or after == (rows in op.to):
        return op
    return replace(op, to=(rows, *op.to) if after else tuple(d for d in op.to if d != rows))


def holding(body: Graph, carries: int, rows: str) -> Graph:
    """The body of a loop that takes one more operand, `real` bool[rows]: where it is false the carries stay."""
    g = Builder()
    given = [g.input(v.name, v.type) for v in body.inputs]
    outs = g.inline(body, given)
    real = g.input("real", Type("bool", (rows,)))
    kept = [
        g.map("where(real, new, old)", real=real, new=new, old=old, to=old.dims, dtype=old.dtype)
        for old, new in zip(given, outs[:carries])
    ]
    return g.graph(*kept, *outs[carries:])


def mentions(op: Op, types: tuple[Type, ...], time: str) -> bool:
    """Does a composite's meaning read the coordinate or the size of `time`, or rename it?"""
    if isinstance(op, Map):
        return bool({f"i_{time}", f"n_{time}"} & symbols(op))
    if isinstance(op, Rename):
        return time in (op.old, op.new)
    if isinstance(op, Composite):
        return any(mentions(n.op, n.types, time) for n in expansion(op, types).nodes)
    return any(isinstance(v := getattr(op, f.name), sp.Basic) and _reads(v, time) for f in fields(op))  # pyright: ignore


def _reads(e: Any, time: str) -> bool:
    return any(str(s) in (f"i_{time}", f"n_{time}") for s in e.free_symbols)


def touches(body: Graph, time: str) -> bool:
    """Does a loop's body mix positions?"""
    return any(time in n.op.crossed(n) or mentions(n.op, n.types, time) for n in body.nodes)


def above(graph: Graph, v: Val) -> list[Node]:
    """The nodes that a value is computed by."""
    return list(dce(replace(graph, outputs=(v,))).nodes)


def windows(graph: Graph, sizes: Mapping[str, int], time: str) -> dict[str, int]:
    """Key dim -> how many positions back its attentions still read, where that is bounded."""
    far: dict[str, list[int | None]] = {}
    for n in graph.nodes:
        if isinstance(n.op, Attend) and n.op.query == time:
            reach = max_distance(n.op.pattern, sizes[time], heads(n.op, sizes))
            far.setdefault(n.op.over, []).append(None if reach is None else max(1, reach + 1))
    return {key: max(w for w in ws if w is not None) for key, ws in far.items() if None not in ws}


def heads(op: Attend, sizes: Mapping[str, int]) -> int:
    """How many heads an attention has."""
    return prod(sizes[d] for d in op.heads)
