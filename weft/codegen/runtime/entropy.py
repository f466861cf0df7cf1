"""Cross-entropy against an index, and its backward from the saved log-sum-exp."""

import torch
from torch import Tensor


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def cross_entropy(logits: Tensor, target: Tensor, ignore: int | None = None) -> tuple[Tensor, Tensor]:
    """(loss, lse), both [...]: lse - logits[target] over the last dim of logits [..., V]; 0 where target is `ignore`.

    Raises torch's own error for any other target outside the vocabulary.
    """
    logits = _wide(logits)
    lse = torch.logsumexp(logits, -1)
    if ignore is None:
        return lse - logits.gather(-1, target[..., None])[..., 0], lse
    ignored = target == ignore
    hit = logits.gather(-1, target.masked_fill(ignored, 0)[..., None])[..., 0]
    return (lse - hit).masked_fill_(ignored, 0), lse


def cross_entropy_backward(
    dloss: Tensor, logits: Tensor, target: Tensor, lse: Tensor, ignore: int | None = None
) -> Tensor:
    """d(logits) = (softmax(logits) - onehot(target)) * dloss; one array of the size of the logits is made."""
    if ignore is not None:
        ignored = target == ignore
        dloss, target = dloss.masked_fill(ignored, 0), target.masked_fill(ignored, 0)
    dx = torch.sub(_wide(logits), lse[..., None]).exp_().mul_(dloss[..., None])
    dx.scatter_add_(-1, target[..., None], -dloss[..., None])
    return dx.to(logits.dtype)
