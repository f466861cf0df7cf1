"""bf16 in Triton's interpreter, made exact.

There a bf16 array is its bit pattern as uint16, and arithmetic works on the patterns: dot, add, max, sum and < are
silently wrong, and a cast from fp32 truncates. With this shim operands are decoded to fp32, the operation runs as it
would there, and the result is rounded to nearest even. `install` patches the interpreter for good; nothing but bf16
changes.
"""

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, ScanOps, TensorHandle

BF16 = tl.bfloat16


def decode(h: TensorHandle) -> TensorHandle:
    """A bf16 handle as an fp32 one; any other as it is."""
    if h.dtype.scalar != BF16:
        return h
    return TensorHandle((h.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def encode(x: Any) -> TensorHandle:
    """An array as bf16, rounded to nearest even, NaN kept. fp64 rounds to odd in fp32 first, so it rounds once."""
    bits = _to_odd(x).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return TensorHandle(np.where(np.isnan(x), np.uint16(0x7FC0), rounded), BF16)


def _to_odd(x: Any) -> Any:
    single = np.ascontiguousarray(x, np.float32)
    if x.dtype != np.float64:
        return single
    single = np.where(np.abs(single) > np.abs(x), np.nextafter(single, np.float32(0)), single)  # towards zero
    sticky = (single != x) & np.isfinite(single)
    return (single.view(np.uint32) | sticky).view(np.float32)


def _has_bf16(x: Any) -> bool:
    return isinstance(x, TensorHandle) and x.dtype.scalar == BF16


def _wrap(name: str) -> None:
    """An operation of the builder: on bf16 operands in fp32, its result bf16 again, or bool."""
    plain = getattr(InterpreterBuilder, name)

    def exact(self: Any, *args: Any) -> TensorHandle:
        if not any(map(_has_bf16, args)):
            return plain(self, *args)
        out = plain(self, *(decode(x) if isinstance(x, TensorHandle) else x for x in args))
        return TensorHandle(out.data, tl.int1) if out.data.dtype == np.bool_ else encode(out.data)

    setattr(InterpreterBuilder, name, exact)


def _wrap_reduction(owner: type, name: str) -> None:
    """A reduction or scan over bf16: in fp32, its result rounded once."""
    plain = getattr(owner, name)

    def rounded(t: Any) -> Any:
        if t.dtype != tl.float32:  # the index of an argmax
            return t
        return tl.core.tensor(encode(t.handle.data), tl.block_type(BF16, t.shape) if t.shape else BF16)

    def exact(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        first = x[0] if isinstance(x, tuple) else x
        if first.dtype != BF16:
            return plain(self, x, *args, **kwargs)
        wide = tl.core.tensor(decode(first.handle), tl.block_type(tl.float32, first.shape))
        out = plain(self, wide, *args, **kwargs)
        return tuple(map(rounded, out)) if isinstance(out, tuple) else rounded(out)

    setattr(owner, name, exact)


def install() -> None:
    """Patch Triton's interpreter. Doing it again changes nothing."""
    if getattr(InterpreterBuilder, "exact_bf16", False):
        return
    InterpreterBuilder.exact_bf16 = True
    for name in ("binary_op", "unary_op", "create_fma", "create_clampf", "create_fabs"):
        _wrap(name)
    _wrap_reduction(ReduceOps, "sum")
    _wrap_reduction(ReduceOps, "min_max")
    _wrap_reduction(ScanOps, "cumsum")
    _wrap_reduction(ScanOps, "cumprod")
    plain_dot, plain_cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def dot(self: Any, a: Any, b: Any, d: Any, *args: Any) -> TensorHandle:
        out = plain_dot(self, decode(a), decode(b), decode(d), *args)
        return encode(out.data) if _has_bf16(d) else out

    def cast(self: Any, src: Any, to: Any) -> TensorHandle:
        if to.scalar != BF16:
            return plain_cast(self, decode(src), to)
        return src if _has_bf16(src) else encode(src.data if src.data.dtype == np.float64 else src.data.astype("f4"))

    def fp_to_fp(self: Any, src: Any, to: Any, rounding: Any, plain: Any = InterpreterBuilder.create_fp_to_fp) -> Any:
        nearest = rounding in (None, interpreter._ir.ROUNDING_MODE.RTNE)
        return (
            cast(self, src, to) if nearest and BF16 in (src.dtype.scalar, to.scalar) else plain(self, src, to, rounding)
        )

    InterpreterBuilder.create_dot = dot
    InterpreterBuilder.cast_impl = cast
    InterpreterBuilder.create_fp_to_fp = fp_to_fp
    InterpreterBuilder.get_bf16 = lambda self, value: encode(np.array([value], np.float32))  # 3.6 has none
