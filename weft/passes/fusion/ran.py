"""What a printed function runs as torch's operators, statement by statement: measured, or estimated from its graph.

y = layer_norm(x) ; h = einsum(y, w) ; a = map(h) "gelu(h)"
->  (y): 1 launch ; (h, a): 2 launches, a product and a gelu in one statement
"""

from dataclasses import dataclass
from typing import Any

from weft.ir.ops.op import body_of, kind
from weft.ir.types import Graph, Node
from weft.passes.fusion.price import Prices

Place = tuple[str, str, str, str]
"""Of a block's function: the block's variant, the mode, the side, the one result whose gradient it starts from."""

ALONE: Place = ("", "", "forward", "")
"""The one function of a block that is not trained."""


@dataclass(frozen=True, slots=True)
class Ran:
    """Nodes, by their first results, that a statement runs; kernels that it launches, bytes that these move."""

    nodes: tuple[str, ...]
    launches: int
    bytes: int


def estimated(graph: Graph, prices: Prices) -> tuple[Ran, ...]:
    """Each node of a graph as one kernel, a loop as its body at every step."""
    return tuple(Ran((n.outs[0].name,), *_cost(n, prices)) for n in graph.nodes)


def _cost(node: Node, prices: Prices) -> tuple[int, int]:
    """Launches and bytes."""
    if kind(node) == "view":
        return 0, 0
    op: Any = node.op
    body = body_of(op)
    if body is None:
        return 1, prices.bytes(node)
    inner = [_cost(n, prices) for n in body.nodes]
    steps = prices.sizes[op.dim] if hasattr(op, "dim") else 1
    return steps * sum(n for n, _ in inner), steps * sum(b for _, b in inner)
