"""RMSNorm with its backward from the saved reciprocal root mean square; statistics in float32 at least."""

import torch
from torch import Tensor


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x / sqrt(mean(x²) + eps) * weight + bias over the last dim [..., D], and rstd [..., 1]."""
    wide = _wide(x)
    rstd = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    y = wide * rstd
    if weight is not None:
        y.mul_(weight)
    if bias is not None:
        y.add_(bias)
    return y.to(x.dtype), rstd


def rms_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(dx, dweight, dbias) of rms_norm; the last two are None without a weight.

    With u = x * rstd and g = dy * weight: dx = rstd * (g - u * mean(g * u)).
    """
    u, g = _wide(x) * rstd, _wide(dy)
    dweight = dbias = None
    if weight is not None:
        dweight = torch.linalg.vecdot(u.flatten(0, -2), g.flatten(0, -2), dim=0).to(weight.dtype)
        dbias = g.flatten(0, -2).sum(0).to(weight.dtype)
        g = g * weight
    share = torch.linalg.vecdot(g, u)[..., None] / x.shape[-1]
    dx = u.mul_(share).neg_().add_(g).mul_(rstd)
    return dx.to(x.dtype), dweight, dbias
