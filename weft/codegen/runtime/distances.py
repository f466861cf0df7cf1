"""Attention whose scores have a table by distance added to them, whose queries are the last rows of the keys, or whose
weights are the scores themselves, with no softmax.

near [B | 1, H | 1, N | 1, R] holds scores for the distances first .. first + R - 1 of a query from a key; a pair at any
other distance reads 0. The relative positions of Transformer-XL (Dai et al. 2019) are such a table with a row of scores
for every query, T5's buckets (Raffel et al. 2020) one that all queries share.

Letters as in attention_core: B batch, H heads, N queries, M keys, D head width, R distances.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .attention_core import accumulate_dtype, by_kv_head
from .attention_drop import NONE, Drop, PairBits
from .attention_drop import SCHEMA as DROP
from .attention_segments import SegmentBounds
from .whole import KNOWN, OPS, Whole, define

PAIRS_AT_ONCE = 1 << 22  # (query, key) pairs of one tile, over batch and heads; bounds the scores that exist at a time
Pointwise = Callable[..., Tensor | float]


def read(near: Tensor, index: Tensor) -> Tensor:
    """near [B, H, n or 1, R] at rows index [n, L] (or [B, n, L]) -> [B, H, n, L], 0 at rows it does not have."""
    index = index.unsqueeze(-3)
    rows = max(1, near.shape[-1])
    inside = (index >= 0) & (index < near.shape[-1])
    shape = torch.broadcast_shapes(near.shape[:-1], index.shape[:-1])
    found = near.expand(*shape, -1).gather(-1, index.clamp(0, rows - 1).expand(*shape, -1))
    return torch.where(inside, found, 0.0)


def masked(s: Tensor, keep: Tensor, normalised: bool) -> Tensor:
    """Scores as a softmax takes them, of keys that are seen `keep` times; not normalised: as weights."""
    if not normalised:
        return torch.where(keep > 0, s * keep, 0.0)
    return torch.where(keep > 0, s if keep.dtype == torch.bool else s + keep.to(s.dtype).log(), -torch.inf)


class Tile(NamedTuple):
    """Some queries and the keys they can see: slices of both, positions and distance rows [n, L] of their pairs."""

    rows: slice
    keys: slice
    places: tuple[Tensor, ...]
    gaps: Tensor

    def left(self, q: Tensor, bits: PairBits) -> Tensor:
        """What is left of the weights [B, H, n, L] of q [B, H, N, D]."""
        b, h, rows = (torch.arange(n, device=q.device) for n in q.shape[:3])
        count = self.keys.stop - self.keys.start
        first = torch.full((), self.keys.start, device=q.device)
        return bits.along(b.view(-1, 1, 1), h.view(-1, 1), rows[self.rows], first, count, accumulate_dtype(q))


@dataclass(frozen=True)
class Tiles(Whole):
    """Query q of head h sees key k when keep(q, k, h, *metadata) holds; an integer result is a multiplicity.

    Its score is score(s, q, k, h, *metadata) of s = scale q k' + near, `slope` the derivative in s; None is s itself.
    All get broadcastable index tensors, metadata as attention.at reads it. ranges(start, stop) gives disjoint ascending
    key ranges (first, last) outside which queries start..stop-1 see nothing; None is all keys. tail: queries stand at
    the last of the keys' positions. documents: as of attention's own tiles. normalised: False where the weight of a
    pair is its score, as often as it is seen; lse is 0 then, and neither it nor out is read again. Plain matmuls, a
    tile of queries at a time, in the accumulation dtype.
    """

    keep: Callable[..., Tensor | bool]
    block: int = 256
    ranges: Callable[[int, int], Iterable[tuple[int, int]]] | None = None
    score: Pointwise | None = None
    slope: Pointwise | None = None
    tail: bool = False
    documents: tuple[int, int] | None = None
    normalised: bool = True

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        near: Tensor | None,
        first: int,
        *metadata: Tensor,
        drop: Drop = NONE,
    ) -> tuple[Tensor, Tensor]:
        """out [B, H, N, Dv], lse [B, H, N] of q [B, H, N, D], k [B, Hkv, M, D], v [B, Hkv, M, Dv]; Hkv divides H.

        lse is float32 (float64 for float64); a row that sees no key has out 0, lse +inf and gradient 0."""
        if torch.compiler.is_compiling():
            return OPS.attend_near(self.key, q, k, v, scale, near, first, metadata, *drop)
        batch, heads, n, _ = q.shape
        out = q.new_zeros(batch, n, heads, v.shape[-1]).transpose(1, 2)
        unseen, bits = torch.inf if self.normalised else 0.0, drop.over(q, k)
        lse = q.new_full((batch, heads, n), unseen, dtype=accumulate_dtype(q))
        for t in self.tiles(q, k, first, metadata):
            _, p, _ = self._scores(q, k, scale, near, t)
            if self.normalised:
                total = p.logsumexp(-1)
                lse[:, :, t.rows] = torch.where(total == -torch.inf, torch.inf, total)
                p = torch.exp(p - lse[:, :, t.rows, None])
            p = p if bits is None else p * t.left(q, bits)
            found = by_kv_head(p, k.shape[1]) @ v[:, :, None, t.keys].to(p.dtype)
            out[:, :, t.rows] = found.flatten(1, 2).to(q.dtype)
        return out, lse

    def backward(
        self,
        do: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        scale: float,
        near: Tensor | None,
        first: int,
        *metadata: Tensor,
        drop: Drop = NONE,
    ) -> tuple[Tensor, ...]:
        """dq, dk, dv, and the gradient of `near` where there is one."""
        if torch.compiler.is_compiling():
            got = OPS.attend_near_backward(self.key, do, q, k, v, out, lse, scale, near, first, metadata, *drop)
            return tuple(got)
        dtype, kv, bits = accumulate_dtype(q), k.shape[1], drop.over(q, k)
        dq, dk, dv = (x.new_zeros(x.transpose(1, 2).shape, dtype=dtype).transpose(1, 2) for x in (q, k, v))
        dnear = None if near is None else torch.zeros_like(near, dtype=dtype)
        for t in self.tiles(q, k, first, metadata):
            plain, p, seen = self._scores(q, k, scale, near, t)
            g, o, rows = (by_kv_head(x[:, :, t.rows], kv).to(dtype) for x in (do, out, q))
            keys, values = (x[:, :, None, t.keys].to(dtype) for x in (k, v))
            p = by_kv_head(torch.exp(p - lse[:, :, t.rows, None]) if self.normalised else p, kv)
            dp, dropped = g @ values.mT, p
            if bits is not None:
                left = by_kv_head(t.left(q, bits), kv)
                dp, dropped = dp * left, p * left
            times = p if self.normalised else by_kv_head(seen.to(dtype), kv)
            ds = times * (dp - (g * o).sum(-1, keepdim=True) if self.normalised else dp)
            if self.slope is not None:
                slope = torch.as_tensor(self.slope(plain, *t.places), dtype=dtype, device=q.device)
                ds = torch.where(times > 0, ds * by_kv_head(slope.expand_as(plain)[:, :, 0], kv), 0.0)
            if dnear is not None:
                self._spread(dnear, t, ds.flatten(1, 2))
            dq[:, :, t.rows] = (ds @ keys).flatten(1, 2) * scale
            dk[:, :, t.keys] += (ds.mT @ rows).sum(2) * scale
            dv[:, :, t.keys] += (dropped.mT @ g).sum(2)
        grads = (dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype))
        return grads if dnear is None or near is None else (*grads, dnear.to(near.dtype))

    def tiles(self, q: Tensor, k: Tensor, first: int, metadata: tuple[Tensor, ...]) -> Iterator[Tile]:
        """Every tile whose queries can see a key."""
        (batch, heads, n, _), m = q.shape, k.shape[2]
        before = m - n if self.tail else 0
        block = min(self.block, max(1, PAIRS_AT_ONCE // max(1, batch * heads * m)))
        head = torch.arange(heads, device=q.device).view(1, heads, 1, 1, 1)
        bounds = None
        if self.documents is not None:
            queries, keys = (metadata[i] for i in self.documents)
            bounds = SegmentBounds.of(queries, keys, block)
        for start in range(0, n if q.numel() else 0, block):
            stop = min(start + block, n)
            seen = [(0, m)] if self.ranges is None else [*self.ranges(start + before, stop + before)]
            low, high = max(0, seen[0][0]) if seen else m, min(m, seen[-1][1]) if seen else 0
            if bounds is not None and low < high:
                parts = bounds.within(start, stop, [(low, high)])
                low, high = (parts[0][0], parts[-1][1]) if parts else (0, 0)
            if low >= high:
                continue
            row = torch.arange(start + before, stop + before, device=q.device)[:, None]
            key = torch.arange(low, high, device=q.device)
            places = (row.view(1, 1, 1, -1, 1), key.view(1, 1, 1, 1, -1), head, *metadata)
            yield Tile(slice(start, stop), slice(low, high), places, row - key - first)

    def _scores(self, q: Tensor, k: Tensor, scale: float, near: Tensor | None, t: Tile) -> tuple[Tensor, ...]:
        """s [B, H, 1, n, L]; what `score` and the mask make of it [B, H, n, L], scores that are -inf where a key is not
        seen, or weights; and how often it is seen, likewise."""
        dtype = accumulate_dtype(q)
        s = by_kv_head(q[:, :, t.rows], k.shape[1]).to(dtype) @ k[:, :, None, t.keys].to(dtype).mT * scale
        s = s.flatten(1, 2)
        if near is not None:
            s = s + read(near if near.shape[2] == 1 else near[:, :, t.rows], t.gaps).to(dtype)
        plain = s[:, :, None]
        scored = plain if self.score is None else torch.as_tensor(self.score(plain, *t.places), dtype=dtype)
        keep = torch.as_tensor(self.keep(*t.places), device=q.device)
        scored = masked(scored, keep, self.normalised).expand_as(plain)
        return plain, scored[:, :, 0], keep.expand_as(plain)[:, :, 0]

    def _spread(self, dnear: Tensor, t: Tile, ds: Tensor) -> None:
        """Add the gradients ds [B, H, n, L] of a tile's scores to those of the table."""
        rows = dnear.shape[-1]
        inside = (t.gaps >= 0) & (t.gaps < rows)
        part = ds.new_zeros(*ds.shape[:-1], rows)
        index = t.gaps.clamp(0, max(0, rows - 1)).expand_as(ds)
        part.scatter_add_(-1, index, torch.where(inside, ds, 0.0))
        shared = [d for d in range(3) if dnear.shape[d] == 1 and part.shape[d] != 1]
        part = part.sum(shared, keepdim=True) if shared else part
        home = dnear if dnear.shape[2] == 1 else dnear[:, :, t.rows]
        home.add_(part)


