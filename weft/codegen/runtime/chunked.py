"""Sequences in chunks of positions, and what a linear recurrence needs inside of one.

Decays between two places are products of factors between them, made by doubling: the place `after` the read key in the
left half of the smallest dyadic block that holds both, times the places `before` the reading row in its right half. No
logarithm, no division: exact for factors that are 0, negative or above 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cut(x: Tensor, axis: int, size: int) -> Tensor:
    """[.. n ..] -> [.. ceil(n / size) size ..] along an axis, zeros behind."""
    more = -x.shape[axis] % size
    if more or torch.compiler.is_compiling():
        x = F.pad(x, [0, 0] * (x.ndim - axis - 1) + [0, more])
    return x.unflatten(axis, (-1, size))


def join(x: Tensor, axis: int, length: int) -> Tensor:
    """The transpose of `cut`: two axes as one, as far as `length`."""
    return x.flatten(axis, axis + 1).narrow(axis, 0, length)


def _filled(x: Tensor, places: int, value: float = 0.0) -> Tensor:
    return F.pad(x, [0, 0, 0, places - x.shape[-2]], value=value) if x.shape[-2] < places else x


def _halves(x: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """The left and the right halves [.. b m K] of blocks of 2m places of [.. C K]."""
    pairs = x.unflatten(-2, (-1, 2, m))
    return pairs.select(-3, 0), pairs.select(-3, 1)


def _corners(x: Tensor, m: int) -> Tensor:
    """Of [.. C C], the corners [.. b m m] below the diagonal of its diagonal blocks of 2m places."""
    rows, columns = x.unflatten(-2, (-1, 2, m)).select(-3, 1), (-1, 2, m)
    return rows.unflatten(-1, columns).select(-2, 0).diagonal(0, -4, -2).movedim(-1, -3)


def _places(x: Tensor) -> int:
    """The power of 2 that holds all places of [.. C K]."""
    return 1 << (x.shape[-2] - 1).bit_length()


def decayed_product(w: Tensor, k: Tensor, a: Tensor) -> Tensor:
    """M[t, j] = sum of w[t] k[j] a[j+1] .. a[t-1] for j < t, else 0: w, k, a [.. C K] -> [.. C C]."""
    count, places = w.shape[-2], _places(w)
    w, k, a = _filled(w, places), _filled(k, places), _filled(a, places, 1.0)
    out = a.new_zeros(*a.shape[:-2], places, places)
    before, after, whole, m = torch.ones_like(a), torch.ones_like(a), a.unsqueeze(-2), 1
    while m < places:
        (_, br), (al, _), (left, right) = _halves(before, m), _halves(after, m), _halves(whole.flatten(-3, -2), 1)
        _corners(out, m).copy_((_halves(w, m)[1] * br) @ (_halves(k, m)[0] * al).mT)
        br *= left
        al *= right
        whole, m = left * right, 2 * m
    return out[..., :count, :count]


def decayed_product_backward(w: Tensor, k: Tensor, a: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cotangents of w, k and a, from that of M: [.. C C] -> three of [.. C K]."""
    count, places = w.shape[-2], _places(w)
    w, k, a = _filled(w, places), _filled(k, places), _filled(a, places, 1.0)
    d = F.pad(d, [0, places - count, 0, places - count])
    before, after, whole, m = torch.ones_like(a), torch.ones_like(a), a.unsqueeze(-2), 1
    levels = list[tuple[Tensor, Tensor, Tensor, Tensor]]()
    while m < places:
        (_, br), (al, _), (left, right) = _halves(before, m), _halves(after, m), _halves(whole.flatten(-3, -2), 1)
        levels.append((br.clone(), al.clone(), left, right))
        br *= left
        al *= right
        whole, m = left * right, 2 * m
    dw, dk, d_before, d_after = (torch.zeros_like(a) for _ in range(4))
    d_whole = torch.zeros_like(whole)
    while levels:
        br, al, left, right = levels.pop()
        m //= 2
        corner, reads, writes = _corners(d, m), _halves(w, m)[1], _halves(k, m)[0]
        d_reads, d_writes = corner @ (writes * al), corner.mT @ (reads * br)
        _halves(dw, m)[1].addcmul_(d_reads, br)
        _halves(dk, m)[0].addcmul_(d_writes, al)
        into_before, into_after = _halves(d_before, m)[1], _halves(d_after, m)[0]
        d_left = torch.addcmul((into_before * br).sum(-2, keepdim=True), d_whole, right)
        d_right = torch.addcmul((into_after * al).sum(-2, keepdim=True), d_whole, left)
        into_before.mul_(left).addcmul_(d_reads, reads)
        into_after.mul_(right).addcmul_(d_writes, writes)
        d_whole = torch.stack([d_left, d_right], -3).flatten(-4, -3)
    return dw[..., :count, :], dk[..., :count, :], d_whole.squeeze(-2)[..., :count, :]


def unit_inverse(x: Tensor) -> Tensor:
    """(1 - x)^-1 of matrices [.. C C] of which the part below the diagonal is read; torch solves nothing narrower than
    float32."""
    low = x.tril(-1) if x.dtype.itemsize > 2 else x.tril(-1).float()
    one = torch.eye(x.shape[-1], dtype=low.dtype, device=x.device)
    return torch.linalg.solve_triangular(one - low, one.expand_as(low), upper=False, unitriangular=True).to(x.dtype)


def powers(count: int, re: Tensor, im: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
    """1, a, .. a^(count - 1) along a new last axis, of numbers or of the parts of complex ones, by doubling."""
    p, a = torch.ones_like(re).unsqueeze(-1), re.unsqueeze(-1)
    if im is None:
        while p.shape[-1] < count:
            p, a = torch.cat([p, p * a], -1), a * a
        return p.narrow(-1, 0, count)
    q, b = torch.zeros_like(p), im.unsqueeze(-1)
    while p.shape[-1] < count:
        p, q = torch.cat([p, p * a - q * b], -1), torch.cat([q, q * a + p * b], -1)
        a, b = a * a - b * b, 2 * a * b
    return p.narrow(-1, 0, count), q.narrow(-1, 0, count)
