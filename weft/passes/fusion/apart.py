"""The regions of a function that runs as torch's operators: its statements, each with what it launches and moves.

Nothing is fused on that route and nothing is searched: a region costs launches + max(bytes / bandwidth, FLOPs / rate)
of what its statement runs, a loop once a step. What launches nothing stands with the statement after it.
"""

from collections.abc import Iterable, Iterator, Sequence

from weft.ir.ops.op import kind
from weft.ir.types import Graph, Node
from weft.passes.fusion.downsets import bits
from weft.passes.fusion.grouping import Fusion, Region, Verdict
from weft.passes.fusion.legality import Reason, Work
from weft.passes.fusion.price import MATRIX, Prices, dtype
from weft.passes.fusion.ran import Ran


def apart(graph: Graph, ran: Sequence[Ran], prices: Prices) -> Fusion:
    """The regions. ran: by every statement of the graph as it is printed, in order."""
    nodes = {n.outs[0].name: n for n in graph.nodes}
    regions = tuple(
        _region(f"r{k}", [nodes[name] for name in one.nodes], one, prices) for k, one in enumerate(_launching(ran))
    )
    seconds = sum(r.seconds for r in regions)
    return Fusion(regions, tuple(_verdicts(Work(graph, prices, ()))), seconds, seconds, True)


def _verdicts(work: Work) -> Iterator[Verdict]:
    """Of every producer and reader: each runs as operators of its own."""
    for j, before in enumerate(work.dag.preds):
        for i in bits(before):
            yield Verdict(work.name(i), work.name(j), False, Reason.TORCH)


def _launching(ran: Iterable[Ran]) -> list[Ran]:
    """The statements that launch something, with the nodes of those that do not."""
    out: list[Ran] = []
    silent: tuple[str, ...] = ()
    for one in ran:
        if one.launches:
            out.append(Ran((*silent, *one.nodes), one.launches, one.bytes))
            silent = ()
        else:
            silent += one.nodes
    if silent and out:
        out[-1] = Ran((*out[-1].nodes, *silent), out[-1].launches, out[-1].bytes)
    return out


def _region(name: str, nodes: Sequence[Node], ran: Ran, prices: Prices) -> Region:
    work = [n for n in nodes if kind(n) != "view"] or list(nodes)
    names = tuple(n.outs[0].name for n in work)
    flops, busy, target = 0, 0.0, prices.target
    for n in work:
        rate = target.matrix if kind(n) in MATRIX else target.vector
        flops += prices.flops(n)
        busy += prices.flops(n) / rate.get(dtype(n), rate["f32"])
    src = next((n.src for n in work if n.src), "")
    return Region(name, names, "", names, (), (), 0, flops, 0.0, src, busy=busy).ran(ran.launches, ran.bytes, target)