@dataclass(frozen=True)
class Steps:
    """Attention of new positions over kept rows and their own, where each row of a batch has its own place.

    keep and score as in Tiles, of positions that broadcast to [B, H, T, M]; metadata is [B, T] or [B, M]."""

    keep: Callable[..., Tensor | bool | int]
    score: Pointwise | None = None
    normalised: bool = True

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        near: Tensor | None,
        first: int,
        query_at: Tensor,
        key_at: Tensor,
        *metadata: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """out [B, H, T, Dv] and lse [B, H, T] (float32, or float64 for float64 operands).

        q [B, H, T, D] stand at query_at [B, T]; k [B, Hkv, M, D] and v [B, Hkv, M, Dv] at key_at [B, M], and nobody
        sees those at a negative position. A query that sees nothing gives 0 and lse +inf."""
        dtype, kv = accumulate_dtype(q), k.shape[1]
        heads = torch.arange(q.shape[1], device=q.device).view(1, -1, 1, 1)
        places = (query_at[:, None, :, None], key_at[:, None, None, :], heads)
        keep = torch.as_tensor(self.keep(*places, *metadata), device=q.device)
        s = (by_kv_head(q, kv).to(dtype) @ k[:, :, None].to(dtype).mT * scale).flatten(1, 2)
        if near is not None:
            s = s + read(near, query_at[:, :, None] - key_at[:, None, :] - first).to(dtype)
        if self.score is not None:  # which may be a number
            s = torch.as_tensor(self.score(s, *places, *metadata), dtype=dtype, device=q.device)
        p = masked(s, keep * (places[1] >= 0), self.normalised).expand(*q.shape[:3], k.shape[2])
        lse = q.new_zeros(q.shape[:3], dtype=dtype)
        if self.normalised:
            lse = p.logsumexp(-1)
            lse = lse.masked_fill(lse == -torch.inf, torch.inf)
            p = torch.exp(p - lse[..., None])
        out = (by_kv_head(p, kv) @ v[:, :, None].to(dtype)).flatten(1, 2).to(q.dtype)
        return out, lse


