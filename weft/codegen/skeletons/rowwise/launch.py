"""The launch of the rowwise kernel: operands and holes in, results filled.

    HOLES = Holes(body, (stage,), (("sum",),), pre=pre, finish=finish)
    rows(NAME, HOLES, x, (rows,), (columns,), ins=((x, (0,), (1,)),), outs=((y, (0,), (1,)),), per_row=((rstd, (0,)),))

name, like   of the configuration: the kernel's, and a tensor of the dtype that it is for
rows, columns   the sizes of the groups of dims that are walked as rows, and as the row
ins, outs    operands, see `host.laid`; per_row: results over the rows; sums: results over the columns
x, ends      X, the tuple of what holes read besides, and the one of `after`; None where they read nothing
"""

from math import prod
from typing import Any, NamedTuple

import triton

from ..common import host
from ..pointwise import launch as pointwise
from . import kernel


class Holes(NamedTuple):
    """As in `kernel`. stages, kinds: see KINDS there; after: what is made of `summed` sums over rows, or None."""

    body: Any
    stages: tuple[Any, ...] = ()
    kinds: tuple[tuple[str, ...], ...] = ()
    pre: Any = None
    finish: Any = None
    after: Any = None
    summed: int = 0


def rows(name, holes, like, rows, columns, ins=(), outs=(), per_row=(), sums=(), x=None, ends=None):
    """Sums over rows come as one partial result for each program; the pointwise kernel ends them."""
    config, sizes = host.config(name, like), (*rows, *columns)
    ins, outs, per_row = host.laid(ins), host.laid(outs), host.laid(per_row)
    single, bm, bn = host.row_tile(prod(rows), prod(columns), config)
    blocks = triton.cdiv(prod(rows), bm)
    programs = min(config["PROGRAMS"], blocks) if holes.summed else blocks
    parts = host.partial(like, holes.summed, programs, columns)
    kernel.rowwise[(programs,)](
        ins.tensors, ins.strides, outs.tensors, outs.strides, per_row.tensors, per_row.strides, parts.tensors,
        parts.strides, sizes, x, holes.pre, holes.stages, holes.finish, holes.body, KINDS=holes.kinds, IN_DIMS=ins.dims,
        OUT_DIMS=outs.dims, ROW_DIMS=per_row.dims, SUM_DIMS=parts.dims, NR=len(rows), SINGLE=single, BM=bm, BN=bn,
        ACC=host.acc(like), IDX=host.index(sizes, ins, outs, per_row, parts, x), **host.options(config),
    )  # fmt: skip
    if holes.summed:
        last = pointwise.Holes(None, ("sum",) * holes.summed, holes.after)
        tile = host.tile(programs, prod(columns), 2048, 64)
        pointwise.ended(last, like, programs, columns, parts, sums, ends, tile, config)
