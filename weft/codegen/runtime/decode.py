"""Attention of new positions over the rows that are kept and their own, where each row of a batch has its own place."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention_core import accumulate_dtype, attend, by_kv_head


@dataclass(frozen=True)
class Steps:
    """Attention at positions that are given.

    keep(q, k, h, *metadata) says what is visible (an integer is a multiplicity), score(s, q, k, h, *metadata) changes
    scores, of positions and heads that broadcast to [B, H, T, M]; metadata is [B, T] or [B, M]. Either may be a number.
    """

    keep: Callable[..., Tensor | bool | int]
    score: Callable[..., Tensor | float] | None = None

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, query_at: Tensor, key_at: Tensor, *metadata: Tensor
    ) -> tuple[Tensor, Tensor]:
        """out [B, H, T, Dv] and lse [B, H, T] (float32, or float64 for float64 operands).

        q [B, H, T, D] stand at query_at [B, T]; k [B, Hkv, M, D] and v [B, Hkv, M, Dv] at key_at [B, M], and nobody
        sees those at a negative position. A query that sees nothing gives 0 and lse +inf."""
        heads = torch.arange(q.shape[1], device=q.device).view(1, -1, 1, 1)
        places = (query_at[:, None, :, None], key_at[:, None, None, :], heads)
        mask = self._mask(q, places, metadata)
        if self.score is not None:
            out, lse = self._scored(q, k, v, scale, mask, places, metadata)
        elif q.shape[2] == 1:  # query heads that share keys stand as rows of one product
            kv = k.shape[1]
            rows = mask.expand(-1, q.shape[1], -1, -1)[:, :, 0].unflatten(1, (kv, -1))
            out, lse = attend(by_kv_head(q, kv)[:, :, :, 0], k, v, scale, mask=rows)
            out, lse = out.flatten(1, 2)[:, :, None], lse.flatten(1, 2)[:, :, None]
        else:
            out, lse = attend(q, k, v, scale, mask=mask)
        return out, lse.masked_fill(lse == -torch.inf, torch.inf)

    def _mask(self, q: Tensor, places: tuple[Tensor, Tensor, Tensor], metadata: tuple[Tensor, ...]) -> Tensor:
        """What is added to scores, -inf where a key is not seen; it broadcasts to [B, H, T, M]."""
        keep = torch.as_tensor(self.keep(*places, *metadata), device=q.device)
        seen = (keep > 0) & (places[1] >= 0)
        weight = 0.0 if keep.dtype == torch.bool else keep.to(accumulate_dtype(q)).log()
        return torch.where(seen, weight, -torch.inf).to(q.dtype)

    def _scored(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        mask: Tensor,
        places: tuple[Tensor, Tensor, Tensor],
        metadata: tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor]:
        """Where a key is hidden its score may be anything, NaN too: it is not used."""
        assert self.score is not None
        dtype, kv = accumulate_dtype(q), k.shape[1]
        s = (by_kv_head(q, kv).to(dtype) @ k[:, :, None].to(dtype).mT * scale).flatten(1, 2)
        s = torch.where(mask == -torch.inf, -torch.inf, self.score(s, *places, *metadata) + mask.to(dtype)).expand_as(s)
        lse = s.logsumexp(-1)
        p = torch.exp(s - lse.masked_fill(lse == -torch.inf, torch.inf)[..., None])
        return (by_kv_head(p, kv) @ v[:, :, None].to(dtype)).flatten(1, 2).to(q.dtype), lse
