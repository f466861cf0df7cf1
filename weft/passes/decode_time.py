"""How the nodes of a block meet the time dim: what reads its coordinate or its length, how far back attention sees."""

from collections.abc import Mapping
from dataclasses import fields, replace
from math import prod
from typing import Any

import sympy as sp

from weft.errors import DecodeError
from weft.ir.builder import dce
from weft.ir.formula import operand, symbol
from weft.ir.library import Attend
from weft.ir.op import Composite, Op, expansion, op_name
from weft.ir.pattern import max_distance
from weft.ir.primitives import Map, Rename
from weft.ir.types import Graph, Node, Type, Val
from weft.passes.legality import crossed


def refusal(n: Node, why: str) -> DecodeError:
    """The error that a node cannot be followed step by step."""
    where = f" ({n.src})" if n.src else ""
    return DecodeError(f"{n.outs[0].name} = {op_name(type(n.op))}{where} {why}, so its block has no step")


def symbols(op: Map) -> set[str]:
    """The names that a map's formulas read."""
    return {str(s) for e in (*op.lets, *op.exprs) for s in e.free_symbols}


def replaced(op: Map, by: Mapping[Any, Any]) -> Map:
    """A map with symbols of its formulas replaced."""
    return replace(op, lets=tuple(e.xreplace(by) for e in op.lets), exprs=tuple(e.xreplace(by) for e in op.exprs))


def shifted(op: Map, time: str, operands: int) -> Map:
    """i_time becomes i_time plus a further operand, the first new position."""
    here = symbol(f"i_{time}")
    return replaced(op, {here: here + operand(operands)})


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
    return any(time in crossed(n) or mentions(n.op, n.types, time) for n in body.nodes)


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
