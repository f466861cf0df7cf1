"""Attention under any predicate, in tiles of queries against the key ranges they can see.

This is the general layout: slower than the shapes of attention_layouts, and right for every pattern, also for those
that depend on data (segments, padding) and for scores that depend on positions (bias, soft cap).
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .attention_core import accumulate_dtype, attend, attend_backward, by_kv_head
from .attention_drop import attend_dropped, attend_dropped_backward
from .attention_layouts import Layout
from .attention_pieces import Gradients, Operands, Output, Saved, Span
from .attention_segments import SegmentBounds

PAIRS_AT_ONCE = 1 << 20  # (query, key) pairs of one group of tiles; bounds the masks that exist at a time

Predicate = Callable[..., Tensor | bool]
Ranges = Callable[[int, int], Iterable[tuple[int, int]]]


def at(x: Tensor, index: Tensor) -> Tensor:
    """Per-position metadata x [B, L] at positions index [1, 1, ...] -> [B, 1, ...]."""
    return x[:, index[0, 0]][:, None]


@dataclass(frozen=True)
class Near:
    """Ranges of a pattern whose query q sees keys q - back .. q + ahead at most; None is without end."""

    back: int | None
    ahead: int | None

    def __call__(self, start: int, stop: int) -> tuple[tuple[int, int], ...]:
        first = 0 if self.back is None else start - self.back
        return ((first, sys.maxsize if self.ahead is None else stop + self.ahead),)


@dataclass(frozen=True)
class Group:
    """Tiles start, start + count, ... (`tiles` of `count` queries) and the keys each can see."""

    start: int
    count: int
    ranges: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def tiles(self) -> int:
        return len(self.ranges)

    def keys(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(key index [G, L], how many of them count [G, 1]); tiles that see fewer are filled up with key 0."""
        rows = [torch.cat([torch.arange(0), *(torch.arange(lo, hi) for lo, hi in tile)]) for tile in self.ranges]
        index = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return index.to(device), torch.tensor([[len(row)] for row in rows], device=device)


@dataclass(frozen=True)
class Gathered:
    """A group ready to run: q [B G, H, count, D], k and v [B G, Hkv, L, .], additive mask [B G, 1 or H, count, L].

    index [G, L] says where the keys came from; places are q, k, h and the metadata, as predicates want them; left
    [B G, H, count, L] is what is left of weights where some are dropped.
    """

    rows: Span
    index: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor
    places: tuple[Tensor, ...]
    scale: float
    left: Tensor | None


