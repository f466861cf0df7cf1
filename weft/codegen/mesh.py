"""A device mesh in a plan: which dims its axes split, and the collectives that follow from the ops' roles."""

from collections.abc import Mapping
from typing import Any

from weft.errors import UsageError
from weft.ir.placement import collectives
from weft.ir.program import Program
from weft.passes.derivative import joint
from weft.passes.price import Prices

AXES: Mapping[str, tuple[str, ...]] = {
    "dp": ("batch",),
    "tp": ("kv_heads", "heads", "inner", "vocab", "channels"),
    "ep": ("experts",),
    "sp": ("seq",),
    "cp": ("seq",),
}
"""Axis -> the dims it splits, in order of preference: data, tensor, expert, sequence, context parallel."""


def parse(text: str) -> dict[str, int]:
    """ "dp=2,tp=4" -> sizes by axis. Raises UsageError naming what is wrong."""
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"a mesh is a text such as 'dp=2,tp=4', not {type(text).__name__}")
    out: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in AXES:
            raise UsageError(f"no mesh axis is called {axis[:20]!r}; known: {', '.join(AXES)}")
        if axis in out or not size.isascii() or not size.isdigit() or len(size) > 9 or int(size) < 1:
            raise UsageError(f"write --mesh like dp=2,tp=4; {part[:20]!r} is not an axis with a size")
        out[axis] = int(size)
    return out


def sharded(program: Program, mesh: Mapping[str, int], prices: Prices) -> dict[str, Any]:
    """The mesh and its collectives for one step (forward, and backward when training), as data.

    A dim that an axis does not divide stays whole. Raises UsageError when that leaves an axis nothing to split."""
    present = {d for v in program.graph.inputs for d in v.dims} | set(program.sizes)
    dims: dict[str, tuple[str, ...]] = {}
    for axis, size in mesh.items():
        own = [d for d in AXES[axis] if d in present]
        dims[axis] = tuple(d for d in own if prices.sizes[d] % size == 0)
        if not dims[axis]:
            have = ", ".join(f"{d} {prices.sizes[d]}" for d in own) or f"no dim of {', '.join(AXES[axis])}"
            raise UsageError(f"{axis}={size} divides nothing that it could split: the model has {have}")
    params = [p.value for p in program.params]
    found = collectives(joint(program.graph, params) if program.train else program.graph, dims)
    rows: list[dict[str, Any]] = [
        {
            "kind": c.kind,
            "axis": c.axis,
            "value": c.value,
            "dims": list(c.dims),
            "times": prices.number(c.times),
            "bytes": prices.number(c.bytes),
            "src": c.src,
        }
        for c in found
    ]
    totals: dict[str, dict[str, int]] = {}
    for row in rows:
        total = totals.setdefault(f"{row['axis']} {row['kind']}", {"places": 0, "times": 0, "bytes": 0})
        total["places"] += 1
        total["times"] += row["times"]
        total["bytes"] += row["bytes"]
    split = {axis: list(dims[axis]) for axis in mesh}
    return {"axes": dict(mesh), "dims": split, "totals": dict(sorted(totals.items())), "collectives": rows}
