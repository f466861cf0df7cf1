"""Operators on torch's meta device, each worked out once: what torch's own meta functions say of shapes takes longer
than any other part of measuring a block, and a block asks the same of them hundreds of times. Imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from weft.codegen.measure.launched import Cost, cost

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


@dataclass
class Meta:
    """Calls operators on meta tensors, and says what each launches and moves. One that makes one tensor, and changes
    none, is asked once for each kind of operands; any other is called as it is."""

    known: dict[object, tuple[MetaTensor | None, Cost]] = field(
        default_factory=dict[object, tuple[MetaTensor | None, Cost]]
    )

    def __call__(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Cost]:
        operands, lengths = _operands((*args, *kwargs.values()))
        key = func, lengths, tuple(kwargs), tuple(map(_kind, operands))
        known = self.known.get(key)
        if known is not None:
            result, found = known
            return func(*args, **kwargs) if result is None else result.of(operands), found
        out = func(*args, **kwargs)
        found = cost(func, operands, out)
        self.known[key] = None if func._schema.is_mutable else _result(out, operands), found
        return out, found


def _operands(args: Sequence[Any]) -> tuple[list[Any], tuple[int, ...]]:
    """An operator's arguments with its lists spread out, and the length of each list."""
    out, lengths = list[Any](), list[int]()
    for x in args:
        if isinstance(x, list | tuple):
            out += x
            lengths.append(len(x))
        else:
            out.append(x)
    return out, tuple(lengths)


def _kind(x: Any) -> object:
    """What an operator's result can depend on; of a number also its type, as 1, 1.0 and True are equal."""
    return _place(x) if isinstance(x, Tensor) else (type(x), x)


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
