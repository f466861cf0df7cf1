"""State spaces against their equations in complex numbers: as a loop, in chunks, and as one long convolution."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.campaign import count
from tests.passes.recurrences import recurrence
from tests.passes.state_spaces import drawn, mixed, program
from tests.passes.test_chunk import F64, apart, numbers
from weft.ir.graphs import dce
from weft.ir.ops.op import op_name
from weft.ir.ops.regions import Loop
from weft.ir.reference import run
from weft.ir.types import Graph
from weft.ir.verify import verify
from weft.passes.chunk import choose
from weft.passes.chunk.chunk import chunk
from weft.passes.decode.time import holding
from weft.passes.derivative import joint
from weft.passes.fusion.price import Prices
from weft.targets import TARGETS

ONE = {"kind": "state_space", "system": {"states": 3, "chunk": 4}}


def forms(body: Graph, sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> dict[str, Graph]:
    """The body with its state space in each form."""
    found = {"in chunks": chunk(body)}
    monkeypatch.setattr(choose, "seconds", lambda nodes, _: -sum(op_name(type(n.op)) == "long_convolve" for n in nodes))
    return found | {choose.AT_ONCE: chunk(body, Prices(sizes, TARGETS[0]))}


def loops(graph: Graph) -> int:
    return sum(isinstance(n.op, Loop) and bool(n.op.chunks) for n in graph.nodes)


@pytest.mark.parametrize("seed", range(count(sample=5, soak=150)))
def test_a_generated_state_space(seed: int, monkeypatch: pytest.MonkeyPatch):
    """Results and gradients of every form are those of the equations."""
    rng = random.Random(seed)
    block = drawn(rng)
    made = program(block)
    body, sizes = recurrence(made), made.resolve(seq=rng.choice([1, 5, 9, 9]))
    args = [0.7 * x for x in numbers(body, sizes, seed)]
    leaves = [x.clone().requires_grad_() for x in args]
    stem = next(p.name for p in made.params if p.name.endswith("poles_real")).removesuffix("poles_real")
    own = {v.name: v for v in body.inputs}
    by_name = {v.name: x for v, x in zip(body.inputs, leaves, strict=True)}
    named = {p.name.removeprefix(stem): p.name.removeprefix("layers.{}.").replace(".", "_") for p in made.params}
    given = {n: by_name[v] for n, v in named.items() if v in own}
    want = mixed(block, given, by_name["x"], made.resolve()["seq"])
    d = torch.randn(want.shape, generator=torch.Generator().manual_seed(seed), dtype=F64)
    gradients = torch.autograd.grad(want, leaves, d)

    got = {"step by step": body, **forms(body, sizes, monkeypatch)}
    for name, graph in got.items():
        both = verify(joint(graph), sizes)
        with torch.no_grad():
            y, *found = run(both, sizes, [*args, d], torch, F64)
        assert apart(y, want.detach()) < 1e-10, name
        for v, a, b in zip(body.inputs, found, gradients, strict=True):
            assert apart(a, b) < 1e-10, (name, v.name)
        assert name == "step by step" or graph.decisions[0].choice.startswith(name)
        assert loops(graph) == (name == "step by step")


def test_nothing_leaks_from_later_positions(monkeypatch: pytest.MonkeyPatch):
    made = program(ONE)
    body, sizes = recurrence(made), made.resolve()
    for graph in forms(body, sizes, monkeypatch).values():
        args = numbers(graph, sizes, 0)
        at = next(i for i, v in enumerate(graph.inputs) if "seq" in v.dims)
        (before,) = run(graph, sizes, args, torch, F64)
        args[at] = args[at].clone()
        args[at].select(1, 6).fill_(1e3)
        (later,) = run(graph, sizes, args, torch, F64)

        assert torch.equal(before.narrow(1, 0, 6), later.narrow(1, 0, 6))
        assert not torch.equal(before, later)


@pytest.mark.parametrize("seq", [1, 4, 7])
@pytest.mark.parametrize("padded", [False, True])
def test_the_last_state_goes_on(seq: int, padded: bool):
    """Chunks begin in a state, and end in that of the last position, or of the last one that a row has."""
    made = program(ONE)
    loop = next(n for n in recurrence(made).nodes if isinstance(n.op, Loop))
    op: Any = loop.op
    if padded:
        body = holding(op.body, 2, "batch")
        real = replace(body.inputs[-1], type=replace(body.inputs[-1].type, dims=("batch", "seq")))
        loop = replace(loop, op=replace(op, body=body, padded=True), ins=(*loop.ins, real))
    whole = dce(Graph(loop.ins, (loop,), loop.outs[:3]))
    sizes = made.resolve(seq=seq)
    args = numbers(whole, sizes, 1)
    if padded:
        args[-1] = torch.arange(seq) < torch.tensor([[seq], [max(0, seq - 3)]])
    after = chunk(whole)

    assert after.decisions[0].choice.startswith("in chunks")
    (re, im, y), (re_2, im_2, y_2) = (run(g, sizes, args, torch, F64) for g in (whole, after))
    there = args[-1] if padded else torch.ones(2, seq, dtype=torch.bool)
    assert apart(re_2, re) < 1e-14
    assert apart(im_2, im) < 1e-14
    assert apart(y_2.movedim(0, 1)[there], y.movedim(0, 1)[there]) < 1e-14
