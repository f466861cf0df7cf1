"""What an operator of torch launches, and the bytes that it moves: seen by a dispatch mode, on tensors of any device.

An operator launches one kernel, unless nothing is computed: a view, an empty tensor. It reads every element of its
operands once, of a table that it gathers from as much as it gives; it writes its results, and of an operand that it
changes as much as the largest other operand has. Imports torch.
"""

import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import CodeType, FrameType
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from weft.codegen.torch.function import Function
from weft.passes.fusion.ran import Ran

_EMPTY = frozenset(("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_local_scalar_dense"))
_GATHERS = frozenset(("index", "index_select", "embedding", "gather", "take", "take_along_dim"))
_PLACED = frozenset(
    (
        "index_add_",
        "index_put_",
        "_index_put_impl_",
        "index_copy_",
        "scatter_",
        "scatter_add_",
        "index_add",
        "scatter_add",
    )
)
_SETS = frozenset(("copy_", "fill_", "zero_", "index_copy_", "scatter_", "normal_", "uniform_"))


@dataclass(frozen=True, slots=True)
class Cost:
    """Kernels launched, bytes read and written by them."""

    launches: int = 0
    bytes: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.launches + other.launches, self.bytes + other.bytes)


NOTHING = Cost()


class Ledger:
    """Adds costs up by the statements of a function while it runs. function: of the text that was `printed`."""

    def __init__(self, function: Callable[..., Any], printed: Function) -> None:
        self.code: CodeType = function.__code__
        self.lines = [line for line, _ in printed.statements]
        self.nodes = [nodes for _, nodes in printed.statements]
        self.costs = [NOTHING] * len(self.lines)

    def see(self, found: Cost) -> None:
        """Charge the statement that the function is at."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code is not self.code:
            frame = frame.f_back
        if frame is not None and self.costs:
            line = frame.f_lineno - self.code.co_firstlineno
            at = max(0, bisect_right(self.lines, line) - 1)
            self.costs[at] = self.costs[at] + found

    def ran(self) -> tuple[Ran, ...]:
        """Every statement with what it cost."""
        return tuple(Ran(n, c.launches, c.bytes) for n, c in zip(self.nodes, self.costs, strict=True))


class Launches(TorchDispatchMode):
    """Tells `see` the cost of every operator that runs while it is on. call: runs one and says what it costs."""

    def __init__(self, see: Callable[[Cost], object], call: Callable[..., tuple[Any, Cost]] | None = None) -> None:
        super().__init__()
        self.see, self.call = see, call or called

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, found = self.call(func, args, kwargs or {})
        if found.launches:
            self.see(found)
        return out


def called(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Cost]:
    """What an operator gives, and costs."""
    out = func(*args, **kwargs)
    return out, cost(func, (*args, *kwargs.values()), out)


def moved(values: Iterable[Any]) -> int:
    """Bytes of the tensors among values, each once."""
    return sum(map(size, _tensors(values)))


def cost(func: Any, operands: Iterable[Any], out: Any) -> Cost:
    """What a call of an operator launches and moves."""
    name = func._schema.name.partition("::")[2]
    if name in _EMPTY:
        return NOTHING
    ins, outs = _tensors(operands), _tensors((out,))
    storages = {_storage(x) for x in ins}
    made = [x for x in outs if _storage(x) not in storages]
    if func._schema.is_mutable:
        changed, *others = ins
        return Cost(1, _changed(name, changed, others) + sum(map(size, made)))
    if not made:
        return NOTHING
    written = sum(map(size, made))
    if name in _PLACED:
        return Cost(1, 2 * size(ins[0]) + _changed(name, ins[0], ins[1:]))
    if name in _GATHERS:
        return Cost(1, written + min(size(ins[0]), written) + sum(map(size, ins[1:])))
    return Cost(1, written + sum(map(size, ins)))


def _changed(name: str, changed: Tensor, others: list[Tensor]) -> int:
    """Bytes that changing a tensor in place moves."""
    most = size(changed)
    if name in _PLACED and others:
        most = min(most, max(x.numel() for x in others) * changed.itemsize)
    return sum(map(size, others)) + most * (1 if name in _SETS else 2)


def size(x: Tensor) -> int:
    """Bytes of a tensor's distinct elements."""
    return prod(n for n, step in zip(x.shape, x.stride()) if step or not n) * x.itemsize


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among values, each once."""
    found = [x for x in tree_leaves(list(values)) if isinstance(x, Tensor)]
    return list({(_storage(x), x.storage_offset(), x.shape, x.stride()): x for x in found}.values())


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata
