"""Checks while interpreting: what a GPU would only show by chance.

    with checked(shuffle=seed): interp(kernel)[grid](...)

Raises, as the cause of the interpreter's error:
 * every load, store and atomic at an address that is no element of a tensor argument (gaps of a strided view included);
 * one address stored by two programs; stored by one and read by another; updated atomically by one and read or stored
   plainly by another; two lanes of one store that write different values to one address;
 * int32 arithmetic that overflows, and a failing tl.device_assert. Arithmetic that is meant to wrap, as in Philox, says
   so: tl.add(a, b, sanitize_overflow=False), and the same for sub and mul.
Programs run in a shuffled order, so that a result which needs an order is wrong.
"""

import contextlib
import random
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, InterpreterOptions

EXACT = 1 << 22  # elements of a tensor up to which each is known; a larger one is one interval


class MemoryFault(Exception):
    """A kernel touched memory that is not its own, or that another program touches too."""


class Memory:
    """The elements of a launch's tensors, and who touched which."""

    def __init__(self, tensors: list[torch.Tensor]):
        exact = [t for t in tensors if 0 < t.numel() <= EXACT]
        starts = [_addresses(t) for t in exact]
        sizes = [np.full(len(s), t.element_size()) for s, t in zip(starts, exact)]
        self.starts, index = np.unique(np.concatenate([*starts, np.zeros(1, np.uint64)]), return_index=True)
        self.sizes = np.concatenate([*sizes, np.zeros(1, np.int64)])[index]
        self.spans = [_span(t) for t in tensors if t.numel() > EXACT]
        self.touched: dict[str, list[tuple[Any, int]]] = {"load": [], "store": [], "atomic": []}

    def touch(self, kind: str, pointers: Any, mask: Any, values: Any = None) -> None:
        """Check and note the addresses of one operation of the program that runs."""
        mask = np.broadcast_to(mask, pointers.data.shape)
        at = pointers.data[mask]
        if at.size == 0:
            return
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        k = np.searchsorted(self.starts, at, side="right") - 1
        bad = (self.starts[k] != at) | (self.sizes[k] < size)
        for low, high in self.spans:
            bad &= (at < low) | (at + np.uint64(size) > high)
        (x, y, z), (nx, ny, _) = interpreter.interpreter_builder.grid_idx, interpreter.interpreter_builder.grid_dim
        if bad.any():
            raise MemoryFault(f"{kind} out of bounds: {bad.sum()} of {at.size} lanes, program {x, y, z}")
        once, first, lane = np.unique(at, return_index=True, return_inverse=True)
        if kind == "store" and once.size != at.size:
            written = np.broadcast_to(values, mask.shape)[mask].view(f"u{values.dtype.itemsize}")
            if (written != written[first][lane]).any():
                raise MemoryFault(f"two lanes of a store write different values to one address, program {x, y, z}")
        self.touched[kind].append((once, x + nx * (y + ny * z)))

    def check_races(self) -> None:
        """Does an address depend on the order of programs?"""
        (loads, stores, atomics), n = map(self._who, ("load", "store", "atomic")), 0
        if stores[0].size:
            n = stores[0].size - np.unique(stores[0]).size
        if n:
            raise MemoryFault(f"race: {n} addresses stored by more than one program")
        for (one, how), (other, what) in (
            ((loads, "read"), (stores, "stored")),
            ((loads, "read"), (atomics, "updated")),
            ((stores, "stored"), (atomics, "updated")),
        ):
            n = _conflicts(one, other)
            if n:
                raise MemoryFault(f"race: {n} addresses {how} by one program and {what} by another")

    def _who(self, kind: str) -> tuple[Any, Any]:
        """(addresses, programs), each pair once, sorted by address."""
        notes = self.touched[kind]
        if not notes:
            return np.zeros(0, np.uint64), np.zeros(0, np.uint64)
        at = np.concatenate([a for a, _ in notes])
        program = np.concatenate([np.full(a.size, p, np.uint64) for a, p in notes])
        order = np.lexsort((program, at))
        at, program = at[order], program[order]
        new = np.ones(at.size, bool)
        new[1:] = (at[1:] != at[:-1]) | (program[1:] != program[:-1])
        return at[new], program[new]


def _conflicts(one: tuple[Any, Any], other: tuple[Any, Any]) -> int:
    """Addresses that a program of `one` and a different one of `other` touch."""
    if not one[0].size or not other[0].size:
        return 0
    first, last = np.searchsorted(other[0], one[0]), np.searchsorted(other[0], one[0], side="right") - 1
    shared = first <= last
    at = np.minimum(np.stack([first, last]), other[0].size - 1)
    return int((shared & (other[1][at] != one[1]).any(0)).sum())


def _addresses(t: torch.Tensor) -> Any:
    """The byte address of every element, uint64."""
    at = np.full((), t.data_ptr(), np.int64)
    for n, stride in zip(t.shape, t.stride()):
        at = at[..., None] + np.arange(n, dtype=np.int64) * (stride * t.element_size())
    return at.reshape(-1).astype(np.uint64)


def _span(t: torch.Tensor) -> tuple[Any, Any]:
    last = sum((n - 1) * s for n, s in zip(t.shape, t.stride())) + 1
    return np.uint64(t.data_ptr()), np.uint64(t.data_ptr() + last * t.element_size())


