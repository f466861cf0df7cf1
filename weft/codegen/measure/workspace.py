"""What torch allocates that no dispatch shows: buffers that CPU operators take inside themselves and give back before
they return; and constants on meta.

Read in aten/src/ATen/native/cpu of torch 2.13 (FlashAttentionKernel.cpp, layer_norm_kernel.cpp, ReduceOps.cpp) and held
to the allocations of real runs. Buffers are one a thread, so a machine of more threads takes more.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

KEYS = 512
"""Keys that flash attention takes at once."""
REDUCED = (torch.bfloat16, torch.float16)


class Constants(TorchFunctionMode):
    """While it is on, `see` is given every tensor made of Python numbers."""

    def __init__(self, see: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.see = see

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor):
            self.see(out)
        return out


def workspace(name: str, args: Sequence[Any], out: Any, threads: int) -> int:
    """Most bytes alive inside one call beside its operands and results. name: of the operator, without its overload."""
    known = INSIDE.get(name)
    return known(args, out, threads) if known is not None else _cast(args, out)


def _cast(args: Sequence[Any], out: Any) -> int:
    """A pointwise operator on mixed dtypes works on copies in the common one."""
    if not isinstance(out, Tensor) or sum(isinstance(x, Tensor) for x in args) < 2:
        return 0
    tensors = [x for x in args if isinstance(x, Tensor) and x.dim()]
    if any(x.numel() > out.numel() for x in tensors) or len({x.dtype for x in tensors}) < 2:
        return 0
    common = tensors[0].dtype
    for x in tensors[1:]:
        common = torch.promote_types(common, x.dtype)
    return sum(x.numel() * common.itemsize for x in tensors if x.dtype != common)


def _queries(n: int) -> int:
    return min(n, 256 if n >= 768 else 64 if n >= 192 else 32)


def _flash(args: Sequence[Any], out: Any, threads: int) -> int:
    """Scores of a tile, its row maxima and sums, and its results, in float32; in a narrow dtype the scores again."""
    q, k = args[0], args[1]
    rows, keys, head = _queries(q.shape[2]), min(KEYS, k.shape[2]), q.shape[3]
    wide = max(4, q.element_size())
    own = wide * (rows * keys + 2 * rows + rows * head)
    return threads * (own + _narrow(q, rows, keys, head, 1))


def _flash_backward(args: Sequence[Any], out: Any, threads: int) -> int:
    """Scores of a tile and their gradients; and the cotangent made contiguous."""
    grad, q, k = args[:3]
    rows, keys, head = _queries(q.shape[2]), min(KEYS, k.shape[2]), q.shape[3]
    wide = max(4, q.element_size())
    copied = 0 if grad.transpose(1, 2).is_contiguous() else grad.numel() * grad.element_size()
    return threads * (2 * wide * rows * keys + _narrow(q, rows, keys, head, 2)) + wide * rows + copied


def _narrow(q: Tensor, rows: int, keys: int, head: int, tiles: int) -> int:
    """Tiles in a narrow dtype, and what its products take (oneDNN reorders its operands)."""
    if q.dtype not in REDUCED:
        return 0
    return 2 * (tiles * rows * keys + rows * keys + rows * head + keys * head)


def _product(args: Sequence[Any], out: Any, threads: int) -> int:
    """Narrow products reorder both operands and sum in float32; others take nothing."""
    pair = [x for x in args if isinstance(x, Tensor)][-2:]
    if pair[0].dtype not in REDUCED:
        return 0
    return sum(x.numel() * x.element_size() for x in pair) + 4 * out.numel()


def _logsumexp(args: Sequence[Any], out: Any, threads: int) -> int:
    """exp(x - max), and the maxima."""
    x = args[0]
    return x.numel() * x.element_size() + out.numel() * out.element_size()


def _norm_backward(args: Sequence[Any], out: Any, threads: int) -> int:
    """A sum of d_weight and one of d_bias a thread."""
    x = args[1]
    width = 1
    for n in args[2]:
        width *= n
    return 2 * threads * width * x.element_size()


INSIDE: Mapping[str, Callable[[Sequence[Any], Any, int], int]] = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": _flash,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _flash_backward,
    "aten::logsumexp": _logsumexp,
    "aten::native_layer_norm_backward": _norm_backward,
    **dict.fromkeys(("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"), _product),
}
