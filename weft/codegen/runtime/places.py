"""Where tokens stand in rows of several documents, or with padding."""

import torch
from torch import Tensor


def counted(valid: Tensor, count: Tensor | int = 0) -> Tensor:
    """How many of the tokens that count come before each, after `count` [B] earlier ones: i64[B, N] of bool[B, N]."""
    own = valid.long()
    before = own.cumsum(1) - own
    return before if isinstance(count, int) else before + count[:, None]


def documents(
    segments: Tensor,
    valid: Tensor | None,
    begun: Tensor | None = None,
    last: Tensor | None = None,
    count: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Each token's place in its document, over those that are valid, and the number of that document in its row.

    segments [B, N]: equal neighbours are one document. begun, last, count [B]: how many documents there were before,
    the last one's segment, how many of its tokens count."""
    new = torch.ones_like(segments[:, :1], dtype=torch.bool)
    if begun is not None and last is not None:
        new = (segments[:, :1] != last[:, None]) | (begun == 0)[:, None]
    new = torch.cat([new, segments[:, 1:] != segments[:, :-1]], 1)
    number = new.long().cumsum(1) - 1
    number = number if begun is None else number + begun[:, None]
    if valid is None:
        before = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    else:
        before = counted(valid)
    first = torch.zeros_like(segments) if count is None else (-count)[:, None].expand_as(segments)
    return before - torch.where(new, before, first).cummax(1).values, number
