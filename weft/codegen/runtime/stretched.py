"""Rotary angles whose frequencies are stretched, so that a model reads further than it was first trained for."""

import torch
from torch import Tensor


def angles(
    position: Tensor,
    turned: int,
    theta: float,
    dtype: torch.dtype,
    factor: float,
    ramp: str = "",
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """[..., turned / 2]: the angle of each pair at each position, of position [...].

    A pair's frequency f = theta^(-2j/turned) is f/factor; with a ramp it is s f + (1 - s) f/factor, where s goes from 0
    to 1 as the number j of the pair ("pair") or f ("frequency") goes from one bound to the other.
    """
    pair = torch.arange(turned // 2, device=position.device, dtype=dtype)
    frequency = theta ** (-2 * pair / turned)
    if ramp:
        stretched, kept = bounds
        share = (((pair if ramp == "pair" else frequency) - stretched) / (kept - stretched)).clamp(0, 1)
        frequency = frequency * (share + (1 - share) / factor)
    else:
        frequency = frequency / factor
    return position[..., None].to(dtype) * frequency
