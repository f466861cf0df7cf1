"""Products of rows with the matrices of the experts they were sent to: one expert after the other, no row padded.

Where nothing can be read off a tensor, as while it is traced, each expert takes all rows and others' are left out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def groups(expert: Tensor, experts: int) -> Sequence[Tensor]:
    """The rows of each expert, in order, of expert [...]: their numbers, or [R] whether a row is the expert's."""
    expert = expert.reshape(-1)
    if type(expert) is not Tensor or torch.compiler.is_compiling():
        return [expert == e for e in range(experts)]
    order = expert.argsort(stable=True)
    if expert.is_meta:  # most memory is taken where one expert has all rows
        return [order] + [order[:0]] * (experts - 1)
    return order.split(torch.bincount(expert, minlength=experts).tolist())


def product(x: Tensor, w: Tensor, rows: Sequence[Tensor], each: int = 1) -> Tensor:
    """y [R, N]: of a row r of expert e, x[r // each] @ w[e]; x [R / each, K], w [experts, K, N]."""
    y = x.new_empty(x.shape[0] * each, w.shape[2])
    for own, matrix in zip(rows, w):
        if own.dtype == torch.bool:
            y = torch.where(own[:, None], (x @ matrix).repeat_interleave(each, 0), y)
        elif own.numel():
            y.index_copy_(0, own, x.index_select(0, _shared(own, each)) @ matrix)
    return y


def weights(x: Tensor, d: Tensor, rows: Sequence[Tensor], each: int = 1) -> Tensor:
    """dw [experts, K, N]: of an expert, the sum over its rows r of x[r // each] d[r]; x [R / each, K], d [R, N]."""
    out = x.new_empty(len(rows), x.shape[1], d.shape[1])
    for e, own in enumerate(rows):
        if own.dtype == torch.bool:
            out[e] = x.repeat_interleave(each, 0).T @ torch.where(own[:, None], d, 0)
        else:
            out[e] = x.index_select(0, _shared(own, each)).T @ d.index_select(0, own)
    return out


def _shared(own: Tensor, each: int) -> Tensor:
    return own if each == 1 else own // each
