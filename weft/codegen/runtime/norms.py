"""Norms over the last dim with their statistics, and their backwards from those: one number a row, [...], in float32 at
least."""

import torch
from torch import Tensor


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dim [..., D], mean [...] and rstd [...]."""
    y, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)
    return y, mean[..., 0], rstd[..., 0]


def layer_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias) of layer_norm; the last two mean nothing without a weight or a bias."""
    rows, wanted = (mean[..., None], rstd[..., None]), [True, weight is not None, bias is not None]
    return torch.ops.aten.native_layer_norm_backward(dy, x, x.shape[-1:], *rows, weight, bias, wanted)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x / sqrt(mean(x²) + eps) * weight + bias over the last dim [..., D], and rstd [...]."""
    wide = _wide(x)
    rstd = torch.linalg.vector_norm(wide, dim=-1).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    y = wide * rstd[..., None]
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
    rstd = rstd[..., None]
    u, g = _wide(x) * rstd, _wide(dy)
    dweight = dbias = None
    if weight is not None:
        dweight = torch.linalg.vecdot(u.flatten(0, -2), g.flatten(0, -2), dim=0).to(weight.dtype)
        dbias = g.flatten(0, -2).sum(0).to(weight.dtype)
        g = g * weight
    share = torch.linalg.vecdot(g, u)[..., None] / x.shape[-1]
    dx = u.mul_(share).neg_().add_(g).mul_(rstd)
    return dx.to(x.dtype), dweight, dbias
