"""The launch of the matmul kernel: operands and holes in, results filled.

    HOLES = Holes(epilogue=epilogue)
    matmul(NAME, HOLES, w, ((), (rows,), (width,), (inner,)), left=((x, (0,), (1,)),), right=((w, (0,), (1,)),), ...)

name, like   of the configuration: the kernel's, and a tensor of the dtype that it is for
sizes        of the groups of dims that are walked as batches, as rows, as columns, and that are summed
left, right  operands with groups (batches, rows, summed) and (batches, summed, columns), see `host.laid`
more, outs   what the epilogue reads and the results, with groups (batches, rows, columns)
x            X, the tuple of what holes read besides; None where they read nothing
"""

from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common import host
from . import kernel


class Holes(NamedTuple):
    """`pro` and `epi` of the kernel."""

    before: Any = None
    epilogue: Any = None


def factor(x: Tensor) -> tl.dtype:
    """DOT of a tensor's dtype."""
    known = {torch.float64: tl.float64, torch.float32: tl.float32, torch.float16: tl.float16}
    return known.get(x.dtype, tl.bfloat16)


def matmul(name, holes, like, sizes, left=(), right=(), more=(), outs=(), x=None):
    config = host.config(name, like)
    left, right, more, outs = map(host.laid, (left, right, more, outs))
    batches, rows, columns, depth = map(prod, sizes)
    nz, nm, nn, _ = accumulate(map(len, sizes))
    kernel.matmul[(batches * triton.cdiv(rows, config["BM"]) * triton.cdiv(columns, config["BN"]),)](
        left.tensors, left.strides, right.tensors, right.strides, more.tensors, more.strides, outs.tensors,
        outs.strides, (), (), sum(sizes, ()), x, holes.before, holes.epilogue, A_DIMS=left.dims, B_DIMS=right.dims,
        E_DIMS=more.dims, OUT_DIMS=outs.dims, SUM_DIMS=(), NZ=nz, NM=nm, NN=nn, DOT=factor(like), PREC="ieee",
        ACC=host.acc(like), IDX=host.index((batches, rows, max(columns, depth)), left, right, more, outs, x),
        **tile(config), **host.options(config),
    )  # fmt: skip


def tile(config):
    """A program's tile."""
    return {name: config[name] for name in ("GROUP", "BM", "BN", "BK")}
