"""Causal convolution along positions, and the derivative of its weights, as products of shifted rows."""

import torch
import torch.nn.functional as F
from torch import Tensor


def convolve(
    x: Tensor, w: Tensor, queries: int | None = None, dilation: int = 1, later: bool = False, at: Tensor | None = None
) -> Tensor:
    """y[.., t] = sum over j of x[.., t - dilation (K - 1 - j)] w[j], x being 0 before its first row.

    x [*rows, T, C]; w [K, C], each channel by itself, or [K, C, D]. queries: how many of the last rows have a result
    (None: all). at: i64 [*rows, queries], how many rows before its own each may read. later: rows after t are read, and
    `at` [*rows, T] is that of what is read. Sums are taken in float32 at least."""
    read = shifted(x, len(w), queries, dilation, later, at)
    if w.dim() == 3:
        return torch.cat(list(read), -1) @ w.flatten(0, 1)
    wide = torch.promote_types(x.dtype, torch.float32)
    first, *rest = read
    y = first.to(wide) * w[0]
    for part, row in zip(rest, w[1:].unbind()):
        y.addcmul_(part.to(wide), row.to(wide))
    return y.to(x.dtype)


def convolve_weights(
    x: Tensor, dy: Tensor, taps: int, dilation: int = 1, dense: bool = False, at: Tensor | None = None
) -> Tensor:
    """The gradient of w from x [*rows, T, C], that of the result [*rows, T, D], and `at` as above: [K, C, D] where
    dense, else [K, C] with D = C."""
    read, rows = shifted(x, taps, None, dilation, False, at), dy.flatten(0, -2)
    if dense:
        return (torch.cat(list(read), -1).flatten(0, -2).mT @ rows).unflatten(0, (taps, -1))
    wide = torch.promote_types(x.dtype, torch.float32)
    rows = rows.to(wide)
    return torch.stack([torch.linalg.vecdot(part.flatten(0, -2).to(wide), rows, dim=0) for part in read]).to(x.dtype)


def shifted(
    x: Tensor, taps: int, queries: int | None, dilation: int, later: bool, at: Tensor | None
) -> tuple[Tensor, ...]:
    """For each tap what the queries read of x: [*rows, queries, C]."""
    far, length = dilation * (taps - 1), x.shape[-2]
    count = length if queries is None else queries
    steps = [dilation * (taps - 1 - j) for j in range(taps)]
    if later and at is not None:
        told = [(d, torch.where((at >= d)[..., None], x, 0)) for d in steps]
        return tuple(F.pad(x, (0, 0, 0, d)).narrow(-2, d, length) for d, x in told)
    room = F.pad(x, (0, 0, 0, far) if later else (0, 0, far, 0))
    read = [room.narrow(-2, length - count + (d if later else far - d), count) for d in steps]
    if at is None:
        return tuple(read)
    return tuple(torch.where((at >= d)[..., None], part, 0) for d, part in zip(steps, read))
