"""The launch of the cross-entropy kernel's forward: operands and holes in, results filled.

    HOLES = Holes(pre)
    loss(NAME, HOLES, x, (rows,), (vocab,), (targets, (0,)), ins=((x, (0,), (1,)),), per_row=((loss, (0,)),))

name, like   of the configuration: the kernel's, and a tensor of the dtype that it is for
rows, columns   the sizes of the groups of dims that are walked as rows, and of the vocabulary
ins          operands of the logits, see `host.laid`; target, per_row: an operand and results over the rows
x            X, the tuple of what holes read besides; None where they read nothing
"""

from math import prod
from typing import Any, NamedTuple

import triton

from ..common import host
from . import kernel


class Holes(NamedTuple):
    """As in `kernel`."""

    pre: Any = None
    finish: Any = None


def loss(name, holes, like, rows, columns, target, ins=(), per_row=(), ignore=None, x=None):
    """ignore: the target of rows whose loss is 0, or None."""
    config, sizes = host.config(name, like), (*rows, *columns)
    ins, target, per_row = host.laid(ins), host.laid((target,)), host.laid(per_row)
    kernel.forward[(triton.cdiv(prod(rows), config["BM"]),)](
        ins.tensors, ins.strides, target.tensors, target.strides, per_row.tensors, per_row.strides, sizes, x, holes.pre,
        holes.finish, IGNORE=ignore, IN_DIMS=ins.dims, TARGET_DIMS=target.dims, ROW_DIMS=per_row.dims, NR=len(rows),
        BM=config["BM"], BN=config["BN"], ACC=host.acc(like), IDX=host.index(sizes, ins, per_row, target, x),
        **host.options(config),
    )  # fmt: skip
