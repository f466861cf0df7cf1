"""Peak bytes of a block read off its graph: each value lives from the node that makes it to the last that reads it.

An estimate that needs no torch: views share storage, and what an operation needs inside itself is not counted. The
profile that a memory budget is kept by is measured on the emitted functions instead.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from weft.ir.types import Graph, Val
from weft.passes.fusion.price import Prices
from weft.passes.recompute import Halves, extra_time, split
from weft.passes.schedule import BlockProfile, RunMode


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
    outputs: Sequence[Val],
    kept: dict[str, tuple[str, ...]],
    prices: Prices,
    entering: Collection[str],
    held: Collection[str],
) -> BlockProfile:
    """The profile of a block in each mode, mode -> names of the values it keeps.

    outputs: as the block calls them, which passes may have renamed since. entering: inputs that other blocks make;
    held: parameters, which live anyway."""
    count = len(outputs)
    ins = [v for v in joint.inputs if v.name in entering]
    gradients = [v for v in joint.inputs if v.name in held and v.type.floating]
    called = {v: own.name for v, own in zip(joint.outputs, outputs)}
    leaves = {v: called[v] for v in leaving(joint.outputs[:count], joint)}
    ends = {v: v.name for v in ins} | leaves
    modes = [_mode(mode, split(joint, count, names), prices, ends, held) for mode, names in kept.items()]
    return BlockProfile(
        name,
        tuple(modes),
        bytes_of(ins, prices),
        tuple((name, prices.size(v)) for v, name in leaves.items()),
        sum(map(prices.size, gradients)),
    )


def bytes_of(values: Iterable[Val], prices: Prices) -> tuple[tuple[str, int], ...]:
    """Names and bytes."""
    return tuple((v.name, prices.size(v)) for v in values)


def leaving(outputs: Sequence[Val], graph: Graph) -> list[Val]:
    """The values that a block makes for others: its floats, of which it was not given one."""
    return [v for v in dict.fromkeys(outputs) if v.type.floating and v not in graph.inputs]


def _mode(name: str, halves: Halves, prices: Prices, ends: Mapping[Val, str], held: Collection[str]) -> RunMode:
    shown = storages(halves.forward)
    read = {shown[v] for v in (*halves.saved, *(v for v in halves.backward.inputs if v in shown))}
    keeps = frozenset(name for v, name in ends.items() if shown[v] in read)
    known = {shown[v] for v in ends}
    saved = sum(prices.size(v) for v in read if v not in known and v.name not in held)
    forward, backward = (peak(graph, prices) for graph in (halves.forward, halves.backward))
    return RunMode(name, saved, forward, backward, extra_time(halves, prices), keeps)
