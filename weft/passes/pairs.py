"""The joint graph in torch's own terms: forward ops that give their statistics, and backwards that read them.

before:  y = layer_norm(x, w, b)                          dx, dw, db = grad{layer_norm}(x, w, b, dy)
after:   y, mean, rstd = with_statistics(x, w, b)         dx, dw, db = from_statistics(x, w, b, mean, rstd, dy)

The statistics are small (one number a row), so a block always keeps them from forward to backward; the derivative of
dropout is dropout, and that of a rotation is the rotation back. It does not fire on composites without such a pair in
torch, nor where the normalised dim is not the last one. Same real-arithmetic function; its results are the ops' own.
"""

from dataclasses import replace

from weft.ir.builder import Builder, rebuilt
from weft.ir.composite import Grad
from weft.ir.graphs import dce
from weft.ir.ops.primitives import Loop
from weft.ir.types import Graph, Node, Val
from weft.passes.rewrite import merge


def fast(joint: Graph) -> Graph:
    """The joint graph with every known pair of forward and backward joined by its statistics."""
    wanted = {(n.op.inner, n.ins[: n.op.n]) for n in joint.nodes if isinstance(n.op, Grad)}

    def pairs(g: Builder, n: Node, ins: list[Val]) -> tuple[Val, ...] | None:
        names = [v.name for v in n.outs]
        if isinstance(n.op, Loop):
            return g.many(replace(n.op, body=fast(n.op.body)), *ins, names=names)
        return n.op.paired(g, ins, names, again=(n.op, n.ins) in wanted)

    return merge(dce(rebuilt(joint, pairs)))


def statistics(joint: Graph) -> tuple[str, ...]:
    """Names of the statistics in a `fast` joint graph that its derivatives read: what a block keeps in every mode."""
    made = {v for n in joint.nodes for v in n.outs}
    known = (n.op.follows(n.ins) for n in joint.nodes)
    return tuple(sorted({v.name for found in known if found for v in found[2] if v in made}))
