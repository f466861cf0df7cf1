"""Attention one step at a time: a key-value cache (whole, or a ring of the last tokens) and attention over it."""

from collections.abc import Callable

import torch
from torch import Tensor

from .attention_core import accumulate_dtype, attend, by_kv_head


class Cache:
    """Keys and values of past tokens, [B, Hkv, capacity, D] each.

    Token p lies in slot p % capacity. With `ring` the newest capacity tokens stay (a window of that width); without it
    a token past the capacity raises ValueError. `length` counts the tokens seen so far.
    """

    def __init__(self, keys: Tensor, values: Tensor, ring: bool = False, length: int = 0):
        self.keys, self.values, self.ring, self.length = keys, values, ring, length

    @classmethod
    def empty(cls, k: Tensor, v: Tensor, capacity: int, ring: bool = False) -> "Cache":
        """A cache for tokens like those of k [B, Hkv, *, D] and v [B, Hkv, *, Dv]."""
        keys, values = (x.new_zeros(*x.shape[:2], capacity, x.shape[3]) for x in (k, v))
        return cls(keys, values, ring)

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]

    def append(self, k: Tensor, v: Tensor) -> None:
        """Store the next tokens, k [B, Hkv, T, D] and v [B, Hkv, T, Dv]; T is the prompt's length at first, then 1."""
        new, stop = k.shape[2], self.length + k.shape[2]
        if stop > self.capacity and not self.ring:
            raise ValueError(f"the cache holds {self.capacity} tokens; token {stop - 1} does not fit")
        kept = min(new, self.capacity)
        for held, x in ((self.keys, k[:, :, new - kept :]), (self.values, v[:, :, new - kept :])):
            slot = (stop - kept) % self.capacity if kept else 0
            before = min(kept, self.capacity - slot)  # tokens up to the end of the ring; the rest start it again
            held[:, :, slot : slot + before] = x[:, :, :before]
            held[:, :, : kept - before] = x[:, :, before:]
        self.length = stop

    def tokens(self) -> tuple[Tensor, Tensor, Tensor]:
        """(keys, values, positions [M]) of the slots in use, as views; in a ring they are not in order."""
        used = min(self.length, self.capacity)
        slot = torch.arange(used, device=self.keys.device)
        last = self.length - 1
        positions = slot if last < self.capacity else last - (last - slot) % self.capacity
        return self.keys[:, :, :used], self.values[:, :, :used], positions


def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    first: int = 0,
    positions: Tensor | None = None,
    keep: Callable[..., Tensor | bool] | None = None,
    score: Callable[..., Tensor | float] | None = None,
    metadata: tuple[Tensor, ...] = (),
) -> tuple[Tensor, Tensor]:
    """Attention of the newest tokens over the cached ones: out [B, H, T, Dv], lse [B, H, T].

    q [B, H, T, D] are the queries at positions first .. first + T - 1 (T is 1 in a step); k [B, Hkv, M, D] and
    v [B, Hkv, M, Dv] lie at `positions` [M] (None: 0..M-1). keep(q, k, h, *metadata) says what is visible (None: every
    key; an integer is a multiplicity) and score(s, q, k, h, *metadata) changes scores, both of index tensors that
    broadcast to [1, H, T, M]. A score may be a number, and is not used where a key is hidden. A query that sees nothing
    gives 0 and lse +inf.
    """
    arguments = (*_positions(q, k, first, positions), *metadata)
    mask = _mask(torch.as_tensor(keep(*arguments), device=q.device), q) if keep else None
    if score:
        out, lse = _scored(q, k, v, scale, mask, lambda s: score(s, *arguments))
    elif q.shape[2] == 1:  # query heads that share keys stand as rows of one product
        kv = k.shape[1]
        full = (
            mask.expand(-1, q.shape[1], 1, k.shape[2]).unflatten(1, (kv, -1))[..., 0, :] if mask is not None else None
        )
        out, lse = attend(by_kv_head(q, kv)[:, :, :, 0], k, v, scale, mask=full)
        out, lse = out.flatten(1, 2)[:, :, None], lse.flatten(1, 2)[:, :, None]
    else:
        out, lse = attend(q, k, v, scale, mask=mask if mask is None else mask.expand(-1, -1, q.shape[2], k.shape[2]))
    return out, lse.masked_fill(lse == -torch.inf, torch.inf)


def _positions(q: Tensor, k: Tensor, first: int, positions: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Index tensors q [1, 1, T, 1], k [1, 1, 1, M], h [1, H, 1, 1]."""
    rows = torch.arange(first, first + q.shape[2], device=q.device)
    keys = torch.arange(k.shape[2], device=q.device) if positions is None else positions
    heads = torch.arange(q.shape[1], device=q.device)
    return rows.view(1, 1, -1, 1), keys.view(1, 1, 1, -1), heads.view(1, -1, 1, 1)


def _mask(keep: Tensor, q: Tensor) -> Tensor:
    mask = torch.where(keep, 0.0, -torch.inf) if keep.dtype == torch.bool else keep.to(accumulate_dtype(q)).log()
    return mask.to(q.dtype).view((1,) * (4 - mask.dim()) + mask.shape)


def _scored(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None, score: Callable[[Tensor], Tensor | float]
) -> tuple[Tensor, Tensor]:
    dtype, kv = accumulate_dtype(q), k.shape[1]
    s = (by_kv_head(q, kv).to(dtype) @ k[:, :, None].to(dtype).mT * scale).flatten(1, 2)
    s = torch.as_tensor(score(s), dtype=dtype, device=q.device).expand_as(s)
    s = s if mask is None else torch.where(mask == -torch.inf, -torch.inf, s + mask)
    lse = s.logsumexp(-1)
    p = torch.exp(s - lse.masked_fill(lse == -torch.inf, torch.inf)[..., None])
    return (by_kv_head(p, kv) @ v[:, :, None].to(dtype)).flatten(1, 2).to(q.dtype), lse
