"""Convolutions of which each query may read so far: the op against a loop, and both derivatives."""

import pytest
import torch
from torch import Tensor

from tests.models import f32, i64
from weft.codegen.runtime import convolutions
from weft.ir.builder import Builder
from weft.ir.library import Convolve
from weft.ir.reference import run
from weft.ir.types import Graph
from weft.passes.derivative import joint

SIZES = {"batch": 2, "seq": 7, "key": 7, "tap": 3, "width": 4, "inner": 5}
DENSE = Convolve("key", "seq", "tap", ("batch", "seq", "inner"), 2, placed=True)
EACH = Convolve("key", "seq", "tap", ("batch", "seq", "width"), placed=True)


def graph(op: Convolve) -> Graph:
    g = Builder()
    dims = "tap width inner" if "inner" in op.to else "tap width"
    given = g.input("x", f32("batch key width")), g.input("w", f32(dims)), g.input("at", i64("batch seq"))
    return g.graph(g.one(op, *given))


def values(op: Convolve) -> list[Tensor]:
    draw = torch.Generator().manual_seed(3)
    shapes = (2, 7, 4), (3, 4, 5) if "inner" in op.to else (3, 4), (2, 7, 5 if "inner" in op.to else 4)
    x, w, dy = (torch.randn(s, generator=draw, dtype=torch.float64) for s in shapes)
    return [x, w, torch.tensor([[0, 1, 2, 0, 1, 2, 3], [-1, -1, 0, 1, 2, 3, 4]]), dy]


def plainly(x: Tensor, w: Tensor, at: Tensor, dilation: int) -> Tensor:
    """Position by position: what lies before a place is another's."""
    rows = []
    for t in range(x.shape[1]):
        y = 0.0
        for j in range(len(w)):
            d = dilation * (len(w) - 1 - j)
            part = x[:, max(t - d, 0)] * (at[:, t] >= d)[:, None]
            y = y + (part @ w[j] if w.dim() == 3 else part * w[j])
        rows.append(y)
    return torch.stack(rows, 1)


@pytest.mark.parametrize("op", [DENSE, EACH])
def test_a_query_reads_as_far_as_it_may(op: Convolve):
    """The op, its torch form and both derivatives, in documents that begin at places 0 and behind padding."""
    x, w, at, dy = values(op)
    leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
    want = plainly(*leaves, at, op.dilation)
    truth = torch.autograd.grad((want * dy).sum(), leaves)
    (got,) = run(graph(op), SIZES, [x, w, at], torch, torch.float64)
    torch.testing.assert_close(got, want.detach())
    torch.testing.assert_close(convolutions.convolve(x, w, 7, op.dilation, at=at), want.detach())
    _, *grads = run(joint(graph(op)), SIZES, [x, w, at, dy], torch, torch.float64)
    turned = w.mT if w.dim() == 3 else w
    back = convolutions.convolve(dy, turned, dilation=op.dilation, later=True, at=at)
    own = convolutions.convolve_weights(x, dy, 3, op.dilation, w.dim() == 3, at)
    for found in (grads, (back, own)):
        for a, b in zip(found, truth, strict=True):
            torch.testing.assert_close(a, b)
