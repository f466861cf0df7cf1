"""The regions of a half as they were emitted: each with what its kernel launches, or the torch ops in its place.

    h = einsum(x, w) ; a = map(h) "gelu(h)"   a matmul of 1 launch   ->   refused: 2 launches, more bytes

Fusion chose them by what they would cost; here the statements of the printed kernel path are charged to them.
"""

from collections.abc import Iterable
from dataclasses import replace

from weft.ir.ops.op import kind
from weft.ir.types import Graph
from weft.passes.fusion.grouping import Region, grouped
from weft.passes.fusion.price import Prices
from weft.passes.fusion.ran import Ran
from weft.passes.stage import Half


def settled(half: Half, ran: Iterable[Ran], prices: Prices) -> Half:
    """The half with its regions so priced, in its decisions too. ran: of values of its graph; a statement is its last
    value's region's, one whose values are all of other nodes the one's before."""
    home, charged, last = _homes(half.graph, half.fusion.regions), dict[str, tuple[int, int]](), ""
    for one in ran:
        last = next((home[name] for name in reversed(one.nodes) if name in home), last)
        if one.launches:
            launches, nbytes = charged.get(last, (0, 0))
            charged[last] = launches + one.launches, nbytes + one.bytes
    first = half.fusion.regions[0].id if half.fusion.regions else ""
    if "" in charged:
        early, own = charged.pop(""), charged.get(first, (0, 0))
        charged[first] = own[0] + early[0], own[1] + early[1]
    regions = tuple(r.ran(*charged.get(r.id, (0, 0)), prices.target) for r in half.fusion.regions)
    seconds, gain = sum(r.seconds for r in regions), half.fusion.unfused - half.fusion.seconds
    found = replace(half.fusion, regions=regions, seconds=seconds, unfused=seconds + gain)
    chosen = tuple(d for d in half.graph.decisions if d.pass_ != "fusion")
    return replace(half, graph=grouped(replace(half.graph, decisions=chosen), found), fusion=found)


def _homes(graph: Graph, regions: Iterable[Region]) -> dict[str, str]:
    """Value -> the region that makes it, or what it is a view of."""
    of = {name: r.id for r in regions for name in r.nodes}
    out: dict[str, str] = {}
    for n in graph.nodes:
        place = of.get(n.outs[0].name)
        if place is None and kind(n) == "view":
            place = out.get(n.ins[0].name)
        if place is not None:
            out |= {v.name: place for v in n.outs}
    return out
