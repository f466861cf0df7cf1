"""What Triton's interpreter makes anew at every operation, made once: NumPy dtypes, block types, and the shape that
tensors of one have; and a broadcast to the shape that is there, left out. The results are the same."""

import math
from typing import Any

import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder

_Block, _made = tl.core.block_type, tl.core.block_type.__init__
_broadcast, _np_dtype, _same = InterpreterBuilder.create_broadcast, interpreter._get_np_dtype, tl.tuple.__eq__
_blocks: dict[tuple[Any, ...], Any] = {}
_dtypes: dict[str, Any] = {}
_scalar = tl.constexpr(1), tl.tuple([])


def install() -> None:
    """Patch Triton's interpreter. Doing it again changes nothing."""
    interpreter._get_np_dtype = _dtype
    InterpreterBuilder.create_broadcast = _widened
    tl.core.tensor.__init__ = _tensor  # type: ignore[method-assign]
    tl.tuple.__eq__ = _equal  # type: ignore[method-assign]
    _Block.__new__ = _block  # type: ignore[assignment]
    _Block.__init__ = lambda self, element_ty, shape: None  # type: ignore[method-assign]


def _dtype(dtype: Any) -> Any:
    """Two dtypes of one name are equal."""
    name = dtype.name
    if name not in _dtypes:
        _dtypes[name] = _np_dtype(dtype)
    return _dtypes[name]


def _block(cls: type, element_ty: Any, shape: Any) -> Any:
    sizes = tuple([s.value if isinstance(s, tl.constexpr) else s for s in shape])
    key = element_ty.name, sizes
    if key not in _blocks:
        _blocks[key] = new = object.__new__(cls)
        _made(new, element_ty, list(sizes))
        new.of_tensors = tl.constexpr(math.prod(sizes)), tl.tuple([tl.constexpr(s) for s in sizes])
    return _blocks[key]


def _tensor(self: Any, handle: Any, type: Any) -> None:
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.numel, self.shape = type.of_tensors if type.is_block() else _scalar


def _equal(self: Any, other: Any) -> Any:
    if isinstance(other, list):
        return tl.constexpr(self.values == other)
    return _same(self, other)


def _widened(self: Any, arg: Any, shape: Any) -> Any:
    return arg if arg.data.shape == tuple(shape) else _broadcast(self, arg, shape)
