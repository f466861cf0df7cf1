"""Launches of the grouped matmul kernels: operands and holes in, results filled.

    HOLES = Holes(epilogue=epilogue)
    slots(NAME, HOLES, w, Routing(expert, place, 1, experts, capacity), (width,), (inner,), left=..., right=..., ...)

name, like   of the configuration: the kernel's, and a tensor of the dtype that it is for
columns, depth   the sizes of the groups of dims that are columns of results, and of those that are summed
left, right, more, outs   operands, see `host.laid`; what slots own has the groups (expert, batch ..., slot, token ...,
             columns ...), and a token's stand where the slot's do
x            X, the tuple of what holes read besides; None where they read nothing
"""

from math import prod
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common import host
from ..matmul.launch import factor, tile
from . import kernel


class Holes(NamedTuple):
    """`pro`, `epi` and `fac` of the kernels."""

    before: Any = None
    epilogue: Any = None
    factors: Any = None


class Routing(NamedTuple):
    """expert, place: i64[batch ..., token ...], the expert of each token and its slot there; of their dims the first
    `batches` are batches, of each of which an expert has `capacity` slots."""

    expert: Tensor
    place: Tensor
    batches: int
    experts: int
    capacity: int


def slots(name, holes, like, routing, columns, depth, left=(), right=(), more=(), outs=(), x=None):
    """Products of slots and weights; right: of groups (expert, depth ..., columns ...)."""
    left, right, more, outs = map(host.laid, (left, right, more, outs))
    rows = prod(routing.expert.shape[: routing.batches]) * routing.capacity
    launched(
        kernel.grouped_matmul, name, like, routing, (rows, prod(columns)), (columns, depth),
        {"A": left, "B": right, "E": more, "OUT": outs}, (holes.before, holes.epilogue), x,
    )  # fmt: skip


def weights(name, holes, like, routing, rows, columns, left=(), right=(), outs=(), x=None):
    """Products of slots and slots, summed over them; outs: of groups (expert, rows ..., columns ...)."""
    left, right, outs = map(host.laid, (left, right, outs))
    launched(
        kernel.grouped_weights, name, like, routing, (prod(rows), prod(columns)), (rows, columns),
        {"A": left, "D": right, "OUT": outs}, (holes.before, holes.factors), x,
    )  # fmt: skip


def launched(kernel, name, like, routing, results, sides, operands, holes, x):
    """results: rows and columns of an expert's; sides: the groups of the kernel's two sides after tokens."""
    config, token, (rows, columns), (first, second) = host.config(name, like), routed(routing), results, sides
    expert, _, batches, experts, capacity = routing
    every = prod(expert.shape[:batches]) * capacity
    sizes = (experts, *expert.shape[:batches], capacity, *expert.shape[batches:], *first, *second)
    kernel[(experts * triton.cdiv(rows, config["BM"]) * triton.cdiv(columns, config["BN"]),)](
        token, token.stride(), *(part for o in operands.values() for part in (o.tensors, o.strides)), sizes, x, *holes,
        TOKEN_DIMS=((1,) * token.dim(),), **{f"{name}_DIMS": o.dims for name, o in operands.items()}, NR=2 + batches,
        NT=2 + expert.dim(), NN=2 + expert.dim() + len(first), DOT=factor(like), PREC="ieee", ACC=host.acc(like),
        IDX=host.index((experts, every, max(prod(first), prod(second))), tuple(operands.values()), x), **tile(config),
        **host.options(config),
    )  # fmt: skip


def routed(routing):
    """TOKEN of a routing: i32[expert, batch ..., slot]."""
    expert, place, batches, experts, capacity = routing
    token = expert.new_full((experts, *expert.shape[:batches], capacity), -1, dtype=torch.int32)
    most = max(expert.numel(), token.numel())
    kernel.slots[(triton.cdiv(expert.numel(), 256),)](
        (expert,), (expert.stride(),), (place,), (place.stride(),), token, token.stride(), tuple(expert.shape),
        experts, capacity, DIMS=((1,) * expert.dim(),), NB=batches, BM=256,
        IDX=tl.int64 if most + 256 >= 1 << 31 else tl.int32, num_warps=4, num_stages=2, enable_fp_fusion=True,
    )  # fmt: skip
    return token