@dataclass(frozen=True)
class Tiles(Layout):
    """Query q of head h sees key k when keep(q, k, h, *metadata) holds; an integer result is a multiplicity.

    keep gets broadcastable index tensors (all 5-dimensional; `at` reads metadata [B, L] at them). ranges(start, stop)
    gives disjoint ascending key ranges (first, last) outside which queries start..stop-1 see nothing; None is all keys.
    documents: which of the metadata are segments of queries and of keys, where other segments are never seen; then of
    each sequence what lies in others is left out.
    """

    keep: Predicate
    block: int = 256
    ranges: Ranges | None = None
    documents: tuple[int, int] | None = None

    def run(self, into: Output, x: Operands) -> None:
        first = into.untouched
        for rows, group in self.seen(x):
            own = _of_rows(x, rows)
            part = self._gather(group, own)
            out, lse = (_apart(y, own.q.shape[0]) for y in self._attend(part))
            into.put(part.rows, out, lse, first, rows)

    def run_backward(self, into: Gradients, x: Saved) -> None:
        for rows, group in self.seen(x.of):
            own = _of_rows(x.of, rows)
            batch, part = own.q.shape[0], self._gather(group, own)
            do, out, lse = (_tiles(part.rows, y[rows]) for y in (x.do, x.out, x.lse))
            dq, dk, dv = self._backward(part, do, out, lse)
            into[0].add(part.rows, _apart(dq, batch), rows)
            for total, y in ((into[1], dk), (into[2], dv)):
                buffer = total.buffer()[rows].transpose(1, 2)
                y = y.transpose(1, 2).unflatten(0, (batch, -1)).flatten(1, 2)  # [B, G L, Hkv, D]
                buffer.index_add_(1, part.index.flatten(), y.to(buffer.dtype))

    def seen(self, x: Operands) -> Iterator[tuple[slice, Group]]:
        """The groups, and which sequences each is for: of several documents each sequence by itself."""
        bounds = None
        if self.documents is not None:
            queries, keys = (x.metadata[i] for i in self.documents)
            bounds = SegmentBounds.of(queries, keys, self.block)
        for group in self.groups(x.q, x.k):
            if bounds is None:
                yield slice(None), group
                continue
            n, places = x.q.shape[2], range(group.start, group.start + group.count * group.tiles, group.count)
            every = [slice(b, b + 1) for b in range(x.q.shape[0])]
            for rows in every if x.bits is None else [slice(None)]:  # bits are those of a pair's place in the batch
                tiles = zip(places, group.ranges)
                left = tuple(bounds.within(at, min(at + group.count, n), seen, rows) for at, seen in tiles)
                if any(left):
                    yield rows, replace(group, ranges=left)

    def groups(self, q: Tensor, k: Tensor) -> Iterator[Group]:
        """Neighbouring tiles that see about as many keys, as many as PAIRS_AT_ONCE allows."""
        batch, heads, n, _ = q.shape
        room = PAIRS_AT_ONCE // (batch * heads * self.block) if q.numel() else 0
        waiting: list[tuple[tuple[int, int], ...]] = []
        longest, shortest, start = 0, 0, 0
        for tile in range(0, n, self.block):
            stop = min(tile + self.block, n)
            ranges = self._ranges(tile, stop, k.shape[2])
            length = sum(hi - lo for lo, hi in ranges)
            longest, shortest = max(longest, length), min(shortest, length)
            alike = length and longest <= 1.25 * shortest and longest * (len(waiting) + 1) <= room
            if waiting and not (alike and stop - tile == self.block):
                yield Group(start, min(self.block, n - start), tuple(waiting))
                waiting = []
            if not waiting:
                start, longest, shortest = tile, length, length
            if length:
                waiting.append(ranges)
        if waiting:
            yield Group(start, min(self.block, n - start), tuple(waiting))

    def _ranges(self, start: int, stop: int, m: int) -> tuple[tuple[int, int], ...]:
        if self.ranges is None:
            return ((0, m),) if m else ()
        return tuple((max(lo, 0), min(hi, m)) for lo, hi in self.ranges(start, stop) if max(lo, 0) < min(hi, m))

    def _gather(self, group: Group, x: Operands) -> Gathered:
        (batch, heads), device = x.q.shape[:2], x.q.device
        rows = Span(group.start, group.count, group.tiles, group.count)
        index, length = group.keys(device)
        row = torch.arange(group.start, group.start + rows.size, device=device).view(1, 1, group.tiles, group.count, 1)
        head = torch.arange(x.heads.start, x.heads.stop, x.heads.step, device=device).view(1, heads, 1, 1, 1)
        places = (row, index[None, None, :, None], head, *x.metadata)
        filled = torch.arange(index.shape[1], device=device) < length
        keep = filled[None, None, :, None] * torch.as_tensor(self.keep(*places), device=device)
        mask = torch.where(keep, 0.0, -torch.inf) if keep.dtype == torch.bool else keep.to(accumulate_dtype(x.q)).log()
        mask = mask.to(x.q.dtype).transpose(1, 2)
        mask = mask.expand(batch, group.tiles, mask.shape[2], group.count, index.shape[1]).flatten(0, 1)
        q, k, v = _tiles(rows, x.q), _gathered(x.k, index), _gathered(x.v, index)
        left = None
        if x.bits is not None:
            sample = torch.arange(batch, device=device).view(batch, 1, 1, 1, 1)
            left = x.bits.at(sample, head, row, places[1], accumulate_dtype(x.q)).transpose(1, 2).flatten(0, 1)
        return Gathered(rows, index, q, k, v, mask, places, x.scale, left)

    def _attend(self, x: Gathered) -> tuple[Tensor, Tensor]:
        if x.left is not None:
            return attend_dropped(x.q, x.k, x.v, x.scale, x.left, x.mask)
        return attend(x.q, x.k, x.v, x.scale, mask=x.mask)

    def _backward(self, x: Gathered, do: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if x.left is not None:
            return attend_dropped_backward(do, x.q, x.k, x.v, out, lse, x.scale, x.left, x.mask)
        return attend_backward(do, x.q, x.k, x.v, out, lse, x.scale, mask=x.mask)


def _of_rows(x: Operands, rows: slice) -> Operands:
    """The operands of some sequences of the batch."""
    if rows == slice(None):
        return x
    return replace(
        x, q=x.q[rows], k=x.k[rows], v=x.v[rows], metadata=tuple(m if len(m) == 1 else m[rows] for m in x.metadata)
    )


def _tiles(rows: Span, x: Tensor) -> Tensor:
    """x [B, H, N, ...] -> its tiles [B G, H, count, ...]."""
    return rows.view(x).transpose(1, 2).flatten(0, 1)


def _apart(y: Tensor, batch: int) -> Tensor:
    """Tiles [B G, H, count, ...] -> [B, H, G, count, ...]."""
    return y.unflatten(0, (batch, -1)).transpose(1, 2)


def _gathered(x: Tensor, index: Tensor) -> Tensor:
    """x [B, Hkv, M, D] at index [G, L] -> [B G, Hkv, L, D]."""
    y = x.transpose(1, 2).index_select(1, index.flatten())
    return y.unflatten(1, index.shape).flatten(0, 1).transpose(1, 2)


def _spread(y: Tensor | float, s: Tensor) -> Tensor:
    """A formula's value at scores s [B, H, G, count, L], be it constant, as [B G, H, count, L]."""
    return torch.as_tensor(y, dtype=s.dtype, device=s.device).expand_as(s).transpose(1, 2).flatten(0, 1)


def _unchanged(s: Tensor, *_: Tensor) -> Tensor:
    return s


def _one(s: Tensor, *_: Tensor) -> Tensor:
    return torch.ones_like(s)


@dataclass(frozen=True)
class Scored(Tiles):
    """Tiles whose scores are changed before the softmax: s -> score(s, q, k, h, *metadata).

    score is pointwise in s = scale q k'; slope(s, q, k, h, *metadata) is its derivative in s. Either may be constant: a
    number, or a tensor that broadcasts to s. Where a key is hidden both may be anything, NaN too: they are not used.
    Plain matmuls, a group of tiles at a time, in the accumulation dtype.
    """

    score: Callable[..., Tensor | float] = _unchanged
    slope: Callable[..., Tensor | float] = _one

    def _scores(self, x: Gathered) -> tuple[Tensor, Tensor]:
        """Plain scores [B, H, G, count, L], and scores after `score` and mask [B G, H, count, L]."""
        dtype, tiles = accumulate_dtype(x.q), x.index.shape[0]
        s = by_kv_head(x.q, x.k.shape[1]).to(dtype) @ x.k[:, :, None].to(dtype).mT * x.scale
        plain = s.flatten(1, 2).unflatten(0, (-1, tiles)).transpose(1, 2)
        s = _spread(self.score(plain, *x.places), plain)
        return plain, torch.where(x.mask == -torch.inf, -torch.inf, s + x.mask)

    def _attend(self, x: Gathered) -> tuple[Tensor, Tensor]:
        s = self._scores(x)[1]
        lse = s.logsumexp(-1)
        p = torch.exp(s - lse.masked_fill(lse == -torch.inf, torch.inf)[..., None])
        p = p if x.left is None else p * x.left
        out = by_kv_head(p, x.k.shape[1]) @ x.v[:, :, None].to(p.dtype)
        return out.flatten(1, 2).to(x.q.dtype), lse

    def _backward(self, x: Gathered, do: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        plain, s = self._scores(x)
        dtype, kv = s.dtype, x.k.shape[1]
        p = by_kv_head(torch.exp(s - lse[..., None]), kv)
        slope = by_kv_head(_spread(self.slope(plain, *x.places), plain), kv)
        do, out, q = (by_kv_head(y, kv).to(dtype) for y in (do, out, x.q))
        dp, dropped = do @ x.v[:, :, None].to(dtype).mT, p
        if x.left is not None:
            left = by_kv_head(x.left, kv)
            dp, dropped = dp * left, p * left
        ds = p * (dp - (do * out).sum(-1, keepdim=True)) * x.scale
        ds = torch.where(p > 0, ds * slope, 0.0)
        return (ds @ x.k[:, :, None].to(dtype)).flatten(1, 2), (ds.mT @ q).sum(2), (dropped.mT @ do).sum(2)
