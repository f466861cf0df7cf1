"""A device mesh in a plan: which dims its axes split, one device's share of the model, and the collectives between.

The plan under a mesh is that of one device: sizes, FLOPs, bytes and peak are its share. Collectives are counted on the
forward and the backward of each block in the modes that its layers use, so that what a recomputation sends once more
counts and what nobody recomputes does not.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from weft.codegen.plan.planner import Planned, PlannedBlock
from weft.errors import UsageError
from weft.ir.ops.op import body_of
from weft.ir.placement import Collective, collectives
from weft.ir.program import Program, Size
from weft.ir.types import Graph
from weft.passes.fusion.price import Prices
from weft.passes.recompute import split

AXES: Mapping[str, tuple[str, ...]] = {
    "dp": ("batch",),
    "tp": ("kv_heads", "heads", "inner", "vocab", "channels"),
    "ep": ("experts",),
    "sp": ("seq",),
    "cp": ("seq",),
}
"""Axis -> the roles of the dims it splits, in order of preference: data, tensor, expert, sequence, context parallel."""


@dataclass(frozen=True)
class MeshCut:
    """A mesh on a model. sizes: of the whole model. dims: axis -> the dims it splits, most preferred first; whole: axis
    -> dims of its roles that its size does not divide."""

    axes: Mapping[str, int]
    sizes: Mapping[str, int]
    dims: Mapping[str, tuple[str, ...]]
    whole: Mapping[str, tuple[str, ...]]

    @property
    def share(self) -> dict[str, int]:
        """Sizes on one device. A dim that two axes could split is split by the first."""
        by = {d: self.axes[axis] for axis, dims in reversed([*self.dims.items()]) for d in dims}
        return {d: n // by.get(d, 1) for d, n in self.sizes.items()}

    @property
    def split(self) -> set[str]:
        return {d for d, n in self.share.items() if n != self.sizes[d]}


def parse(text: str) -> dict[str, int]:
    """ "dp=2,tp=4" -> sizes by axis. Raises UsageError naming what is wrong."""
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"a mesh is a text such as 'dp=2,tp=4', not {type(text).__name__}")
    out: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.strip().partition("=")
        if axis not in AXES:
            raise UsageError(f"no mesh axis is called {axis[:20]!r}; known: {', '.join(AXES)}; write dp=2,tp=4")
        if axis in out or not size.isascii() or not size.isdigit() or len(size) > 9 or int(size) < 1:
            raise UsageError(f"write --mesh like dp=2,tp=4; {part[:20]!r} is not an axis with a size")
        out[axis] = int(size)
    return out


def cut(program: Program, axes: Mapping[str, int], sizes: Mapping[str, int]) -> MeshCut:
    """What each axis splits: dims that values of the model have, by what they are the size of. One that the axis does
    not divide stays whole. Raises UsageError when that leaves an axis nothing to split."""
    present = dims_of(program.graph)
    dims, whole = dict[str, tuple[str, ...]](), dict[str, tuple[str, ...]]()
    for axis, size in axes.items():
        own = [d for role in AXES[axis] for d in sorted(present) if role in program.roles.get(d, ())]
        own = list(dict.fromkeys(own))
        dims[axis] = tuple(d for d in own if sizes[d] % size == 0)
        whole[axis] = tuple(d for d in own if sizes[d] % size)
        if not dims[axis]:
            have = ", ".join(f"{d} {sizes[d]}" for d in own) or f"no dim of {', '.join(AXES[axis])}"
            raise UsageError(f"{axis}={size} divides nothing that it could split: the model has {have}")
    return MeshCut(dict(axes), dict(sizes), dims, whole)


def dims_of(graph: Graph) -> set[str]:
    """The dims of all values of a graph, in its loops and calls too."""
    found = {d for v in (*graph.inputs, *(v for n in graph.nodes for v in n.outs)) for d in v.dims}
    bodies = [b for n in graph.nodes if (b := body_of(n.op)) is not None]
    return found.union(*map(dims_of, bodies))


def runs_alone(graph: Graph, parts: MeshCut) -> bool:
    """Does what is emitted for the whole run at one device's sizes? Not where a split dim becomes one that is whole,
    such as queries of a split sequence that see all keys."""
    for n in graph.nodes:
        if (body := body_of(n.op)) is not None and not runs_alone(body, parts):
            return False
        ins, outs = ({d for v in vs for d in v.dims} for vs in (n.ins, n.outs))
        if n.op.moves() and len((ins ^ outs) & parts.split) % 2:
            return False
    return True


def share(program: Program, parts: MeshCut) -> Program:
    """The program of one device: dims that are split have its share for a size, all others stay as they are."""
    mine = parts.split

    def size(dim: str, n: Size) -> Size:
        """What depends on a split dim is that dim's own share, or a number of its own (keys of a split sequence)."""
        depends = dim in mine or (not isinstance(n, int) and bool({str(s)[2:] for s in n.free_symbols} & mine))
        return parts.share[dim] if depends else n

    return replace(program, sizes={d: size(d, n) for d, n in program.sizes.items()})


def sharded(parts: MeshCut, planned: Planned, parameters: int) -> dict[str, Any]:
    """The mesh and its collectives for one step (forward, and backward when training), as data.

    planned: the plan of one device. parameters: of the whole model."""
    rows = list(_rows(parts, planned))
    totals: dict[str, dict[str, int]] = {}
    for row in rows:
        total = totals.setdefault(f"{row['axis']} {row['kind']}", {"places": 0, "times": 0, "bytes": 0})
        total["places"] += 1
        total["times"] += row["times"]
        total["bytes"] += row["bytes"]
    return {
        "axes": dict(parts.axes),
        "devices": prod(parts.axes.values()),
        "dims": {axis: list(dims) for axis, dims in parts.dims.items()},
        "whole": {axis: list(dims) for axis, dims in parts.whole.items() if dims},
        "parameters": parameters,
        "totals": dict(sorted(totals.items())),
        "collectives": rows,
    }


def _rows(parts: MeshCut, planned: Planned) -> Iterator[dict[str, Any]]:
    """A row for each change of placement in a half of a block: what it moves in all runs of that half in a step."""
    prices = Prices(parts.sizes, planned.target)
    for i, b in enumerate(planned.blocks):
        for side, half, runs in _halves(planned, i, b):
            for c in collectives(half, parts.dims):
                yield _row(c, prices, runs) | {"block": b.name, "side": side}


def _row(c: Collective, prices: Prices, runs: int) -> dict[str, Any]:
    return {
        "kind": c.kind,
        "axis": c.axis,
        "value": c.value,
        "dims": list(c.dims),
        "times": prices.number(c.times) * runs,
        "bytes": prices.number(c.bytes) * runs,
        "src": c.src,
    }


def _halves(planned: Planned, index: int, b: PlannedBlock) -> Iterator[tuple[str, Graph, int]]:
    """Each half of a block with how often it runs in a step; forwards of different modes are one function of the same
    collectives, for what they keep lies where it was made."""
    joint = b.made.plain
    if joint is None:
        yield "forward", b.made.graph, b.calls
        return
    made = {v.name for n in joint.nodes for v in n.outs}
    for mode in b.block.modes:
        runs = sum(layer.block == index and layer.mode == mode.name for layer in planned.layers)
        if runs:
            two = split(joint, len(b.block.graph.outputs), made & set(mode.saved))
            yield f"forward, {mode.name}", two.forward, runs
            yield f"backward, {mode.name}", two.backward, runs
