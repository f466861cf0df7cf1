"""Pieces of a layout whose weights are dropped: in strips, since no fused operator draws the bits.

A strip is some rows of some members of a piece, against the keys that these can see: PAIRS_AT_ONCE pairs over batch and
heads, or one row, whatever the lengths. Letters as in attention_pieces.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .attention_core import accumulate_dtype
from .attention_drop import PairBits, attend_dropped, attend_dropped_backward
from .attention_pieces import Gradients, Operands, Output, Piece, Saved, Span

PAIRS_AT_ONCE = 1 << 20


def run_dropped(pieces: Iterable[Piece], into: Output, x: Operands, bits: PairBits) -> None:
    """attention_pieces.run_pieces, a strip at a time."""
    first = into.untouched
    for piece in pieces:
        for strip in _strips(piece, x):
            q, (k, v) = strip.rows.view(x.q), map(strip.keys.view, (x.k, x.v))
            out, lse = attend_dropped(q, k, v, x.scale, strip.left(x, bits), strip.mask(x.q))
            into.put(strip.rows, out, lse, first and piece.fresh, slice(None))


def run_dropped_backward(pieces: Iterable[Piece], into: Gradients, x: Saved, bits: PairBits) -> None:
    """attention_pieces.run_pieces_backward, a strip at a time."""
    for piece in pieces:
        for strip in _strips(piece, x.of):
            do, q, out, lse = map(strip.rows.view, (x.do, x.of.q, x.out, x.lse))
            k, v = map(strip.keys.view, (x.of.k, x.of.v))
            left, mask = strip.left(x.of, bits), strip.mask(x.of.q)
            dq, dk, dv = attend_dropped_backward(do, q, k, v, out, lse, x.of.scale, left, mask)
            into[0].add(strip.rows, dq)
            into[1].add(strip.keys, dk)
            into[2].add(strip.keys, dv)


@dataclass(frozen=True)
class _Strip:
    """Rows i .. of each of some members of a piece, and the keys j .. of each that these can see."""

    piece: Piece
    rows: Span
    keys: Span
    i: int
    j: int

    def mask(self, q: Tensor) -> Tensor | None:
        """Additive mask [rows, keys]; None where every row of the piece sees every key."""
        whole, device = self.piece, q.device
        if not whole.causal and whole.band is None:
            return None
        i = torch.arange(self.i, self.i + self.rows.count, device=device)[:, None]
        j = torch.arange(self.j, self.j + self.keys.count, device=device)
        if whole.flip:
            i, j = whole.rows.count - 1 - i, whole.keys.count - 1 - j
        seen = j <= i if whole.causal else j >= i
        if whole.band is not None:
            seen = seen & (j >= i) & (j < i + whole.band)
        return torch.where(seen, 0.0, -torch.inf).to(q.dtype)

    def left(self, x: Operands, bits: PairBits) -> Tensor:
        """[B, H, G, rows, keys]."""
        device, dtype = x.q.device, accumulate_dtype(x.q)
        b = torch.arange(x.q.shape[0], device=device).view(-1, 1, 1, 1)
        h = torch.arange(x.heads.start, x.heads.stop, x.heads.step, device=device).view(-1, 1, 1)
        rows, keys = self.rows.places(device), self.keys.places(device)
        if x.key_places is not None:
            keys = x.key_places[keys]
        elif self.keys.stride == 1:
            return bits.along(b, h, rows, keys[:, :1], self.keys.count, dtype)
        return bits.at(b[..., None], h[..., None], rows[..., None], keys[:, None], dtype)


def _strips(piece: Piece, x: Operands) -> Iterator[_Strip]:
    """A piece in parts; for shapes alone the largest of them."""
    rows, keys = piece.rows, piece.keys
    if piece.empty or not x.q.numel():
        return
    room = PAIRS_AT_ONCE // (x.q.shape[0] * x.q.shape[1])
    count = max(1, min(rows.count, room // keys.count))
    many = max(1, min(rows.groups, room // (count * keys.count)))
    members, starts = range(0, rows.groups, many), range(0, rows.count, count)
    if x.q.is_meta:
        members, starts = members[:1], sorted({*starts[:1], *starts[-2:]})
    for g in members:
        for i in starts:
            high = min(i + count, rows.count)
            low, end = _reach(piece, i, high)
            if low < end:
                groups = min(many, rows.groups - g)
                yield _Strip(piece, _part(rows, g, groups, i, high), _part(keys, g, groups, low, end), i, low)


def _part(span: Span, g: int, groups: int, low: int, high: int) -> Span:
    """Places low .. high - 1 of members g .. g + groups - 1."""
    return replace(span, start=span.start + g * span.step + low * span.stride, count=high - low, groups=groups)


def _reach(piece: Piece, low: int, high: int) -> tuple[int, int]:
    """The keys that rows low .. high - 1 of a member can see."""
    rows, keys = piece.rows.count, piece.keys.count
    low, high = (rows - high, rows - low) if piece.flip else (low, high)
    first = 0 if piece.band is None else low
    end = high if piece.causal else keys if piece.band is None else high - 1 + piece.band
    first, end = first, min(end, keys)
    return (keys - end, keys - first) if piece.flip else (first, end)