def _tensors(x: Any) -> list[torch.Tensor]:
    """The tensors in a launch's arguments."""
    if isinstance(x, tuple | list):
        return [t for y in x for t in _tensors(y)]
    base = getattr(x, "base", None)  # of a tensor descriptor
    if isinstance(base, torch.Tensor) and not isinstance(x, torch.Tensor):
        return [base]
    return [x] if isinstance(x, torch.Tensor) else []


class _Checks:
    """The patched methods of the interpreter."""

    def __init__(self, shuffle: int | None):
        self.memory: Memory | None = None
        self.random, self.order = None if shuffle is None else random.Random(shuffle), []

    def touching(self, kind: str, name: str) -> Any:
        plain = getattr(InterpreterBuilder, name)

        def method(builder: Any, *args: Any) -> Any:
            if self.memory is not None:
                self.memory.touch(kind, *_operands(name, *args))
            return plain(builder, *args)

        return patch.object(InterpreterBuilder, name, method)

    def launching(self) -> Any:
        plain = GridExecutor.__call__

        def call(executor: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                out = plain(executor, *args, **kwargs)
                if self.memory is not None:
                    self.memory.check_races()
                return out
            finally:
                self.memory = None

        return patch.object(GridExecutor, "__call__", call)

    def arguments(self) -> Any:
        plain = GridExecutor._init_args_hst

        def arguments(executor: Any, args: Any, kwargs: Any) -> Any:
            out = plain(executor, args, kwargs)
            self.memory = Memory(_tensors(list(out[0])) + _tensors(list(out[1].values())))
            return out

        return patch.object(GridExecutor, "_init_args_hst", arguments)

    def placing(self) -> Any:
        """Programs in a random order: the interpreter's n-th program is the order's n-th."""
        plain_dim, plain_idx = InterpreterBuilder.set_grid_dim, InterpreterBuilder.set_grid_idx

        def dim(builder: Any, nx: int, ny: int, nz: int) -> None:
            plain_dim(builder, nx, ny, nz)
            self.order = list(range(nx * ny * nz))
            if self.random is not None:
                self.random.shuffle(self.order)

        def idx(builder: Any, x: int, y: int, z: int) -> None:
            _, ny, nz = builder.grid_dim
            n = self.order[(x * ny + y) * nz + z]
            plain_idx(builder, n // (ny * nz), n // nz % ny, n % nz)

        return patch.multiple(InterpreterBuilder, set_grid_dim=dim, set_grid_idx=idx)


def _operands(name: str, *args: Any) -> tuple[Any, ...]:
    """(pointers, mask, stored values) of a call of one of the builder's methods."""
    if name == "create_masked_load":
        return args[0], args[1].data
    if name == "create_masked_store":
        return args[0], args[2].data, args[1].data
    return (args[1], args[3].data) if name == "create_atomic_rmw" else (args[0], True)


_EXACT = {"add": np.add, "sub": np.subtract, "mul": np.multiply}


def _check_overflow(semantic: Any, lhs: Any, rhs: Any, op: Any) -> None:
    """Triton's own check, with two operations of numpy instead of fourteen of the interpreter."""
    bits = lhs.type.scalar.int_bitwidth
    if bits < 64:
        exact = _EXACT[op.__name__](lhs.handle.data.astype(np.int64), rhs.handle.data.astype(np.int64))
        low, high = lhs.type.scalar.get_int_min_value(), lhs.type.scalar.get_int_max_value()
        if exact.size and not low <= exact.min() <= exact.max() <= high:
            raise MemoryFault(f"int{bits} overflow in {op.__name__}")


@contextlib.contextmanager
def checked(shuffle: int | None = 0) -> Iterator[None]:
    """Interpreted launches in this block are checked; their programs run in the order of seed `shuffle`.

    None: in the interpreter's own order, x, y, z.
    """
    checks = _Checks(shuffle)
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(interpreter.interpreter_builder, "options", InterpreterOptions(debug=True)))
        stack.enter_context(patch.object(TritonSemantic, "binary_op_sanitize_overflow_impl", _check_overflow))
        for kind, name in (
            ("load", "create_masked_load"),
            ("store", "create_masked_store"),
            ("atomic", "create_atomic_rmw"),
            ("atomic", "create_atomic_cas"),
        ):
            stack.enter_context(checks.touching(kind, name))
        for other in (checks.launching(), checks.arguments(), checks.placing()):
            stack.enter_context(other)
        yield


def strided(rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype, fill: Any = float("nan")) -> torch.Tensor:
    """A tensor in a random order of dims, rows padded or not, inside memory of NaN; `fill`: a value, or values.

    The last dim stays contiguous. What a kernel reads beside it is NaN, what it writes beside it is an error.
    """
    order, pad = rng.sample(range(len(shape) - 1), len(shape) - 1), rng.choice((0, 8))
    stride, n = [1] * len(shape), shape[-1] + pad
    for d in order:
        stride[d], n = n, n * max(1, shape[d])
    out = torch.full((n + 128,), float("nan") if dtype.is_floating_point else -1, dtype=dtype).as_strided(
        shape, stride, 64
    )
    return out.copy_(fill) if isinstance(fill, torch.Tensor) else out.fill_(fill)
