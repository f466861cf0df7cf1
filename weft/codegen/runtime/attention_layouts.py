"""Attention layouts: the shapes a pattern of visible (query, key) pairs is made of, each run block-dense.

Every layout has the same two methods, on q [B, H, N, D], k [B, Hkv, M, D], v [B, Hkv, M, Dv] (Hkv divides H; strided
views are fine; any N, M >= 0):

    forward(q, k, v, scale)                     -> out [B, H, N, Dv], lse [B, H, N]
    backward(do, q, k, v, out, lse, scale)      -> dq, dk, dv

Both take `drop`, by which weights are dropped (see attention_drop).

lse is float32 (float64 for float64); a row that sees no key has out 0, lse +inf and gradient 0. Given the out and lse
of a merge, backward gives that layout's share of the gradients. Nothing of size N x M is ever made.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from .attention_core import by_rows
from .attention_drop import NONE, Drop
from .attention_op import OPS
from .attention_pieces import (
    Gradient,
    Gradients,
    Operands,
    Output,
    Piece,
    Saved,
    Span,
    run_pieces,
    run_pieces_backward,
)
from .attention_strips import run_dropped, run_dropped_backward
from .whole import Whole

ROWS_AT_ONCE = 16384  # of a band's backward: bounds the gradients of overlapping keys before they are added up


class Layout(Whole):
    """Base: a layout that is a list of pieces says only `pieces`; others override `run` and `run_backward`."""

    def pieces(self, n: int, m: int, backward: bool = False) -> Iterator[Piece]:
        """The pieces for n queries and m keys (the best sizes differ for a backward)."""
        raise NotImplementedError

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, *metadata: Tensor, drop: Drop = NONE
    ) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling():
            return OPS.attend(self.key, q, k, v, scale, metadata, *drop)
        q, k, v = map(by_rows, (q, k, v))
        into = Output(q, v)
        self.run(into, Operands(q, k, v, scale, metadata, bits=drop.over(q, k)))
        return into.result()

    def backward(
        self,
        do: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        scale: float,
        *metadata: Tensor,
        drop: Drop = NONE,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if torch.compiler.is_compiling():
            return OPS.attend_backward(self.key, do, q, k, v, out, lse, scale, metadata, *drop)
        do, q, k, v, out = map(by_rows, (do, q, k, v, out))
        into = (Gradient(q), Gradient(k), Gradient(v))
        self.run_backward(into, Saved(do, Operands(q, k, v, scale, metadata, bits=drop.over(q, k)), out, lse))
        return into[0].result(), into[1].result(), into[2].result()

    def run(self, into: Output, x: Operands) -> None:
        """Merge this layout's share into `into`."""
        _run(self.pieces(*x.lengths), into, x)

    def run_backward(self, into: Gradients, x: Saved) -> None:
        """Add this layout's share of the gradients to `into`."""
        _run_backward(self.pieces(*x.of.lengths, backward=True), into, x)


def _run(pieces: Iterator[Piece], into: Output, x: Operands) -> None:
    """Pieces by fused calls, or in strips where weights are dropped."""
    if x.bits is None:
        run_pieces(pieces, into, x)
    else:
        run_dropped(pieces, into, x, x.bits)


def _run_backward(pieces: Iterator[Piece], into: Gradients, x: Saved) -> None:
    if x.of.bits is None:
        run_pieces_backward(pieces, into, x)
    else:
        run_dropped_backward(pieces, into, x, x.of.bits)


@dataclass(frozen=True)
class Rectangle(Layout):
    """Queries start..stop-1 see keys first..last-1; a negative bound counts from the end, None is the end."""

    start: int = 0
    stop: int | None = None
    first: int = 0
    last: int | None = None

    def pieces(self, n: int, m: int, backward: bool = False) -> Iterator[Piece]:
        rows, keys = range(n)[self.start : self.stop], range(m)[self.first : self.last]
        yield Piece(Span(rows.start, len(rows)), Span(keys.start, len(keys)), fresh=True)


@dataclass(frozen=True)
class Dense(Rectangle):
    """Every query sees every key."""


def Rows(start: int, stop: int | None) -> Rectangle:
    """Queries start..stop-1 see every key (global rows)."""
    return Rectangle(start=start, stop=stop)


def Cols(first: int, last: int | None) -> Rectangle:
    """Every query sees keys first..last-1 (a prefix, global columns)."""
    return Rectangle(first=first, last=last)


