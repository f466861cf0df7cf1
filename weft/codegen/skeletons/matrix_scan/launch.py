"""The launch of the matrix scan kernel: operands and holes in, results filled.

    HOLES = Holes(cell)
    matrix_scan(NAME, HOLES, x, chunks, (batch,), 64, seq=((x, 0, (1,), (0,), (2,), (3,)),), start=(...), ...)

name, like   of the configuration: the kernel's, and a tensor of the dtype that it is for
steps, lanes   how many steps; the sizes of the groups of dims that are walked as lanes
divided      the size of the dim that programs divide among them, 0 for none
seq, shared, start, outs, before, ends   each operand: (which of its axes is divided: 0 its rows, 1 its columns, -1
             none; tensor; its axes in the groups (lanes ..., time, row, column), see `host.strided`); of a result of
             states the number of the state stands before
x            X, the tuple of what holes read besides; None where they read nothing
"""

from math import prod
from typing import Any, NamedTuple

import triton

from ..common import host
from ..matmul.launch import factor
from . import kernel


class Holes(NamedTuple):
    """As in `kernel`."""

    cell: Any


def matrix_scan(
    name, holes, like, steps, lanes, divided=0, seq=(), shared=(), start=(), outs=(), before=(), ends=(), reverse=False,
    x=None,
):  # fmt: skip
    config = host.config(name, like)
    size = config["B"] if divided else 0
    blocks = triton.cdiv(divided, size) if divided else 1
    states = tuple(k for k, *_ in before), tuple(k for k, *_ in ends)
    groups = {"SEQ": seq, "SHARED": shared, "START": start, "OUT": outs}
    groups |= {"BEFORE": [one[1:] for one in before], "LAST": [one[1:] for one in ends]}
    found = {group: tiled(given, size) for group, given in groups.items()}
    read = [operands for operands, _ in found.values()]
    kernel.matrix_scan[(prod(lanes) * blocks,)](
        *(part for o in read for part in (o.tensors, o.strides)), steps, lanes, x, holes.cell,
        **{f"{group}_TILES": tiles for group, (_, tiles) in found.items()}, OUT_OF=tuple(range(len(outs))),
        BEFORE_OF=states[0], LAST_OF=states[1], REVERSE=reverse, BLOCKS=blocks, B=size, DOT=factor(like), PREC="tf32x3",
        ACC=host.acc(like), IDX=host.index((prod(lanes), steps), read, x), **host.options(config, num_stages=1),
    )  # fmt: skip


def tiled(given, size):
    """Operands as the kernel takes them, and their tiles."""
    operands = host.laid([one[1:] for one in given])
    tiles = []
    for axis, x, *groups in given:
        rows, columns = (x.shape[g[0]] if g else 1 for g in groups[-2:])
        r, n = (size if axis == k else power(g, m) for k, (g, m) in enumerate(zip(groups[-2:], (rows, columns))))
        tiles.append((r, rows, n, columns, axis))
    return operands, tuple(tiles)


def power(group, size):
    """The size of a tile's axis: a power of 2, and of 16 at least, as a factor of a product has."""
    return max(16, triton.next_power_of_2(size)) if group else 1
