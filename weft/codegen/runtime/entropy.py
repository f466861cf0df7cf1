"""Cross-entropy against an index, and its backward from the saved log-sum-exp."""

import torch
from torch import Tensor


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def cross_entropy(logits: Tensor, target: Tensor, ignore: int | None = None) -> tuple[Tensor, Tensor]:
    """(loss, lse), both [...]: lse - logits[target] over the last dim of logits [..., V]; 0 where target is `ignore`.

    A target outside the vocabulary hits nothing: its loss is lse.
    """
    logits = _wide(logits)
    lse = torch.logsumexp(logits, -1)
    inside = (target >= 0) & (target < logits.shape[-1])
    hit = logits.gather(-1, torch.where(inside, target, 0)[..., None])[..., 0]
    loss = lse - torch.where(inside, hit, 0)
    return (loss if ignore is None else loss.masked_fill(target == ignore, 0)), lse


def cross_entropy_backward(
    dloss: Tensor, logits: Tensor, target: Tensor, lse: Tensor, ignore: int | None = None
) -> Tensor:
    """d(logits) = (softmax(logits) - onehot(target)) * dloss; one array of the size of the logits is made."""
    if ignore is not None:
        dloss = dloss.masked_fill(target == ignore, 0)
    inside = (target >= 0) & (target < logits.shape[-1])
    dx = torch.sub(_wide(logits), lse[..., None]).exp_().mul_(dloss[..., None])
    dx.scatter_add_(-1, torch.where(inside, target, 0)[..., None], torch.where(inside, -dloss, 0)[..., None])
    return dx.to(logits.dtype)
