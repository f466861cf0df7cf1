"""What the plan says of decoding: whether there is a step, and what of keys and values it keeps."""

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any

from weft.codegen.package.stepping import Stepping
from weft.codegen.plan.planner import Planned, PlannedBlock
from weft.ir.types import ITEMSIZE, Decision
from weft.passes.blocks import key
from weft.passes.decode.latents import KeptRows
from weft.passes.decode.step import ROWS


def decode(planned: Planned) -> dict[str, Any]:
    """Whether there is a step. Where it keeps less than keys and values: the bytes that a position of a sequence leaves
    in all layers, and those that it would."""
    if planned.decoding.why:
        return {"possible": False, "why": planned.decoding.why}
    kept = saved = 0
    for layer in planned.layers:
        step = _step(planned, planned.blocks[layer.block])
        kept += _left(planned, step) if step else 0
        saved += sum(d.found.saved for d in step.decisions if isinstance(d.found, KeptRows)) if step else 0
    return {"possible": True} | ({"bytes_kept": kept, "bytes_of_keys_and_values": kept + saved} if saved else {})


def decode_decisions(planned: Planned) -> Iterator[Decision]:
    """What each block's step keeps, and why."""
    for b in planned.blocks:
        step = _step(planned, b)
        for d in step.decisions if step else ():
            yield replace(d, subject=f"{b.name}.step: {d.subject}")


def _step(planned: Planned, b: PlannedBlock) -> Stepping | None:
    return planned.decoding.steps.get(key(b.block.site))


def _left(planned: Planned, step: Stepping) -> int:
    """The bytes that one position of one sequence leaves."""
    once = (ROWS, step.time)
    return sum(
        prod(step.sizes.frozen(d) for d in row.new.dims if d not in once) * ITEMSIZE[row.new.dtype] for row in step.rows
    )
