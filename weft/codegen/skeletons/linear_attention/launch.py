"""Launches of the linear attention kernels: operands in, results filled.

    decayed_product(NAME, w, (chunks,), (places, keys), ins=((w, (0,), (1,), (2,)), ...), outs=((m, (0,), (1,), (2,)),))

name, like   of the configuration: the kernel's, and a tensor of the dtype that it is for
chunks       the sizes of the groups of dims that are walked as chunks
sizes        places of a chunk, and keys
ins, outs    operands and results with groups (chunks ..., place, key), see `host.laid`; matrices between places, and
             `d`, the cotangent of one, with (chunks ..., row, column)
"""

from math import prod

import triton

from ..common import host
from ..matmul.launch import factor
from . import kernel


def decayed_product(name, like, chunks, sizes, ins=(), outs=()):
    config, ins, outs = host.config(name, like), host.laid(ins), host.laid(outs)
    kernel.decayed_product[(prod(chunks),)](
        ins.tensors, ins.strides, outs.tensors, outs.strides, (*chunks, *sizes), IN_DIMS=ins.dims, OUT_DIMS=outs.dims,
        BK=config["BK"], **common(config, like, chunks, sizes, ins, outs),
    )  # fmt: skip


def decayed_product_backward(name, like, chunks, sizes, ins=(), d=(), outs=()):
    config = host.config(name, like)
    ins, d, outs = map(host.laid, (ins, d, outs))
    kernel.decayed_product_backward[(prod(chunks) * triton.cdiv(sizes[1], config["BK"]),)](
        ins.tensors, ins.strides, d.tensors, d.strides, outs.tensors, outs.strides, (*chunks, *sizes), IN_DIMS=ins.dims,
        D_DIMS=d.dims, OUT_DIMS=outs.dims, BK=config["BK"], **common(config, like, chunks, sizes, ins, d, outs),
    )  # fmt: skip


def unit_inverse(name, like, chunks, places, ins=(), outs=()):
    """Errors grow from level to level: factors are of the accumulator's dtype, in tf32 where results are narrower, as
    three of them where not."""
    config, ins, outs, sizes = host.config(name, like), host.laid(ins), host.laid(outs), (places, places)
    prec = "tf32" if like.dtype.itemsize < 4 else "tf32x3"
    kernel.unit_inverse[(prod(chunks),)](
        ins.tensors, ins.strides, outs.tensors, outs.strides, (*chunks, *sizes), IN_DIMS=ins.dims, OUT_DIMS=outs.dims,
        **common(config, like, chunks, sizes, ins, outs) | {"DOT": host.acc(like), "PREC": prec},
    )  # fmt: skip


def common(config, like, chunks, sizes, *read):
    """What all of them take by name."""
    levels = max(4, (sizes[0] - 1).bit_length())  # a factor of a product has 16 rows at least
    return {
        "NZ": len(chunks), "C": 1 << levels, "LEVELS": levels, "DOT": factor(like), "PREC": "ieee",
        "ACC": host.acc(like), "IDX": host.index((*chunks, *sizes), *read), **host.options(config),
    }  # fmt: skip
