"""Attention under any predicate, in tiles of queries against the key ranges they can see.

This is the general layout: slower than the shapes of attention_layouts, and right for every pattern, also for those
that depend on data (segments, padding) and for scores that depend on positions (bias, soft cap).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention_core import accumulate_dtype, attend, attend_backward, by_kv_head
from .attention_layouts import Layout
from .attention_pieces import Span

PAIRS_AT_ONCE = 1 << 20  # (query, key) pairs of one group of tiles; bounds the masks that exist at a time

Predicate = Callable[..., Tensor | bool]
Ranges = Callable[[int, int], Iterable[tuple[int, int]]]


def at(x: Tensor, index: Tensor) -> Tensor:
    """Per-position metadata x [B, L] at positions index [1, 1, ...] -> [B, 1, ...]."""
    return x[:, index[0, 0]][:, None]


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
        rows = [torch.cat([torch.arange(lo, hi) for lo, hi in tile]) for tile in self.ranges]
        index = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return index.to(device), torch.tensor([[len(row)] for row in rows], device=device)


@dataclass(frozen=True)
class Tiles(Layout):
    """Query q of head h sees key k when keep(q, k, h, *metadata) holds; an integer result is a multiplicity.

    keep gets broadcastable index tensors (all 5-dimensional; `at` reads metadata [B, L] at them). ranges(start, stop)
    gives disjoint ascending key ranges (first, last) outside which queries start..stop-1 see nothing; None is all keys.
    head is the index of the first query head, where this layout is run on a slice of the heads.
    """

    keep: Predicate
    block: int = 256
    ranges: Ranges | None = None
    head: int = 0

    def run(self, into, q, k, v, scale, *metadata):
        first = into.untouched
        for group in self.groups(q, k):
            rows = Span(group.start, group.count, group.tiles, group.count)
            index, mask = self._keys_and_mask(group, q, k, metadata)
            operands = (_tiles(rows, q), _gathered(k, index), _gathered(v, index))
            out, lse = self._attend(*operands, scale, mask, group, index, metadata)
            out, lse = (y.unflatten(0, (q.shape[0], -1)).transpose(1, 2) for y in (out, lse))
            into.put(rows, out, lse, first, slice(None))

    def run_backward(self, into, do, q, k, v, out, lse, scale, *metadata):
        for group in self.groups(q, k):
            rows = Span(group.start, group.count, group.tiles, group.count)
            index, mask = self._keys_and_mask(group, q, k, metadata)
            do_, q_, out_, lse_ = (_tiles(rows, x) for x in (do, q, out, lse))
            operands = (do_, q_, _gathered(k, index), _gathered(v, index), out_, lse_)
            dq, dk, dv = self._backward(*operands, scale, mask, group, index, metadata)
            into[0].add(rows, dq.unflatten(0, (q.shape[0], -1)).transpose(1, 2))
            for total, part in zip(into[1:], (dk, dv)):  # part [B G, Hkv, L, D]
                buffer = total.buffer().transpose(1, 2)
                part = part.transpose(1, 2).unflatten(0, (q.shape[0], -1)).flatten(1, 2)
                buffer.index_add_(1, index.flatten(), part.to(buffer.dtype))

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

    def _positions(self, group: Group, index: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """Index tensors q [1, 1, G, count, 1], k [1, 1, G, 1, L], h [1, H, 1, 1, 1]."""
        row = torch.arange(group.tiles * group.count, device=index.device) + group.start
        head = torch.arange(self.head, self.head + heads, device=index.device)
        q, k = row.view(1, 1, group.tiles, group.count, 1), index[None, None, :, None]
        return q, k, head.view(1, heads, 1, 1, 1)

    def _keys_and_mask(self, group: Group, q: Tensor, k: Tensor, metadata: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """(key index [G, L], additive mask [B G, 1 or H, count, L])."""
        index, length = group.keys(q.device)
        filled = torch.arange(index.shape[1], device=q.device) < length
        positions = self._positions(group, index, q.shape[1])
        keep = filled[None, None, :, None] * torch.as_tensor(self.keep(*positions, *metadata), device=q.device)
        mask = torch.where(keep, 0.0, -torch.inf) if keep.dtype == torch.bool else keep.to(accumulate_dtype(q)).log()
        mask = mask.to(q.dtype).transpose(1, 2)
        full = (q.shape[0], group.tiles, mask.shape[2], group.count, index.shape[1])
        return index, mask.expand(full).flatten(0, 1)

    def _attend(self, q, k, v, scale, mask, group, index, metadata):
        return attend(q, k, v, scale, mask=mask)

    def _backward(self, do, q, k, v, out, lse, scale, mask, group, index, metadata):
        return attend_backward(do, q, k, v, out, lse, scale, mask=mask)


def _tiles(rows: Span, x: Tensor) -> Tensor:
    """x [B, H, N, ...] -> its tiles [B G, H, count, ...]."""
    return rows.view(x).transpose(1, 2).flatten(0, 1)


def _gathered(x: Tensor, index: Tensor) -> Tensor:
    """x [B, Hkv, M, D] at index [G, L] -> [B G, Hkv, L, D]."""
    y = x.transpose(1, 2).index_select(1, index.flatten())
    return y.unflatten(1, index.shape).flatten(0, 1).transpose(1, 2)


@dataclass(frozen=True)
class Scored(Tiles):
    """Tiles whose scores are changed before the softmax: s -> score(s, q, k, h, *metadata).

    score is pointwise in s = scale q k'; slope(s, q, k, h, *metadata) is its derivative in s. Plain matmuls, a group of
    tiles at a time, in the accumulation dtype.
    """

    score: Callable[..., Tensor] = lambda s, *_: s
    slope: Callable[..., Tensor] = lambda s, *_: torch.ones_like(s)

    def _arguments(self, q: Tensor, group: Group, index: Tensor, metadata: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (*self._positions(group, index, q.shape[1]), *metadata)

    def _scores(self, q, k, scale, mask, arguments):
        """(plain scores [B, H, G, count, L], scores after `score` and mask [B G, H, count, L])."""
        dtype, kv = accumulate_dtype(q), k.shape[1]
        tiles = arguments[0].shape[2]
        s = (by_kv_head(q, kv).to(dtype) @ k[:, :, None].to(dtype).mT * scale).flatten(1, 2)
        plain = s.unflatten(0, (-1, tiles)).transpose(1, 2)
        return plain, self.score(plain, *arguments).transpose(1, 2).flatten(0, 1) + mask

    def _attend(self, q, k, v, scale, mask, group, index, metadata):
        _, s = self._scores(q, k, scale, mask, self._arguments(q, group, index, metadata))
        lse = s.logsumexp(-1)
        p = torch.exp(s - lse.masked_fill(lse == -torch.inf, torch.inf)[..., None])
        out = by_kv_head(p, k.shape[1]) @ v[:, :, None].to(p.dtype)
        return out.flatten(1, 2).to(q.dtype), lse

    def _backward(self, do, q, k, v, out, lse, scale, mask, group, index, metadata):
        arguments, kv, dtype = self._arguments(q, group, index, metadata), k.shape[1], accumulate_dtype(q)
        plain, s = self._scores(q, k, scale, mask, arguments)
        p = by_kv_head(torch.exp(s - lse[..., None]), kv)
        slope = self.slope(plain, *arguments).expand_as(plain).transpose(1, 2).flatten(0, 1)
        g, o, q = (by_kv_head(x, kv).to(dtype) for x in (do, out, q))
        dp = g @ v[:, :, None].to(dtype).mT
        ds = p * (dp - (g * o).sum(-1, keepdim=True)) * by_kv_head(slope, kv) * scale
        dq, dk, dv = (ds @ k[:, :, None].to(dtype)).flatten(1, 2), (ds.mT @ q).sum(2), (p.mT @ g).sum(2)
        return dq, dk, dv
