"""What shows other values anew: dims under other names."""

from weft.ir.ops.primitives import Rename
from weft.ir.types import Graph


def renamings(graph: Graph) -> dict[str, str]:
    """Dim -> the one name of all dims that renames make the same."""
    out: dict[str, str] = {}
    for n in graph.nodes:
        if isinstance(n.op, Rename):
            a, b = sorted((out.get(n.op.old, n.op.old), out.get(n.op.new, n.op.new)))
            out |= {d: a for d in (*out, n.op.old, n.op.new) if out.get(d, d) == b}
            out[b] = a
    return out
