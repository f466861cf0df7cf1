"""Poison and canaries: new tensors are full of NaN and lie between fences that a kernel must not touch. Imports torch.

with Guarded() as guard:
    args = guard.kept(args)
    out = run(*args)
guard.damage()              "" or what was touched
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

FENCE = 4096  # bytes before and after; keeps any alignment
_CANARY, _POISON = 0xA5, 0xFF  # of 0xFF bytes every float is NaN and every signed integer -1

_aten = torch.ops.aten
_EMPTY = {
    _aten.empty.memory_format, _aten.empty_strided.default, _aten.new_empty.default, _aten.new_empty_strided.default,
    _aten.empty_like.default,
}  # fmt: skip


class Guarded(TorchDispatchMode):
    """Inside, what torch.empty and its like give is poisoned and fenced."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: list[tuple[Tensor, int, int]] = []
        self._kept: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func not in _EMPTY:
            return func(*args, **kwargs)
        device = kwargs.get("device") or (args[0].device if args and isinstance(args[0], Tensor) else "cpu")
        shape = func(*args, **kwargs | {"device": "meta", "pin_memory": False})
        if torch.device(device).type == "meta":
            return shape
        return self.fenced(shape, torch.device(device))

    def fenced(self, like: Tensor, device: torch.device) -> Tensor:
        """A poisoned tensor of the shape, strides and dtype of `like`."""
        extent = sum((n - 1) * s for n, s in zip(like.shape, like.stride())) + 1 if like.numel() else 0
        size = extent * like.element_size()
        whole = torch.full((size + 2 * FENCE + 256,), _CANARY, dtype=torch.uint8, device=device)
        start = FENCE + -(whole.data_ptr() + FENCE) % 256
        whole[start : start + size] = _POISON
        self._buffers.append((whole, start, size))
        typed = whole[start : start + size].view(like.dtype)
        return typed.as_strided(like.shape, like.stride(), typed.storage_offset())

    def kept(self, args: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments with tensors copied between fences; a kernel must not change them."""
        return tuple(self._copy(a) if isinstance(a, Tensor) else a for a in args)

    def _copy(self, x: Tensor) -> Tensor:
        out = self.fenced(torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta"), x.device)
        out.copy_(x)
        self._kept.append((out, x))
        return out

    def damage(self) -> str:
        """What was written that should not have been, "" if nothing."""
        for whole, start, size in self._buffers:
            for side, fence in (("before", whole[:start]), ("after", whole[start + size :])):
                n = int((fence != _CANARY).sum())
                if n:
                    return f"{n} bytes {side} a tensor of {size} bytes were overwritten"
        for out, x in self._kept:
            if not torch.equal(_bits(out), _bits(x)):
                return "an operand was overwritten"
        return ""


def _bits(x: Tensor) -> Tensor:
    """The values as integers, so that NaN equals itself."""
    x = x.contiguous()
    return x.view(torch.uint8) if x.dim() else x.reshape(1).view(torch.uint8)
