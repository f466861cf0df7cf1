"""Rotary position embedding (Su et al. 2021): pairs of coordinates turned by position * theta^(-2j/r)."""

import torch
from torch import Tensor


def angles(position: Tensor, turned: int, theta: float, dtype: torch.dtype) -> Tensor:
    """[..., turned / 2]: the angle of each pair at each position."""
    pair = torch.arange(turned // 2, device=position.device, dtype=dtype)
    return position[..., None].to(dtype) * theta ** (-2 * pair / turned)


def rotate(x: Tensor, angle: Tensor, interleaved: bool) -> Tensor:
    """x [..., D] with its first 2 P coordinates turned by angle [..., P]; a negative angle turns back (the gradient).

    Pair j is (j, j + P), or (2j, 2j + 1) when interleaved.
    """
    wide = x.to(angle.dtype)
    pairs = angle.shape[-1]
    cos, sin = angle.cos(), angle.sin()
    turned, rest = wide[..., : 2 * pairs], wide[..., 2 * pairs :]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        out = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        out = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    return (out if not rest.shape[-1] else torch.cat((out, rest), -1)).to(x.dtype)
