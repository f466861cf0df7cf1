"""Operators on torch's meta device, each worked out once: what torch's own meta functions say of shapes takes longer
than any other part of measuring a block, and a block asks the same of them hundreds of times. Imports torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from weft.codegen.measure.launched import Cost, cost
from weft.codegen.measure.workspace import workspace

Place = tuple[torch.Size, tuple[int, ...], torch.dtype, int]
"""Shape, strides, dtype and offset of a tensor in its storage."""


@dataclass(frozen=True, slots=True)
class MetaTensor:
    """One tensor that an operator makes. shown: the operand, by number, whose storage it has; -1 for one of its own."""

    place: Place
    shown: int

    def of(self, operands: Sequence[Any]) -> Tensor:
        shape, strides, dtype, offset = self.place
        if self.shown < 0:
            return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
        return operands[self.shown].as_strided(shape, strides, offset)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a call. result: None, where it is called as it is. inside: bytes alive inside of it alone."""

    result: MetaTensor | None
    cost: Cost
    inside: int


@dataclass
class Meta:
    """Calls operators on meta tensors, and says what each launches and moves. One that makes one tensor, and changes
    none, is asked once for each kind of operands; any other is called as it is.

    threads: what CPU operators allocate inside themselves on so many is told too; 0: it is not."""

    threads: int = 0
    known: dict[object, Known] = field(default_factory=dict[object, Known])

    def __call__(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Cost]:
        out, known = self.called(func, args, kwargs)
        return out, known.cost

    def called(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Known]:
        """What an operator gives, and what is known of the call."""
        operands, kinds = list[Any](), [func]
        _spread(args, operands, kinds)
        if kwargs:
            kinds += kwargs
            _spread(kwargs.values(), operands, kinds)
        key = tuple(kinds)
        known = self.known.get(key)
        if known is not None:
            return (func(*args, **kwargs) if known.result is None else known.result.of(operands)), known
        out = func(*args, **kwargs)
        inside = workspace(str(func.name()).split(".")[0], args, out, self.threads) if self.threads else 0
        result = None if func._schema.is_mutable else _result(out, operands)
        known = self.known[key] = Known(result, cost(func, operands, out), inside)
        return out, known


def _spread(args: Iterable[Any], operands: list[Any], kinds: list[Any]) -> None:
    """Add an operator's arguments, its lists spread out, and what its result can depend on of each: of a tensor its
    place, of a list its length, of a number also its type, as 1, 1.0 and True are equal."""
    for x in args:
        if isinstance(x, Tensor):
            operands.append(x)
            kinds.append((x.shape, x.stride(), x.dtype, x.storage_offset()))
        elif isinstance(x, list | tuple):
            kinds.append(len(x))
            _spread(x, operands, kinds)
        else:
            operands.append(x)
            kinds += (type(x), x)


def _place(x: Tensor) -> Place:
    return x.shape, x.stride(), x.dtype, int(x.storage_offset())


def _result(out: Any, operands: Sequence[Any]) -> MetaTensor | None:
    """None where the result is more than one meta tensor, is an operand, or is not known by its place alone."""
    if not isinstance(out, Tensor) or out.device.type != "meta" or any(out is x for x in operands):
        return None
    owners = [i for i, x in enumerate(operands) if isinstance(x, Tensor) and same_storage(x, out)]
    if owners and operands[owners[0]].dtype != out.dtype:
        return None
    whole = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device="meta")
    if not owners and whole.untyped_storage().nbytes() != out.untyped_storage().nbytes():
        return None
    return MetaTensor(_place(out), owners[0] if owners else -1)


def same_storage(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage()._cdata == b.untyped_storage()._cdata