def _run(
    layout: str, q: Tensor, k: Tensor, v: Tensor, scale: float, near: Tensor | None, first: int,
    metadata: list[Tensor], *drop: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out, lse = KNOWN[layout].forward(q, k, v, scale, near, first, *metadata, drop=Drop(*drop))
    return out, lse.contiguous()


def _fake(layout: str, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return _empty(q, v.shape[3]), q.new_empty(q.shape[:3], dtype=accumulate_dtype(q))


def _run_backward(
    layout: str, do: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float,
    near: Tensor | None, first: int, metadata: list[Tensor], *drop: Any,
) -> list[Tensor]:  # fmt: skip
    return [*KNOWN[layout].backward(do, q, k, v, out, lse, scale, near, first, *metadata, drop=Drop(*drop))]


def _fake_backward(
    layout: str, do: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float,
    near: Tensor | None, *_: object,
) -> list[Tensor]:  # fmt: skip
    return [*(_empty(x, x.shape[3]) for x in (q, k, v)), *([torch.empty_like(near)] if near is not None else [])]


def _empty(like: Tensor, width: int) -> Tensor:
    batch, heads, n, _ = like.shape
    return like.new_empty(batch, n, heads, width).transpose(1, 2)


define(
    "attend_near",
    "(str layout, Tensor q, Tensor k, Tensor v, float scale, Tensor? near, SymInt first, Tensor[] metadata,"
    f" {DROP}) -> (Tensor, Tensor)",
    _run,
    _fake,
)
define(
    "attend_near_backward",
    "(str layout, Tensor do, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, float scale, Tensor? near,"
    f" SymInt first, Tensor[] metadata, {DROP}) -> Tensor[]",
    _run_backward,
    _fake_backward,
)