@dataclass(frozen=True)
class Causal(Layout):
    """k <= q + offset. offset 0 is causal; -1 strictly causal; > 0 when the keys begin before the queries."""

    offset: int = 0

    def pieces(self, n: int, m: int, backward: bool = False) -> Iterator[Piece]:
        if self.offset <= 0:
            first = -self.offset
            yield Piece(Span(first, n - first), Span(0, min(m, n - first)), causal=True, fresh=True)
            return
        before = min(self.offset, m)
        yield Piece(Span(0, n), Span(0, before), fresh=True)
        yield Piece(Span(0, n), Span(before, min(m - before, n)), causal=True)


def Strict() -> Causal:
    """k < q."""
    return Causal(-1)


@dataclass(frozen=True)
class Band(Layout):
    """-left <= k - q <= right, left + right >= 0 (either may be negative).

    Blocks of queries against the keys they reach, strided views whose members overlap, under one small mask; rows whose
    reach is cut by the first or the last key are triangles.
    """

    left: int
    right: int = 0

    def pieces(self, n: int, m: int, backward: bool = False) -> Iterator[Piece]:
        skip_rows, skip_keys = max(0, -self.right), max(0, -self.left)  # shift so that the band holds its diagonal
        band = Band(self.left - skip_rows + skip_keys, self.right + skip_rows - skip_keys)
        for piece in band._around_diagonal(n - skip_rows, m - skip_keys, backward):
            rows = replace(piece.rows, start=piece.rows.start + skip_rows)
            keys = replace(piece.keys, start=piece.keys.start + skip_keys)
            yield replace(piece, rows=rows, keys=keys)

    def _around_diagonal(self, n: int, m: int, backward: bool) -> Iterator[Piece]:
        end = min(n, m + self.left)  # rows from here on see nothing
        if end <= 0 or m <= 0:
            return
        cut_first, cut_last = min(self.left, end), min(max(m - self.right, 0), end)  # reach is cut before / from here
        yield from Causal(self.right).pieces(min(cut_first, cut_last), m)
        if cut_last < cut_first:  # cut at both ends: these rows see everything
            yield Piece(Span(cut_last, cut_first - cut_last), Span(0, m), fresh=True)
        yield from self._uncut(cut_first, cut_last, backward)
        yield from self._cut_last(max(cut_first, cut_last), end, m)

    def _uncut(self, start: int, stop: int, backward: bool) -> Iterator[Piece]:
        """Rows start..stop-1 see all of q-left..q+right."""
        reach = self.left + self.right
        block = next((size for size in (32, 64, 128) if reach < (2 if backward else 8) * size), 256)
        rows = block * max(ROWS_AT_ONCE // block, (stop - start) // (64 * block)) if backward else stop - start
        for at in range(start, stop, max(rows, 1)):
            blocks, rest = divmod(min(rows, stop - at), block)
            for first, count, groups in ((at, block, blocks), (at + blocks * block, rest, 1)):
                keys = Span(first - self.left, count + reach, groups, block)
                yield Piece(Span(first, count, groups, block), keys, band=reach + 1, fresh=True)

    def _cut_last(self, start: int, end: int, m: int) -> Iterator[Piece]:
        """Rows start..end-1 see keys q-left..m-1: read backwards, a triangle after a rectangle."""
        all_see = min(max(m + self.left - end, 0), m)
        rows, some_see = Span(start, end - start), min(m - all_see, end - start)
        yield Piece(rows, Span(m - all_see, all_see), fresh=True)
        keys = Span(m - all_see - some_see, some_see)
        yield Piece(rows, keys, causal=True, flip=True, fresh=all_see == 0)


def Window(width: int) -> Band:
    """0 <= q - k < width: the query itself and the width - 1 keys before it."""
    return Band(width - 1, 0)


@dataclass(frozen=True)
class Diagonal(Layout):
    """Query and key in the same block of `block` positions, and `inner` visible inside it."""

    block: int
    inner: Layout = Dense()

    def pieces(self, n: int, m: int, backward: bool = False) -> Iterator[Piece]:
        whole = min(n, m) // self.block
        rest = whole * self.block
        rest_n, rest_m = (max(0, min(x - rest, self.block)) for x in (n, m))
        for groups, at, rows, keys in ((whole, 0, self.block, self.block), (1, rest, rest_n, rest_m)):
            for piece in self.inner.pieces(rows, keys, backward) if groups else ():
                yield from _nested(piece, at, groups, self.block, 1)


@dataclass(frozen=True)
class Residues(Layout):
    """(q - k) % modulus == 0, and `inner` visible between the positions q // modulus, k // modulus of their class.

    The strided attention of Child et al. 2019: an equivalence relation, so dense inside each residue class. A class is
    a strided view; all classes of one length are one call.
    """

    modulus: int
    inner: Layout = Causal()

    def pieces(self, n: int, m: int, backward: bool = False) -> Iterator[Piece]:
        cuts = sorted({0, n % self.modulus, m % self.modulus, self.modulus})
        for residue, end in pairwise(cuts):
            rows, keys = (max(0, -(-(x - residue) // self.modulus)) for x in (n, m))
            for piece in self.inner.pieces(rows, keys, backward):
                yield from _nested(piece, residue, end - residue, 1, self.modulus)


def _nested(piece: Piece, offset: int, copies: int, step: int, scale: int) -> Iterator[Piece]:
    """The piece at positions offset + c * step + scale * position for c < copies, as few families as possible."""
    if piece.empty:
        return

    def family(s: Span, member: int | None, copy: int | None) -> Span:
        start = offset + scale * (s.start + (member or 0) * s.step) + (copy or 0) * step
        if copy is None:
            return Span(start, s.count, copies, step, scale * s.stride)
        return Span(start, s.count, s.groups, scale * s.step, scale * s.stride)

    by_copy = piece.rows.groups > copies
    for at in range(copies if by_copy else piece.rows.groups):
        member, copy = (None, at) if by_copy else (at, None)
        yield replace(piece, rows=family(piece.rows, member, copy), keys=family(piece.keys, member, copy))


@dataclass(frozen=True)
class Columns(Layout):
    """k % modulus in start..start+width-1, and k in a block of `modulus` positions before the query's.

    The summary columns of fixed attention (Child et al. 2019). With these keys packed, block b of queries sees the
    first b * width of them: a staircase, run as rectangles.
    """

    modulus: int
    start: int
    width: int

    def packed(self, x: Tensor) -> Tensor:
        """x [B, Hkv, M, ...] -> its summary columns [B, Hkv, columns, ...]."""
        whole, rest = divmod(x.shape[2], self.modulus)
        body = Span(self.start, self.width, whole, self.modulus).view(x).flatten(2, 3)
        tail = min(self.width, rest - self.start)
        return body if tail <= 0 else torch.cat([body, x[:, :, -rest:].narrow(2, self.start, tail)], 2)

    def _on_columns(self, x: Operands) -> Operands:
        """The operands with the summary columns for keys."""
        k, v = self.packed(x.k), self.packed(x.v)
        at = torch.arange(k.shape[2], device=k.device)
        return replace(x, k=k, v=v, key_places=at // self.width * self.modulus + self.start + at % self.width)

    def _unpack(self, into: Gradient, packed: Tensor) -> None:
        """Add a gradient of the packed columns to the keys they came from."""
        whole = into.like.shape[2] // self.modulus
        body, tail = packed.split([whole * self.width, packed.shape[2] - whole * self.width], 2)
        into.add(Span(self.start, self.width, whole, self.modulus), body.unflatten(2, (whole, self.width)))
        into.add(Span(whole * self.modulus + self.start, tail.shape[2]), tail[:, :, None])

    def run(self, into: Output, x: Operands) -> None:
        x = self._on_columns(x)
        _run(self.staircase(*x.lengths), into, x)

    def run_backward(self, into: Gradients, x: Saved) -> None:
        x = replace(x, of=self._on_columns(x.of))
        dk, dv = Gradient(x.of.k), Gradient(x.of.v)
        _run_backward(self.staircase(*x.of.lengths), (into[0], dk, dv), x)
        self._unpack(into[1], dk.result())
        self._unpack(into[2], dv.result())

    def staircase(self, n: int, columns: int) -> Iterator[Piece]:
        """Block b of queries against the first b * width columns.

        Halve the blocks: the second half sees every column of the first, and each half is a smaller staircase. All
        halves of one size are one call, so there are log2(n / modulus) calls, and nothing is wasted.
        """
        blocks = min(-(-n // self.modulus), columns // self.width + 1)  # later blocks see every column
        rows = min(n, blocks * self.modulus)
        levels = (blocks - 1).bit_length()
        for level in reversed(range(levels)):
            yield from self._second_halves(1 << level, rows, fresh=level == levels - 1)
        yield Piece(Span(rows, n - rows), Span(0, columns), fresh=True)

    def _second_halves(self, size: int, rows: int, fresh: bool) -> Iterator[Piece]:
        """Every second `size` blocks against the columns of the `size` before: complete ones, then one cut short."""
        length, seen = size * self.modulus, size * self.width
        whole = rows // (2 * length)
        cut = min(length, rows - length - whole * 2 * length)
        yield Piece(Span(length, length, whole, 2 * length), Span(0, seen, whole, 2 * seen), fresh=fresh)
        yield Piece(Span(length + whole * 2 * length, cut), Span(whole * 2 * seen, seen), fresh=fresh)
