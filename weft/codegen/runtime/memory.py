"""What a call of the model leaves to the next one: rows of earlier segments."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

Row = tuple[str, tuple[int, ...], str, tuple[int, ...], int, torch.dtype | None]


def remembered(memory: Any, table: Iterable[Row], batch: int, like: Tensor, through: int = 0) -> list[Tensor]:
    """The rows [.., batch, rows, ..] of each state; none where there is no memory.

    table: of each state its name, its sizes before those of batch and rows, what its rows are called, its sizes behind,
    the most rows and its dtype (None: that of `like`, a parameter). States whose rows are called the same have as many.
    through: how many borders a gradient goes through before it is stopped at one; the memory counts them. Raises
    TypeError or ValueError that names the state and the dim."""
    table = list(table)
    if memory is None:
        return [like.new_empty(*a, batch, 0, *b, dtype=dtype) for _, a, _, b, _, dtype in table]
    if isinstance(memory, Tensor) or len(memory) - hasattr(memory, "borders") != len(table):
        raise TypeError(f"memory is what the call before returned: {', '.join(name for name, *_ in table)}")
    many: dict[str, int] = {}
    for x, (name, before, rows, behind, most, dtype) in zip(memory, table):
        if not isinstance(x, Tensor) or not x.dtype.is_floating_point:
            found = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"memory.{name} must be {dtype or like.dtype}, got {found}")
        at = len(before)
        if x.dim() != at + 2 + len(behind) or (x.shape[:at], x.shape[at + 2 :]) != (before, behind):
            shape = ", ".join([*map(str, before), "batch", "rows", *map(str, behind)])
            raise ValueError(f"memory.{name} must be [{shape}], got shape {list(x.shape)}")
        if x.shape[at] != batch:
            raise ValueError(f"memory.{name}: dim batch is {x.shape[at]}, but {batch} in another input")
        if x.shape[at + 1] > most or x.shape[at + 1] != many.setdefault(rows, x.shape[at + 1]):
            raise ValueError(f"memory.{name} has {x.shape[at + 1]} rows; all states have as many, at most {most}")
    stop = _borders(memory) >= through
    return [(x.detach() if stop else x).to(row[-1] or like.dtype) for x, row in zip(memory, table)]


def passed(memory: Any, through: int) -> int:
    """How many borders a gradient will have gone through at the next one, the one before this call included."""
    return 0 if memory is None or _borders(memory) >= through else _borders(memory) + 1


def _borders(memory: Any) -> int:
    return getattr(memory, "borders", 0)
