"""Recompute modes of each block, by the name of its call: what the emitted functions keep, as the pass names them."""

from weft.ir.primitives import Call, Loop
from weft.ir.program import Program
from weft.ir.types import Graph, Node
from weft.passes.derivative import block_joint
from weft.passes.price import Prices
from weft.passes.recompute import modes
from weft.passes.targets import find

from .blocks import Mode


def calls(graph: Graph) -> list[Node]:
    """The calls of a model graph in order of first use, those of loop bodies in place."""
    out: list[Node] = []
    for n in graph.nodes:
        if isinstance(n.op, Call):
            out.append(n)
        elif isinstance(n.op, Loop):
            out += calls(n.op.body)
    return out


def block_modes(program: Program, target: str = "cpu", names: tuple[str, ...] | None = None) -> dict[str, list[Mode]]:
    """Every mode worth having of each block (or those in `names`), the one that keeps most first."""
    prices = Prices(program.resolve(), find(target))
    params = {p.value for p in program.params}
    out: dict[str, list[Mode]] = {}
    for node in calls(program.graph):
        assert isinstance(node.op, Call)
        if node.op.name in out:
            continue
        body = node.op.body
        held = [v.name for v in body.inputs if not v.type.floating or v.name in params or "batch" not in v.dims]
        found = modes(block_joint(body), len(body.outputs), prices, held)
        out[node.op.name] = [Mode(name, kept) for name, kept in found.items() if names is None or name in names]
    return out
