"""Peak bytes of a block read off its graph: each value lives from the node that makes it to the last that reads it.

An estimate that needs no torch: views share storage, and what an operation needs inside itself is not counted. The
profile that a memory budget is kept by is measured on the emitted functions instead.
"""

from collections.abc import Collection

from weft.ir.types import Graph, Val
from weft.passes.chain import BlockProfile, Mode
from weft.passes.price import Prices
from weft.passes.recompute import Halves, extra_time, split


def storages(graph: Graph) -> dict[Val, Val]:
    """Every value -> the value whose storage it shows."""
    out = {v: v for v in graph.inputs}
    for n in graph.nodes:
        out |= {v: out[n.ins[0]] if n.op.shows else v for v in n.outs}
    return out


def peak(graph: Graph, prices: Prices) -> int:
    """Most bytes alive at once, of values that the graph itself makes; its outputs live to the end."""
    shown, inputs = storages(graph), set(graph.inputs)
    last = {shown[v]: i for i, n in enumerate(graph.nodes) for v in (*n.outs, *n.ins)}
    last |= {shown[v]: len(graph.nodes) for v in graph.outputs}
    now = most = 0
    ends: dict[int, list[Val]] = {}
    for v, i in last.items():
        ends.setdefault(i, []).append(v)
    for i, n in enumerate(graph.nodes):
        now += sum(prices.size(v) for v in n.outs if shown[v] == v)
        most = max(most, now)
        now -= sum(prices.size(v) for v in ends.get(i, []) if v not in inputs)
    return most


def estimate(
    name: str,
    joint: Graph,
    outputs: int,
    kept: dict[str, tuple[str, ...]],
    prices: Prices,
    entering: Collection[str],
    held: Collection[str],
) -> BlockProfile:
    """The profile of a block in each mode, mode -> names of the values it keeps.

    entering: inputs that come from the block before; held: parameters, which live anyway."""
    ins = [v for v in joint.inputs if v.name in entering]
    leaving = joint.outputs[:1]
    gradients = [v for v in joint.inputs if v.name in held and v.type.floating]
    modes = [
        _mode(mode, split(joint, outputs, names), outputs, prices, ins, leaving, held) for mode, names in kept.items()
    ]
    return BlockProfile(name, tuple(modes), sum(map(prices.size, ins)), sum(map(prices.size, gradients)))


def _mode(
    name: str,
    halves: Halves,
    outputs: int,
    prices: Prices,
    ins: list[Val],
    leaving: tuple[Val, ...],
    held: Collection[str],
) -> Mode:
    shown = storages(halves.forward)
    read = {shown[v] for v in (*halves.saved, *(v for v in halves.backward.inputs if v in shown))}
    keeps_input, keeps_output = bool(read & set(ins)), bool(read & {shown[v] for v in leaving})
    own = [v for v in read if v not in ins and v.name not in held and v not in {shown[o] for o in leaving}]
    saved = sum(map(prices.size, own))
    boundary = sum(map(prices.size, ins)) * keeps_input + sum(map(prices.size, leaving)) * keeps_output
    cotangents = sum(prices.size(v) for v in halves.forward.outputs[:outputs] if v.type.floating)
    backward = saved + boundary + cotangents + peak(halves.backward, prices)
    return Mode(
        name, saved, peak(halves.forward, prices), backward, extra_time(halves, prices), keeps_input, keeps_output
    )
