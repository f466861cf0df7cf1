"""The launch of the scan kernel: operands and holes in, results filled.

    HOLES = Holes(cell, start)
    scan(NAME, HOLES, x, seq, (batch, width), per_step=((x, (1,), (0,), (2,)),), outs=(...), ends=(...), states=1)

name, like   of the configuration: the kernel's, and a tensor of the dtype that it is for
steps, lanes   how many steps; the sizes of the groups of dims that are walked as lanes
per_step, outs   operands and results with groups (time, lanes ...), see `host.laid`; per_lane, ends: (lanes ...)
states       how many; the first are stored in `ends` after the last step
x            X, the tuple of what holes read besides; None where they read nothing
"""

from math import prod
from typing import Any, NamedTuple

import triton

from ..common import host
from . import kernel


class Holes(NamedTuple):
    """As in `kernel`."""

    cell: Any
    start: Any
    before: Any = None


def scan(
    name, holes, like, steps, lanes, per_step=(), per_lane=(), outs=(), ends=(), states=0, reverse=False, x=None
):  # fmt: skip
    config = host.config(name, like)
    per_step, per_lane, outs, ends = map(host.laid, (per_step, per_lane, outs, ends))
    kernel.scan[(triton.cdiv(prod(lanes), config["B"]),)](
        per_step.tensors, per_step.strides, per_lane.tensors, per_lane.strides, (), (), outs.tensors, outs.strides, (),
        (), ends.tensors, ends.strides, steps, lanes, x, holes.before, holes.start, holes.cell, SEQ_DIMS=per_step.dims,
        LANE_DIMS=per_lane.dims, INIT_DIMS=(), OUT_DIMS=outs.dims, KEPT_DIMS=(), LAST_DIMS=ends.dims, STATES=states,
        REVERSE=reverse, AHEAD=config["AHEAD"], EVERY=1, U=config["U"], B=config["B"], ACC=host.acc(like),
        IDX=host.index((prod(lanes), steps), per_step, per_lane, outs, ends, x), **host.options(config),
    )  # fmt: skip
