"""Layouts made of layouts: a union of disjoint (or repeated) parts, and a choice for each head."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .attention_layouts import Layout
from .attention_pieces import Gradient


@dataclass(frozen=True)
class Merge(Layout):
    """The union of its parts, merged by log-sum-exp. A pair that several parts see counts that many times.

    With lse_i the log-sum-exp of part i: lse = log sum_i exp(lse_i), out = sum_i exp(lse_i - lse) out_i. The backward
    gives each part the merged out and lse; its gradients are then exactly its terms of the whole sum.
    """

    parts: tuple[Layout, ...]

    def run(self, into, q, k, v, scale, *metadata):
        for part in self.parts:
            part.run(into, q, k, v, scale, *metadata)

    def run_backward(self, into, do, q, k, v, out, lse, scale, *metadata):
        for part in self.parts:
            part.run_backward(into, do, q, k, v, out, lse, scale, *metadata)


@dataclass(frozen=True)
class PerHead(Layout):
    """A layout for each range of query heads, as (first head, end head, layout). A head in no range sees nothing."""

    parts: tuple[tuple[int, int, Layout], ...]

    def run(self, into, q, k, v, scale, *metadata):
        for first, end, layout in self.parts:
            heads = _key_heads(first, end, q, k)
            part = into.of_heads(first, end)
            layout.run(part, q[:, first:end], _take(k, heads), _take(v, heads), scale, *metadata)

    def run_backward(self, into, do, q, k, v, out, lse, scale, *metadata):
        for first, end, layout in self.parts:
            heads = _key_heads(first, end, q, k)
            keys, values = _take(k, heads), _take(v, heads)
            part = (into[0].of_heads(first, end), _shared(into[1], keys, heads), _shared(into[2], values, heads))
            do_, q_, out_, lse_ = (x[:, first:end] for x in (do, q, out, lse))
            layout.run_backward(part, do_, q_, keys, values, out_, lse_, scale, *metadata)
            if isinstance(heads, Tensor):
                for whole, gathered in zip(into[1:], part[1:]):
                    whole.buffer().index_add_(1, heads, gathered.result().to(whole.buffer().dtype))


def _key_heads(first: int, end: int, q: Tensor, k: Tensor) -> slice | Tensor:
    """The key heads of query heads first..end-1: a slice if these are whole groups, else one index a query head."""
    group = q.shape[1] // k.shape[1]
    if first % group or end % group:
        return torch.arange(first, end, device=k.device) // group
    return slice(first // group, end // group)


def _take(x: Tensor, heads: slice | Tensor) -> Tensor:
    return x[:, heads] if isinstance(heads, slice) else x.index_select(1, heads)


def _shared(whole: Gradient, operand: Tensor, heads: slice | Tensor) -> Gradient:
    return whole.of_heads(heads.start, heads.stop) if isinstance(heads, slice) else Gradient(operand)
