"""Tensors over an iteration space as the kernels want them, and comparison with torch."""

import random
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from tests.kernels.dual import interp
from tests.kernels.sanitize import checked, strided

TYPES = {torch.float64: tl.float64, torch.float32: tl.float32, torch.float16: tl.float32, torch.bfloat16: tl.float32}


def flags(space: Sequence[str], *dims: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """DIMS of operands with these dims."""
    return tuple(tuple(int(d in own) for d in space) for own in dims)


def strides(space: Sequence[str], *operands: tuple[Tensor, Sequence[str]]) -> tuple[tuple[int, ...], ...]:
    """One stride per dim of the space, 0 where the operand does not have it."""
    return tuple(tuple(t.stride(dims.index(d)) if d in dims else 0 for d in space) for t, dims in operands)


def fit(x: Tensor, dims: Sequence[str], space: Sequence[str]) -> Tensor:
    """x with the space's dims in the space's order, size 1 where it lacks one."""
    order = sorted(range(len(dims)), key=lambda d: space.index(dims[d]))
    x, kept = x.permute(order), [dims[d] for d in order]
    for z, d in enumerate(space):
        if d not in kept:
            x = x.unsqueeze(z)
    return x


def guarded(rng: random.Random, shape: Sequence[int], dtype: torch.dtype, value: Any = None) -> Tensor:
    """A tensor of some layout, in memory where nothing else may be touched; without a value, NaN."""
    return strided(rng, (1, *shape), dtype, float("nan") if value is None else value)[0]


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, seed: int = 0, **constants: Any) -> None:
    """Interpret a launch under the checks of memory and races."""
    with ExitStack() as stack:
        stack.enter_context(checked(shuffle=seed))
        interp(kernel)[grid](*args, **constants)


def wrong(got: Tensor, want: Tensor, tolerance: float = 1e-10) -> str:
    """What is wrong with a result, "" if nothing; the tolerance is relative to the largest value."""
    if got.shape != want.shape:
        return f"shape {tuple(got.shape)}, not {tuple(want.shape)}"
    if want.numel() == 0:
        return ""
    error = (got.double() - want.double()).abs().max().item()
    return "" if error <= tolerance * max(1.0, want.abs().max().item()) else f"error {error:.2g}"


def too_rough(got: Tensor, torch_result: Tensor, truth: Tensor, times: float = 2) -> str:
    """Is the error above `times` that of torch in the same dtype, with one rounding of the result to spare?"""
    if truth.numel() == 0:
        return ""
    size = truth.abs().max().item()
    ours, theirs = ((x.double() - truth).abs().max().item() for x in (got, torch_result))
    spare = torch.finfo(got.dtype).eps * size * (1.0 if got.dtype != torch.float32 else 8.0)
    return "" if ours <= times * theirs + spare else f"error {ours:.3g}, torch's {theirs:.3g}"
