"""Attention whose weights are dropped by counter: a bit a pair, the same in any layout and again in the backward.

A weight p counts p / (1 - rate) times or not at all in the product with v, and log-sum-exps are those of all weights:
so parts of a pattern still merge, and rowsum(do * out) is still what the derivative of the softmax takes off.

Letters as in attention_core: B batch, H heads, N queries, M keys, D head width.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import philox
from .attention_core import accumulate_dtype, by_kv_head
from .whole import KNOWN, Whole


@dataclass(frozen=True)
class Dropping(Whole):
    """What a file knows of a Drop."""

    rate: float
    op_id: int

    def by(self, seed: Tensor | None, layer: Tensor | int) -> "Drop":
        return Drop(self.key, seed, layer)


class Drop(NamedTuple):
    """Drop a share of the weights, by the bits of seed (None: drop nothing) and layer.

    rule: the key of a Dropping, since a compiler takes a text as it is and would leave a rate open, as it does lengths.
    """

    rule: str = ""
    seed: Tensor | None = None
    layer: Tensor | int = 0

    def over(self, q: Tensor, k: Tensor) -> "PairBits | None":
        """The bits of the pairs of q [B, H, N, D] and k [.., M, D]."""
        if self.seed is None:
            return None
        of: Dropping = KNOWN[self.rule]
        return PairBits(of.rate, self.seed, of.op_id, self.layer, (q.shape[1], q.shape[2], k.shape[2]))


NONE = Drop()
SCHEMA = 'str rule="", Tensor? seed=None, SymInt layer=0'
"""A Drop as operands of an op."""


@dataclass(frozen=True)
class PairBits:
    """What is left of each pair's weight: 1 / (1 - rate) or 0. shape: how many heads, queries and keys there are."""

    rate: float
    seed: Tensor
    op_id: int
    layer: Tensor | int
    shape: tuple[int, int, int]

    def at(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor, dtype: torch.dtype) -> Tensor:
        """Of the pairs at coordinates that broadcast together."""
        index = self._row(b, h, q) + k
        return self._left(philox.keep_at(index, self.rate, self.seed, self.op_id, self.layer), dtype)

    def along(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        """Of the pairs with keys k .. k + count - 1, along a last dim."""
        first = self._row(b, h, q) + k
        return self._left(philox.keep_along(first, count, self.rate, self.seed, self.op_id, self.layer), dtype)

    def _row(self, b: Tensor, h: Tensor, q: Tensor) -> Tensor:
        heads, queries, keys = self.shape
        return ((b * heads + h) * queries + q) * keys

    def _left(self, keep: Tensor, dtype: torch.dtype) -> Tensor:
        return keep.to(dtype) * (1 / (1 - self.rate))


def attend_dropped(
    q: Tensor, k: Tensor, v: Tensor, scale: float, left: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """attention_core.attend of q [B, H, .., N, D], k, v [B, Hkv, .., M, D], weights times left [B, H, .., N, M]."""
    s, kv = _scores(q, k, scale, mask), k.shape[1]
    lse = s.logsumexp(-1)
    p = torch.exp(s - lse.masked_fill(lse == -torch.inf, torch.inf)[..., None]) * left
    out = (by_kv_head(p, kv) @ v[:, :, None].to(p.dtype)).flatten(1, 2)
    return out.to(q.dtype), lse


def attend_dropped_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    left: Tensor,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """attention_core.attend_backward of the same; gradients in the accumulation dtype."""
    dtype, kv = accumulate_dtype(q), k.shape[1]
    p = torch.exp(_scores(q, k, scale, mask) - lse[..., None])
    do, q = do.to(dtype), by_kv_head(q, kv).to(dtype)
    rows = by_kv_head(do, kv)
    dp = (rows @ v[:, :, None].to(dtype).mT).flatten(1, 2) * left
    ds = by_kv_head(p * (dp - (do * out).sum(-1, keepdim=True)) * scale, kv)
    dv = (by_kv_head(p * left, kv).mT @ rows).sum(2)
    return (ds @ k[:, :, None].to(dtype)).flatten(1, 2), (ds.mT @ q).sum(2), dv


def _scores(q: Tensor, k: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """Scores [B, H, .., N, M] in the accumulation dtype, hidden ones -inf."""
    dtype = accumulate_dtype(q)
    s = (by_kv_head(q, k.shape[1]).to(dtype) @ k[:, :, None].to(dtype).mT).flatten(1, 2) * scale
    return s if mask is None else s + mask
