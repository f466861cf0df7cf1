"""How a sparse layout runs: as a short list of pieces, each a regular family of small dense attentions.

A piece pairs a family of query spans with a family of key spans, both arithmetic (start, steps, counts), so both are
strided views of the operands and nothing is copied. All members of a family are one call. Pieces that share query
rows are merged by log-sum-exp; gradients of pieces are added.

Letters as in attention_core: B batch, H heads, N queries, M keys, D head width, G members of a family.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention_core import accumulate_dtype, attend, attend_backward
from .attention_drop import PairBits

LONG = 2048  # from this many rows on, a Python loop over the batch is cheaper than copying operands


@dataclass(frozen=True)
class Span:
    """Positions start + g * step + i * stride for g < groups, i < count."""

    start: int
    count: int
    groups: int = 1
    step: int = 0
    stride: int = 1

    def view(self, x: Tensor) -> Tensor:
        """x [B, H, N, ...] -> [B, H, G, count, ...], without a copy."""
        batch, heads, along, *rest = x.stride()
        shape = (*x.shape[:2], self.groups, self.count, *x.shape[3:])
        strides = (batch, heads, self.step * along, self.stride * along, *rest)
        return x.as_strided(shape, strides, x.storage_offset() + self.start * along)

    def places(self, device: torch.device) -> Tensor:
        """The positions [G, count]."""
        members = torch.arange(self.groups, device=device)[:, None] * self.step
        return members + torch.arange(self.count, device=device) * self.stride + self.start

    def covers(self, n: int) -> bool:
        """Whether the span is all of 0..n-1, each once."""
        if self.start or self.groups * self.count != n:
            return False
        blocks = self.stride == 1 and (self.groups == 1 or self.step == self.count)
        classes = self.step == 1 and self.stride == self.groups
        return blocks or classes

    def joined(self, y: Tensor) -> Tensor:
        """Undo `view` for a span that covers everything: y [B, H, G, count, ...] -> [B, H, N, ...]."""
        return (y if self.stride == 1 else y.transpose(2, 3)).flatten(2, 3)

    def add(self, x: Tensor, y: Tensor) -> None:
        """x.view += y, right also where members overlap (then in strips that do not)."""
        if self.empty:
            return
        apart = self.step >= self.count * self.stride or self.groups * self.step <= self.stride
        width = self.count if apart or self.groups == 1 else self.step // self.stride
        for at in range(0, self.count, width):
            strip = Span(
                self.start + at * self.stride, min(width, self.count - at), self.groups, self.step, self.stride
            )
            strip.view(x).add_(y[:, :, :, at : at + width])

    @property
    def size(self) -> int:
        return self.count * self.groups

    @property
    def empty(self) -> bool:
        return self.count <= 0 or self.groups <= 0


@dataclass(frozen=True)
class Piece:
    """One family of blocks: query spans against key spans, member by member.

    causal keeps k <= q, counted inside the member; flip reverses both sides first (so it keeps k >= q from the bottom
    right); band = width keeps i <= j < i + width for query i and key j of the member; fresh says that no earlier piece
    of the same layout touches these query rows.
    """

    rows: Span
    keys: Span
    causal: bool = False
    flip: bool = False
    band: int | None = None
    fresh: bool = False

    def mask(self, q: Tensor) -> Tensor | None:
        if self.band is None:
            return None
        i = torch.arange(self.rows.count, device=q.device)[:, None]
        j = torch.arange(self.keys.count, device=q.device)
        visible = (j >= i) & (j < i + self.band)
        return torch.where(visible, 0.0, -torch.inf).to(q.dtype)[None, None]

    def of_rows(self, x: Tensor) -> Tensor:
        return self._turn(self.rows.view(x))

    def of_keys(self, x: Tensor) -> Tensor:
        return self._turn(self.keys.view(x))

    def turned_back(self, *ys: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._turn(y) for y in ys)

    def _turn(self, y: Tensor) -> Tensor:
        return y.flip(3) if self.flip else y

    @property
    def empty(self) -> bool:
        return self.rows.empty or self.keys.empty


class Output:
    """Attention output under construction: the running merge of (out, lse) over pieces."""

    def __init__(self, q: Tensor, v: Tensor):
        self.like, self.width = q, v.shape[-1]
        self.out: Tensor | None = None
        self.lse: Tensor | None = None

    @property
    def untouched(self) -> bool:
        return self.out is None

    def allocate(self) -> None:
        """Make room without clearing it: every row is about to be written."""
        batch, heads, n, _ = self.like.shape
        dtype = accumulate_dtype(self.like)
        self.out = self.like.new_empty(batch, n, heads, self.width, dtype=dtype).transpose(1, 2)
        self.lse = self.like.new_empty((batch, heads, n), dtype=dtype)

    def of_heads(self, heads: slice) -> "Output":
        """The same output, seen by these heads only."""
        out, lse = self.buffers()
        part = Output(self.like[:, heads], out)
        part.out, part.lse = out[:, heads], lse[:, heads]
        return part

    def put(self, rows: Span, out: Tensor, lse: Tensor, fresh: bool, batch: slice) -> None:
        """Merge out [B, H, G, count, D], lse [B, H, G, count] into the rows; `fresh` rows are only written."""
        if self.out is None and batch == slice(None) and rows.covers(self.like.shape[2]):
            self.out, self.lse = rows.joined(out), rows.joined(lse)
            return
        o, s = self.buffers()
        if batch != slice(None):  # a slice of all is a view too, of which torch.compile allows no second
            o, s = o[batch], s[batch]
        o, s = rows.view(o), rows.view(s)
        if fresh:
            o.copy_(out)
            s.copy_(lse)
            return
        least = torch.finfo(s.dtype).min / 4  # two rows without keys merge to 0, not to nan
        weight = torch.sigmoid(lse.clamp(min=least) - s.clamp(min=least))
        o.lerp_(out.to(o.dtype), weight[..., None])
        s.copy_(torch.logaddexp(s, lse))

    def buffers(self) -> tuple[Tensor, Tensor]:
        """(out, lse) in the accumulation dtype, rows not yet seen 0 and -inf; both may be written to."""
        dtype = accumulate_dtype(self.like)
        batch, heads, n, _ = self.like.shape
        if self.out is None or self.lse is None:
            self.out = self.like.new_zeros(batch, n, heads, self.width, dtype=dtype).transpose(1, 2)
            self.lse = self.like.new_full((batch, heads, n), -torch.inf, dtype=dtype)
        self.out = self.out.to(dtype)
        return self.out, self.lse

    def result(self) -> tuple[Tensor, Tensor]:
        """(out in the dtype of q, lse); a row that saw nothing has out 0 and lse +inf, so that exp(s - lse) is 0."""
        out, lse = self.buffers() if self.out is None or self.lse is None else (self.out, self.lse)
        return out.to(self.like.dtype), torch.where(lse == -torch.inf, torch.inf, lse)


class Gradient:
    """The gradient of one operand, summed piece by piece."""

    def __init__(self, like: Tensor):
        self.like = like
        self.sum: Tensor | None = None

    def add(self, span: Span, piece: Tensor, batch: slice = slice(None), fresh: bool = False) -> None:
        """Add piece [B, H, G, count, D] at the span; `fresh` positions are only written."""
        if self.sum is None and batch == slice(None) and span.covers(self.like.shape[2]):
            self.sum = span.joined(piece)
        elif fresh:
            span.view(self.buffer()[batch]).copy_(piece)
        else:
            span.add(self.buffer()[batch], piece)

    def allocate(self) -> None:
        """Make room without clearing it: every position is about to be written."""
        batch, heads, n, width = self.like.shape
        dtype = accumulate_dtype(self.like)
        self.sum = self.like.new_empty(batch, n, heads, width, dtype=dtype).transpose(1, 2)

    def buffer(self) -> Tensor:
        """The sum so far, in the accumulation dtype; may be added to."""
        dtype = accumulate_dtype(self.like)
        if self.sum is None:
            batch, heads, n, width = self.like.shape
            self.sum = self.like.new_zeros(batch, n, heads, width, dtype=dtype).transpose(1, 2)
        self.sum = self.sum.to(dtype)
        return self.sum

    def of_heads(self, heads: slice) -> "Gradient":
        """The same gradient, seen by these heads only."""
        part = Gradient(self.like[:, heads])
        part.sum = self.buffer()[:, heads]
        return part

    def result(self) -> Tensor:
        return (self.buffer() if self.sum is None else self.sum).to(self.like.dtype)


Gradients = tuple[Gradient, Gradient, Gradient]


@dataclass(frozen=True)
class Operands:
    """q [B, H, N, D], k [B, Hkv, M, D], v [B, Hkv, M, Dv], the scale of scores, and metadata [B, L] of predicates.

    head, every: where a layout runs on some of the model's query heads, which one the first here is, and how many on
    the next. bits: what is left of each pair's weight where some are dropped. key_places: the positions [M] of the keys
    where they are not 0 .. M - 1."""

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    metadata: tuple[Tensor, ...] = ()
    head: int = 0
    every: int = 1
    bits: PairBits | None = None
    key_places: Tensor | None = None

    @property
    def heads(self) -> range:
        """The query heads here, as the model numbers them."""
        return range(self.head, self.head + self.every * self.q.shape[1], self.every)

    @property
    def lengths(self) -> tuple[int, int]:
        return self.q.shape[2], self.k.shape[2]


@dataclass(frozen=True)
class Saved:
    """What a backward starts from: the gradient of out, the operands, and the merged out and lse of whole rows."""

    do: Tensor
    of: Operands
    out: Tensor
    lse: Tensor


def run_pieces(pieces: Iterable[Piece], into: Output, x: Operands) -> None:
    """Forward of a list of pieces, merged into `into`."""
    first, pieces = into.untouched, [piece for piece in pieces if not piece.empty]
    if first and _written_once(pieces, x):
        into.allocate()
    for piece in pieces:
        operands = (piece.of_rows(x.q), piece.of_keys(x.k), piece.of_keys(x.v))
        mask = piece.mask(x.q)
        for fold, batch in foldings(operands):
            q, k, v = (fold.fold(y[batch]) for y in operands)
            out, lse = attend(q, k, v, x.scale, piece.causal, mask)
            out, lse = piece.turned_back(fold.unfold(out), fold.unfold(lse))
            into.put(piece.rows, out, lse, first and piece.fresh, batch)


def run_pieces_backward(pieces: Iterable[Piece], into: Gradients, x: Saved) -> None:
    """Backward of a list of pieces from the merged out and lse, added to `into`."""
    first, pieces = into[0].sum is None, [piece for piece in pieces if not piece.empty]
    if first and _written_once(pieces, x.of):
        into[0].allocate()
    for piece in pieces:
        rows, keys = [piece.of_rows(y) for y in (x.do, x.of.q, x.out)], [piece.of_keys(y) for y in (x.of.k, x.of.v)]
        row_lse, mask = piece.of_rows(x.lse), piece.mask(x.of.q)
        for fold, batch in foldings((*rows, *keys)):
            (do, q, out), (k, v) = ([fold.fold(y[batch]) for y in side] for side in (rows, keys))
            lse = fold.fold(row_lse[batch])
            grads = attend_backward(do, q, k, v, out, lse, x.of.scale, piece.causal, mask)
            dq, dk, dv = piece.turned_back(*map(fold.unfold, grads))
            into[0].add(piece.rows, dq, batch, first and piece.fresh)
            into[1].add(piece.keys, dk, batch)
            into[2].add(piece.keys, dv, batch)


def _written_once(pieces: list[Piece], x: Operands) -> bool:
    """Whether fresh pieces write every row, so that buffers need no clearing (a single piece needs no buffer)."""
    return len(pieces) > 1 and sum(piece.rows.size for piece in pieces if piece.fresh) == x.q.shape[2]


@dataclass(frozen=True)
class Fold:
    """How [B, H, G, n, ...] becomes the [batch, heads, n, ...] of one call: G joins the batch, or the heads, or H
    joins the batch and G stands as heads."""

    kind: str  # "batch" [B G, H], "heads" [B, G H] or "swap" [B H, G]
    batch: int
    groups: int

    def fold(self, x: Tensor) -> Tensor:
        if self.kind == "batch":
            return x.transpose(1, 2).flatten(0, 1)
        return x.transpose(1, 2).flatten(1, 2) if self.kind == "heads" else x.flatten(0, 1)

    def unfold(self, y: Tensor) -> Tensor:
        if self.kind == "batch":
            return y.unflatten(0, (self.batch, self.groups)).transpose(1, 2)
        if self.kind == "heads":
            return y.unflatten(1, (self.groups, -1)).transpose(1, 2)
        return y.unflatten(0, (self.batch, -1))


def foldings(operands: tuple[Tensor, ...]) -> Iterator[tuple[Fold, slice]]:
    """The fold under which every operand stays a view, for the whole batch or, if there is none, for each sample.

    Residue classes (G inside N) prefer the folds whose output needs no copy either. Short samples are copied.
    """
    batch, groups, n = operands[0].shape[0], operands[0].shape[2], operands[0].shape[3]

    def joins(outer: int, inner: int) -> bool:
        return all(
            1 in (x.shape[outer], x.shape[inner]) or x.stride(outer) == x.shape[inner] * x.stride(inner)
            for x in operands
        )

    one_width = len({x.shape[1] for x in operands}) == 1
    kinds = {"heads": joins(2, 1), "swap": one_width and joins(0, 1), "batch": joins(0, 2)}
    interleaved = operands[0].stride(2) < operands[0].stride(3)
    order = ("heads", "swap", "batch") if interleaved else ("batch", "swap", "heads")
    kind = next((kind for kind in order if kinds[kind]), "")
    if kind or batch * n * groups < LONG:
        yield Fold(kind or "batch", batch, groups), slice(None)
        return
    for sample in range(batch):
        alone = tuple(x[sample : sample + 1] for x in operands)
        fold, _ = next(foldings(alone))
        yield fold, slice(sample, sample + 1)
