"""Layouts made of layouts: a union of disjoint (or repeated) parts, and a choice for each head."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .attention_layouts import Layout
from .attention_pieces import Gradient, Gradients, Operands, Output, Saved


@dataclass(frozen=True)
class Merge(Layout):
    """The union of its parts, merged by log-sum-exp. A pair that several parts see counts that many times.

    With lse_i the log-sum-exp of part i: lse = log sum_i exp(lse_i), out = sum_i exp(lse_i - lse) out_i. The backward
    gives each part the merged out and lse; its gradients are then exactly its terms of the whole sum.
    """

    parts: tuple[Layout, ...]

    def run(self, into: Output, x: Operands) -> None:
        for part in self.parts:
            part.run(into, x)

    def run_backward(self, into: Gradients, x: Saved) -> None:
        for part in self.parts:
            part.run_backward(into, x)


@dataclass(frozen=True)
class PerHead(Layout):
    """A layout for each range of query heads, as (first head, end head, layout). A head in no range sees nothing."""

    parts: tuple[tuple[int, int, Layout], ...]

    def run(self, into: Output, x: Operands) -> None:
        for first, end, layout in self.parts:
            layout.run(into.of_heads(first, end), _of_heads(x, first, end))

    def run_backward(self, into: Gradients, x: Saved) -> None:
        for first, end, layout in self.parts:
            of, heads = _of_heads(x.of, first, end), _key_heads(first, end, x.of)
            dq, dk, dv = into[0].of_heads(first, end), _shared(into[1], of.k, heads), _shared(into[2], of.v, heads)
            do, out, lse = (y[:, first:end] for y in (x.do, x.out, x.lse))
            layout.run_backward((dq, dk, dv), Saved(do, of, out, lse))
            if isinstance(heads, Tensor):
                for whole, gathered in ((into[1], dk), (into[2], dv)):
                    whole.buffer().index_add_(1, heads, gathered.result().to(whole.buffer().dtype))


def _of_heads(x: Operands, first: int, end: int) -> Operands:
    heads = _key_heads(first, end, x)
    return replace(x, q=x.q[:, first:end], k=_take(x.k, heads), v=_take(x.v, heads), head=x.head + first)


def _key_heads(first: int, end: int, x: Operands) -> slice | Tensor:
    """The key heads of query heads first..end-1: a slice if these are whole groups, else one index a query head."""
    group = x.q.shape[1] // x.k.shape[1]
    if first % group or end % group:
        return torch.arange(first, end, device=x.k.device) // group
    return slice(first // group, end // group)


def _take(x: Tensor, heads: slice | Tensor) -> Tensor:
    return x[:, heads] if isinstance(heads, slice) else x.index_select(1, heads)


def _shared(whole: Gradient, operand: Tensor, heads: slice | Tensor) -> Gradient:
    return whole.of_heads(heads.start, heads.stop) if isinstance(heads, slice) else Gradient(operand)
