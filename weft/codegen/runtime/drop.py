"""Dropout by counter: the same bits in any layout, and again in the backward."""

import torch
from torch import Tensor

from . import philox


def dropout(
    x: Tensor,
    rate: float,
    seed: Tensor | None,
    op_id: int,
    layer: Tensor | int,
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    """x / (1 - rate) where a bit of (seed, op_id, layer, place in x) says keep, else 0; x itself without a seed.

    shape: of the bits, 1 for dims that share one (default: x's own). The gradient is the same function of d(out).
    """
    if seed is None or rate == 0:
        return x
    keep = philox.dropout_mask(tuple(x.shape if shape is None else shape), rate, seed, op_id, layer, x.device)
    return torch.where(keep, x * (1 / (1 - rate)), 0)
