"""Which exact form a fixed state is computed in: each is built, and the one that costs least is read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from weft.ir.ops.op import body_of
from weft.ir.types import Dims, Node, Number, Val
from weft.passes.chunk.fixed import FixedState
from weft.passes.chunk.forms import Outside
from weft.passes.chunk.invariant import AtOnce, InChunks
from weft.passes.fusion.price import Prices

Rejected = tuple[str, str, tuple[tuple[str, Number], ...]]
"""A form, the reason, its numbers."""
AT_ONCE = "by one long convolution"


@dataclass(frozen=True)
class ChosenForm:
    """A form by its name, what readers read in it, and the forms that it was chosen before."""

    name: str
    reads: list[Val]
    rejected: list[Rejected]
    chunks: InChunks = field(repr=False)

    def last(self, lengths: Val | None) -> list[Val]:
        """The state behind the last position, which chunks alone know."""
        return self.chunks.last(lengths)


def by_price(
    out: Outside, state: FixedState, dims: Dims, starts: Sequence[Val], last: bool, prices: Prices | None
) -> ChosenForm:
    """The cheapest form. dims: see Loop. starts: the state before the first position. last: is the state behind the
    last one read? Only chunks have these two; without prices they are chosen."""
    nodes = out.g.nodes
    start = len(nodes)
    chunks = InChunks(out, state, dims)
    reads = chunks.build(starts)
    middle = len(nodes)
    if last or not dims[4:] or prices is None or not all(_zero(v, nodes[:start]) for v in starts):
        why = "the state behind the last position is read" if last else "it is not asked for"
        return ChosenForm("in chunks", reads, [(AT_ONCE, why, ())] if prices is not None else [], chunks)
    whole = AtOnce(out, state, dims).build()
    costs = [seconds(some, prices) for some in (nodes[start:middle], nodes[middle:])]
    said = [("microseconds", round(c * 1e6, 1)) for c in costs]
    if costs[1] < costs[0]:
        return ChosenForm(AT_ONCE, whole, [("in chunks", "slower", (said[0],))], chunks)
    return ChosenForm("in chunks", reads, [(AT_ONCE, "slower", (said[1],))], chunks)


def seconds(nodes: Iterable[Node], prices: Prices) -> float:
    """What nodes cost one after the other, each step of a loop by itself."""
    total = 0.0
    for n in nodes:
        op: Any = n.op
        body = body_of(op)
        total += prices.seconds(n) if body is None else prices.sizes[op.dim] * seconds(body.nodes, prices)
    return total


def _zero(v: Val, nodes: Iterable[Node]) -> bool:
    """Is a value 0 everywhere?"""
    made: Any = next((n.op for n in nodes if v in n.outs), None)
    return getattr(made, "exprs", None) == (0,)
