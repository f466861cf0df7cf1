"""Rows of a table by number, and the transpose: adding rows into a table. A row outside reads 0 and is dropped."""

import torch
import torch.nn.functional as F
from torch import Tensor


def take(table: Tensor, index: Tensor, inside: Tensor | None = None) -> Tensor:
    """table [N, D] at index [...] -> [..., D]; zeros where not `inside` (which broadcasts to index)."""
    if inside is None:
        return F.embedding(index, table)
    found = F.embedding(torch.where(inside, index, 0), table)
    return found.masked_fill_(~inside[..., None], 0)


def add(rows: Tensor, index: Tensor, size: int, inside: Tensor | None = None) -> Tensor:
    """rows [M, D] added into zeros [size, D] at index [M]; those not `inside` [M] are dropped."""
    if inside is None:
        return torch.ops.aten.embedding_dense_backward(rows, index, size, -1, False)
    index = torch.where(inside, index, size)
    return torch.ops.aten.embedding_dense_backward(rows, index, size + 1, size, False)[:size]
