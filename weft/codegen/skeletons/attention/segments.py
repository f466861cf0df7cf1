"""Which blocks of keys can be of the segments of a block of queries, and the other way round, as bounds on the device.

Nothing is read back: bounds are tensors that the kernels load. A bound leaves out what is of another segment whatever
the order of the numbers; where they rise or fall along a row, as those of packed documents do, it is exact but for
blocks on a border. Numbers are int64, of which none is negated: `~x` turns the order round without overflow.
"""

import torch
from torch import Tensor


def edges(x: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The least and the greatest of each `block` neighbours of x [B, N]: [B, blocks] each."""
    short = -x.shape[1] % block
    x = torch.cat([x, x[:, -1:].expand(-1, short)], 1) if short else x
    x = x.unflatten(1, (-1, block))
    return x.amin(2), x.amax(2)


def bounds(rows: Tensor, columns: Tensor, block: int, other: int) -> tuple[Tensor, Tensor, int]:
    """(first, end, blocks of rows): of each block of `block` rows the blocks of `other` columns that can share a
    segment with it. rows [B, N], columns [B, M]; first, end int32 [B, blocks]."""
    (low, high), (least, most) = edges(rows, block), edges(columns, other)
    first = torch.maximum(
        torch.searchsorted(most.cummax(1).values, low), torch.searchsorted(~least.cummin(1).values, ~high)
    )
    end = torch.minimum(
        torch.searchsorted(least.flip(1).cummin(1).values.flip(1).contiguous(), high, right=True),
        torch.searchsorted(~most.flip(1).cummax(1).values.flip(1).contiguous(), ~low, right=True),
    )
    return first.int(), end.int(), low.shape[1]
