"""How the nodes of a block meet the time dim: what reads its coordinate or its length, how far back attention sees."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from weft.errors import DecodeError
from weft.ir.builder import Builder
from weft.ir.graphs import dce
from weft.ir.ops.op import Op, op_name
from weft.ir.types import Graph, Node, Type, Val


def refusal(n: Node, why: str) -> DecodeError:
    """The error that a node cannot be followed step by step."""
    return DecodeError(f"{n.outs[0].name} = {op_name(type(n.op))}", n.src, why)


def refitted(op: Op, was: Sequence[Val], now: Sequence[Val], rows: str) -> Op:
    """The op for operands that have the dim `rows` where none had it, or the other way round."""
    before, after = (any(rows in v.dims for v in vs) for vs in (was, now))
    return op if before == after else op.refitted(rows, after)


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


def above(graph: Graph, v: Val) -> list[Node]:
    """The nodes that a value is computed by."""
    return list(dce(replace(graph, outputs=(v,))).nodes)


def windows(graph: Graph, sizes: Mapping[str, int], time: str) -> dict[str, int]:
    """Key dim -> how many positions back it is still read, where that is bounded."""
    far: dict[str, list[int | None]] = {}
    for key, back in filter(None, (n.op.reach(sizes, time) for n in graph.nodes)):
        far.setdefault(key, []).append(back)
    return {key: max(w for w in ws if w is not None) for key, ws in far.items() if None not in ws}
