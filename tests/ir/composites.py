"""Graphs of one composite, numbers for them, and their gradients against torch: shared by the tests of the library."""

import torch

from weft.ir.builder import Builder
from weft.ir.reference import run
from weft.ir.text import parse as read
from weft.ir.text import show
from weft.ir.types import Type
from weft.ir.verify import verify
from weft.passes.derivative import joint

S = {"b": 2, "t": 9, "s": 9, "h": 4, "g": 2, "kv": 2, "e": 4, "d": 6, "c": 2, "one": 1}


def made(op, *types: Type):
    g = Builder()
    return g.graph(*g.many(op, *(g.input(f"x{i}", t) for i, t in enumerate(types))))


def numbers(graph, seed=0, high=3):
    gen = torch.Generator().manual_seed(seed)
    out = []
    for v in graph.inputs:
        shape = [S[d] for d in v.dims]
        whole = torch.randint(0, high, shape, generator=gen)
        real = torch.randn(shape, generator=gen, dtype=torch.float64)
        out.append(real if v.type.floating else whole > 0 if v.dtype == "bool" else whole)
    return out


def evaluate(graph, args, dtype=torch.float64):
    verify(graph)
    assert read(show(graph)) == graph
    return run(graph, S, args, torch, dtype)


def gradients_match(graph, ref, args):
    """Results and gradients of the joint graph, of the interpreter under autograd, and of `ref`."""
    both = joint(graph)
    leaf = [a.clone().requires_grad_(a.is_floating_point()) for a in args]
    live = [a for a in leaf if a.requires_grad]
    want = ref(*leaf)
    want = want if isinstance(want, tuple) else (want,)
    gen = torch.Generator().manual_seed(3)
    seeds = [torch.randn(w.shape, generator=gen, dtype=w.dtype) for w in want]
    expected = (*want, *torch.autograd.grad(want, live, seeds, allow_unused=True, materialize_grads=True))
    got = evaluate(both, [*args, *seeds])
    for w, g in zip(expected, got, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-10)
    out = run(graph, S, leaf, torch, torch.float64)
    auto = torch.autograd.grad(out, live, seeds, allow_unused=True, materialize_grads=True)
    for w, g in zip(expected[len(want) :], auto, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-10)
