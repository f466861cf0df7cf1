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
    """A layout for each set of query heads, as (range of heads, layout). A head in none sees nothing."""

    parts: tuple[tuple[range, Layout], ...]

    def run(self, into: Output, x: Operands) -> None:
        for heads, layout in self.parts:
            layout.run(into.of_heads(_slice(heads)), _of_heads(x, heads))

    def run_backward(self, into: Gradients, x: Saved) -> None:
        for heads, layout in self.parts:
            of, keys, own = _of_heads(x.of, heads), _key_heads(heads, x.of), _slice(heads)
            dq, dk, dv = into[0].of_heads(own), _shared(into[1], of.k, keys), _shared(into[2], of.v, keys)
            do, out, lse = (y[:, own] for y in (x.do, x.out, x.lse))
            layout.run_backward((dq, dk, dv), Saved(do, of, out, lse))
            if isinstance(keys, Tensor):
                for whole, gathered in ((into[1], dk), (into[2], dv)):
                    whole.buffer().index_add_(1, keys, gathered.result().to(whole.buffer().dtype))


def _slice(heads: range) -> slice:
    return slice(heads.start, heads.stop, heads.step)


def _of_heads(x: Operands, heads: range) -> Operands:
    keys, head = _key_heads(heads, x), x.head + x.every * heads.start
    q, k, v = x.q[:, _slice(heads)], _take(x.k, keys), _take(x.v, keys)
    return replace(x, q=q, k=k, v=v, head=head, every=x.every * heads.step)


def _key_heads(heads: range, x: Operands) -> slice | Tensor:
    """The key heads of these query heads: a slice if each has as many of them, else one index a query head."""
    group = x.q.shape[1] // x.k.shape[1]
    first, step, whole = heads.start // group, heads.step // group, heads.start % group == heads.stop % group == 0
    if heads.step % group == 0:
        return slice(first, first + step * len(heads), step)
    if heads.step == 1 and whole:
        return slice(first, heads.stop // group)
    return torch.arange(heads.start, heads.stop, heads.step, device=x.k.device) // group


def _take(x: Tensor, heads: slice | Tensor) -> Tensor:
    return x[:, heads] if isinstance(heads, slice) else x.index_select(1, heads)


def _shared(whole: Gradient, operand: Tensor, heads: slice | Tensor) -> Gradient:
    return whole.of_heads(heads) if isinstance(heads, slice) else Gradient(operand)
