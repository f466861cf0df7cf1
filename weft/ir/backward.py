"""Reverse mode: walk the nodes backwards, ask each op for its vjp, add up. The result is the same IR."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from weft.ir.types import Node, Val

if TYPE_CHECKING:
    from weft.ir.builder import Builder


def backward(g: "Builder", nodes: Sequence[Node], seeds: Mapping[Val, Val]) -> dict[Val, Val]:
    """Cotangents of every value that the seeds (value -> its cotangent) depend on, appended to `g`."""
    cot = dict(seeds)
    for n in reversed(list(nodes)):
        dy = [cot.get(v) for v in n.outs]
        if all(d is None for d in dy):
            continue
        with g.at(n.src):
            for v, d in zip(n.ins, n.op.vjp(g, n.ins, n.outs, dy)):
                if d is None or not v.type.floating:
                    continue
                cot[v] = d if v not in cot else g.map("a + b", a=cot[v], b=d, to=v.dims, dtype=v.dtype)
    return cot
