"""Products of rows with the matrices of the experts they were sent to: one expert after the other, no row padded.

How many rows an expert has is read off a tensor. A compiler therefore takes a product whole, as one op (`whole`); under
fake tensors each expert takes all rows, and others' are left out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .whole import OPS, define


def groups(expert: Tensor, experts: int) -> Sequence[Tensor]:
    """The rows of each expert, in order, of expert [...]: their numbers, or [R] whether a row is the expert's.

    For a compiler each is all of `expert`, [R]."""
    expert = expert.reshape(-1)
    if torch.compiler.is_compiling():
        return [expert] * experts
    if type(expert) is not Tensor:
        return [expert == e for e in range(experts)]
    order = expert.argsort(stable=True)
    if expert.is_meta:  # most memory is taken where one expert has all rows
        return [order] + [order[:0]] * (experts - 1)
    return order.split(torch.bincount(expert, minlength=experts).tolist())


def product(x: Tensor, w: Tensor, rows: Sequence[Tensor], each: int = 1) -> Tensor:
    """y [R, N]: of a row r of expert e, x[r // each] @ w[e]; x [R / each, K], w [experts, K, N]."""
    if torch.compiler.is_compiling():
        return OPS.expert_product(x, w, rows[0], each)
    y = x.new_empty(x.shape[0] * each, w.shape[2])
    for own, matrix in zip(rows, w):
        if own.dtype == torch.bool:
            y = torch.where(own[:, None], (x @ matrix).repeat_interleave(each, 0), y)
        elif own.numel() or own.is_meta:  # what is counted there is what experts with rows launch
            y.index_copy_(0, own, x.index_select(0, _shared(own, each)) @ matrix)
    return y


def weights(x: Tensor, d: Tensor, rows: Sequence[Tensor], each: int = 1) -> Tensor:
    """dw [experts, K, N]: of an expert, the sum over its rows r of x[r // each] d[r]; x [R / each, K], d [R, N]."""
    if torch.compiler.is_compiling():
        return OPS.expert_weights(x, d, rows[0], len(rows), each)
    out = x.new_empty(len(rows), x.shape[1], d.shape[1])
    for e, own in enumerate(rows):
        if own.dtype == torch.bool:
            out[e] = x.repeat_interleave(each, 0).T @ torch.where(own[:, None], d, 0)
        else:
            out[e] = x.index_select(0, _shared(own, each)).T @ d.index_select(0, own)
    return out


def _shared(own: Tensor, each: int) -> Tensor:
    return own if each == 1 else own // each


def _product(x: Tensor, w: Tensor, expert: Tensor, each: int) -> Tensor:
    return product(x, w, groups(expert, w.shape[0]), each)


def _product_fake(x: Tensor, w: Tensor, expert: Tensor, each: int) -> Tensor:
    return x.new_empty(x.shape[0] * each, w.shape[2])


def _weights(x: Tensor, d: Tensor, expert: Tensor, experts: int, each: int) -> Tensor:
    return weights(x, d, groups(expert, experts), each)


def _weights_fake(x: Tensor, d: Tensor, expert: Tensor, experts: int, each: int) -> Tensor:
    return x.new_empty(experts, x.shape[1], d.shape[1])


define("expert_product", "(Tensor x, Tensor w, Tensor expert, SymInt each) -> Tensor", _product, _product_fake)
define(
    "expert_weights",
    "(Tensor x, Tensor d, Tensor expert, SymInt experts, SymInt each) -> Tensor",
    _weights,
    _weights_fake,
)
