"""Recurrences in chunks against the loop that they were: class, results, gradients, leaks; and what stays a loop. Every
fifth is of rows of several documents, with which states start anew."""

import random

import pytest
import torch

from tests.campaign import count
from tests.passes.recurrences import STATE, drawn, program, recurrence
from weft.ir.ops.regions import Loop
from weft.ir.reference import run
from weft.ir.types import Graph
from weft.ir.verify import verify
from weft.passes.chunk.chunk import chunk
from weft.passes.derivative import joint

F64 = torch.float64


def numbers(graph: Graph, sizes: dict[str, int], seed: int) -> list[torch.Tensor]:
    gen = torch.Generator().manual_seed(seed)
    shapes = [[sizes[d] for d in v.dims] for v in graph.inputs]
    drawn = [torch.randn(shape, generator=gen, dtype=F64) for shape in shapes]
    return [x if v.type.floating else (x > 0).long() for v, x in zip(graph.inputs, drawn)]


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / max(1e-3, float(b.norm())))


def same(before: Graph, after: Graph, sizes: dict[str, int], seed: int) -> None:
    """Results and gradients of both are equal, those of `after` by its joint graph. Raises AssertionError."""
    args = [x.requires_grad_(x.is_floating_point()) for x in numbers(before, sizes, seed)]
    (want,) = run(before, sizes, args, torch, F64)
    d = torch.randn(want.shape, generator=torch.Generator().manual_seed(seed), dtype=F64)
    floats = [x for x in args if x.requires_grad]
    gradients = torch.autograd.grad(want, floats, d, allow_unused=True, materialize_grads=True)
    both = verify(joint(after), sizes)
    wrt = [v.name for v in before.inputs if v.type.floating]
    with torch.no_grad():
        got, *found = run(both, sizes, [*(a.detach() for a in args), d], torch, F64)

    assert apart(got, want.detach()) < 1e-10
    for name, a, b in zip(wrt, found, gradients, strict=True):
        assert apart(a, b) < 1e-10, name


FIRST = 430
"""From here on a few seeds have every decay, delta rules of one and two sources, second states, and spoiled ones."""


@pytest.mark.parametrize("seed", range(FIRST, FIRST + count(sample=14, soak=320)))
def test_a_generated_recurrence(seed):
    rng = random.Random(seed)
    case = drawn(rng)
    made = program(case.block, chunk=rng.choice([1, 2, 3, 4, 4, 8]), documents=seed % 5 == 0)
    body = recurrence(made)
    after = chunk(body)
    (decision,) = after.decisions
    sizes = made.resolve(seq=rng.choice([1, 5, 8, 9, 9]))
    verify(after, sizes)

    if case.serial:
        assert decision.choice == "step by step"
        assert case.serial in decision.rejected[0][1]
        assert any(isinstance(n.op, Loop) and n.op.chunks for n in after.nodes)
        return
    assert decision.choice.startswith("in chunks")
    for words in case.says if seed % 5 else ():  # where a document starts, the state is forgotten too
        assert words in decision.choice
    assert not any(isinstance(n.op, Loop) and n.op.chunks for n in after.nodes)
    same(body, after, sizes, seed)


HARD = {"a*s + k*v": [0.0, 1e-9, 1 - 1e-7, -0.5, 1.5], "g*s + k*v": [0.0, 1e-9, 1 - 1e-7, -0.5, 1.5]}


@pytest.mark.parametrize("update", HARD)
def test_decays_of_any_size(update):
    """0, near 0 and 1, negative and above 1, in turn: no logarithm and no division."""
    block = {
        "kind": "tensor_recurrence", "inputs": {"k": ["heads", "key"], "v": ["heads", "value"]}, "state": {"s": STATE},
        "parameters": {"x": {"dims": []}},
        "update": {"s": update}, "output": "x*sum(key, k*next(s))",
    }  # fmt: skip
    block["inputs"] |= {"a": ["heads"]} if "a*" in update else {"g": ["heads", "key"]}
    made = program(block, chunk=4)
    body = recurrence(made)
    loop = next(n for n in body.nodes if isinstance(n.op, Loop))
    alone = Graph(loop.ins, (loop,), (loop.outs[1],))
    sizes = made.resolve(seq=9)
    args = numbers(alone, sizes, 3)
    at = next(i for i, v in enumerate(alone.inputs) if v.name in ("a", "g"))
    args[at] = torch.tensor(HARD[update], dtype=F64)[torch.arange(args[at].numel()) % 5].reshape(args[at].shape)
    want, got = (run(g, sizes, args, torch, F64)[0] for g in (alone, chunk(alone)))

    assert apart(got, want) < 1e-14


def test_nothing_leaks_from_later_positions():
    made = program(drawn(random.Random(4)).block, chunk=4)
    after, sizes = chunk(recurrence(made)), made.resolve(seq=9)
    args = numbers(after, sizes, 0)
    at = next(i for i, v in enumerate(after.inputs) if "seq" in v.dims)
    axis = after.inputs[at].dims.index("seq")
    (before,) = run(after, sizes, args, torch, F64)
    args[at] = args[at].clone()
    args[at].select(axis, 6).fill_(1e30)
    (later,) = run(after, sizes, args, torch, F64)

    assert torch.equal(before.narrow(1, 0, 6), later.narrow(1, 0, 6))
    assert not torch.equal(before, later)


def test_the_last_state_is_right_where_the_last_chunk_is_not_full():
    block = {
        "kind": "tensor_recurrence", "inputs": {"k": ["heads", "key"], "v": ["heads", "value"], "a": ["heads"]},
        "state": {"s": STATE}, "update": {"s": "sigmoid(a)*s + k*v"}, "output": "sum(key, k*next(s))",
    }  # fmt: skip
    made = program(block, chunk=4)
    loop = next(n for n in recurrence(made).nodes if isinstance(n.op, Loop))
    whole = Graph(loop.ins, (loop,), loop.outs[:2])
    sizes = made.resolve(seq=7)
    args = numbers(whole, sizes, 1)

    for a, b in zip(*(run(g, sizes, args, torch, F64) for g in (chunk(whole), whole)), strict=True):
        assert apart(a, b) < 1e-14
