"""What ops mean where a kernel holds a whole row: norms and losses from their statistics, few reductions each.

before:  y, mean, rstd = with_statistics(x, w, b)
after:   mean = sum(x) / n; c = x - mean; rstd = rsqrt(sum(c*c) / n + eps); y = c*rstd*w + b

Same real-arithmetic functions as the expansions that the library declares, and as torch's own kernels compute.
"""

from weft.ir.builder import Builder
from weft.ir.types import Graph


def rewritten(graph: Graph) -> Graph:
    """The graph with every op that says what it means in rows in that form."""
    g = Builder()
    env = {v: g.input(v.name, v.type) for v in graph.inputs}
    for n in graph.nodes:
        ins, names = [env[v] for v in n.ins], [v.name for v in n.outs]
        with g.at(n.src):
            outs = n.op.in_rows(g, ins, names) or g.many(n.op, *ins, names=names)
        env.update(zip(n.outs, outs, strict=True))
    return g.graph(*(env[v] for v in graph.outputs))
