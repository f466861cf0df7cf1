"""What a call of the model leaves to the next one: rows of earlier segments, constants to the segment at hand."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

Row = tuple[str, int, int, int, torch.dtype | None]


def remembered(memory: Any, table: Iterable[Row], batch: int, like: Tensor) -> list[Tensor]:
    """The rows [layers, batch, rows, width] of each state; empty ones where there is no memory.

    table: of each state its name, layers, width, the most rows and its dtype (None: that of `like`, a parameter). All
    have the same number of rows. Raises TypeError or ValueError that names the state and the dim."""
    table = list(table)
    if memory is None:
        return [like.new_empty(layers, batch, 0, width, dtype=dtype) for _, layers, width, _, dtype in table]
    if isinstance(memory, Tensor) or len(memory) != len(table):
        raise TypeError(f"memory is what the call before returned: {', '.join(name for name, *_ in table)}")
    for x, (name, layers, width, most, dtype) in zip(memory, table):
        if not isinstance(x, Tensor) or not x.dtype.is_floating_point:
            found = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"memory.{name} must be {dtype or like.dtype}, got {found}")
        if x.dim() != 4 or (x.shape[0], x.shape[3]) != (layers, width):
            raise ValueError(f"memory.{name} must be [{layers}, batch, rows, {width}], got shape {list(x.shape)}")
        if x.shape[1] != batch:
            raise ValueError(f"memory.{name}: dim batch is {x.shape[1]}, but {batch} in another input")
        if x.shape[2] > most or x.shape[2] != memory[0].shape[2]:
            raise ValueError(f"memory.{name} has {x.shape[2]} rows; all states have as many, at most {most}")
    return [x.detach().to(dtype or like.dtype) for x, (*_, dtype) in zip(memory, table)]
