"""Launches of the pointwise kernels: operands and holes in, results filled.

    HOLES = Holes(body)
    maps(NAME, HOLES, x, (rows,), (columns,), ins=((x, (0,), (1,)), (w, None, (0,))), outs=((y, (0,), (1,)),))

name, like   of the configuration: the kernel's, and a tensor of the dtype that it is for
rows, columns   the sizes of the groups of dims that are walked as rows, and as columns
ins, outs    operands, see `host.laid`; sums: results over the columns
x, ends      X, the tuple of what the body reads besides, and the one of `after`; None where they read nothing
"""

from math import prod
from typing import Any, NamedTuple

import triton

from ..common import host
from . import kernel


class Holes(NamedTuple):
    """body, and of sums: the kind of each, and what is made of them (`after`, or None)."""

    body: Any
    kinds: tuple[str, ...] = ()
    after: Any = None


def maps(name, holes, like, rows, columns, ins=(), outs=(), x=None):
    """The body's values, each to its result."""
    config, sizes, ins, outs = host.config(name, like), (*rows, *columns), host.laid(ins), host.laid(outs)
    bm, bn = host.tile(prod(rows), prod(columns), config["BLOCK"])
    kernel.pointwise[(triton.cdiv(prod(rows), bm) * triton.cdiv(prod(columns), bn),)](
        ins.tensors, ins.strides, outs.tensors, outs.strides, sizes, x, holes.body, IN_DIMS=ins.dims,
        OUT_DIMS=outs.dims, NR=len(rows), BM=bm, BN=bn, ACC=host.acc(like), IDX=host.index(sizes, ins, outs, x),
        **host.options(config),
    )  # fmt: skip


def sums(name, holes, like, rows, columns, ins=(), outs=(), sums=(), x=None, ends=None):
    """The body's first values to `outs`, what is made of the sums of the others over rows to `sums`: a partial result
    for each slab of rows, then their end."""
    config, sizes, ins, outs = host.config(name, like), (*rows, *columns), host.laid(ins), host.laid(outs)
    bm, bn = host.tile(prod(rows), prod(columns), config["BM"] * config["BN"], config["BN"])
    slabs = min(config["SLABS"], triton.cdiv(prod(rows), bm))
    parts = host.partial(like, len(holes.kinds), slabs, columns)
    kernel.reduce_rows[(triton.cdiv(prod(columns), bn), slabs)](
        ins.tensors, ins.strides, outs.tensors, outs.strides, parts.tensors, parts.strides, sizes, x, holes.body, None,
        KINDS=holes.kinds, SUM_DIMS=parts.dims, IN_DIMS=ins.dims, OUT_DIMS=outs.dims, NR=len(rows), BM=bm, BN=bn,
        ACC=host.acc(like), IDX=host.index(sizes, ins, outs, parts, x), **host.options(config),
    )  # fmt: skip
    ended(holes, like, slabs, columns, parts, sums, ends, (bm, bn), config)


def ended(holes, like, slabs, columns, parts, sums, x, tile, config):
    """What is made of `slabs` partial results over columns to `sums`, in one launch."""
    bm, bn = tile
    to = host.slab(host.laid(sums))
    kernel.reduce_rows[(triton.cdiv(prod(columns), bn), 1)](
        parts.tensors, parts.strides, (), (), to.tensors, to.strides, (slabs, *columns), x, kernel.same, holes.after,
        KINDS=holes.kinds, SUM_DIMS=to.dims, IN_DIMS=parts.dims, OUT_DIMS=(), NR=1, BM=bm, BN=bn, ACC=host.acc(like),
        IDX=host.index((slabs, prod(columns)), parts, to, x), **host.options(config),
    )  # fmt: skip
