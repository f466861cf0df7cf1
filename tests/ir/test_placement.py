"""Collectives counted for the partitions that the literature names, and the same walk run on all ranks' numbers."""

from types import SimpleNamespace

import pytest
import sympy as sp
import torch

from tests.ir.simulate import simulate
from tests.models import BLOCK, SIZES, fill, gpt_block, gpt_stack, language_model, sru, switch
from weft.errors import CheckFailed
from weft.ir.builder import Builder, flatten
from weft.ir.formula import symbol
from weft.ir.loops import keep
from weft.ir.ops.primitives import Loop
from weft.ir.placement import MAX, REPLICATED, SUM, _PlacementWalk, collectives, counts, natural
from weft.ir.reference import run
from weft.ir.types import Type, Val
from weft.passes.derivative import joint

TP, SP = ("heads", "inner"), ("heads", "inner", "seq")
GATHER, REDUCE, SCATTER, SWAP, TOP = "all_gather", "all_reduce", "reduce_scatter", "all_to_all", "all_reduce_max"


def kept_stack():
    """A stack whose blocks keep everything: what the emitted blocks do when nothing is recomputed."""
    flat = flatten(gpt_stack())
    return keep(flat, {v.name for n in flat.nodes if isinstance(n.op, Loop) for m in n.op.body.nodes for v in m.outs})


def beside():
    """Two products of split rows, added to what is whole; a third that is read elsewhere is reduced by itself."""
    g = Builder()
    x, h = g.input("x", Type("f32", ("batch", "width"))), g.input("h", Type("f32", ("batch", "inner")))
    a, b, c = (g.einsum(h, g.input(n, Type("f32", ("inner", "width"))), to="batch width") for n in "abc")
    return g.graph(g.map("x + a + b", x=x, a=a, b=b), g.map("x + c", x=x, c=c), g.map("c*c", c=c))


def case(make, mesh, ranks, forward, both):
    return SimpleNamespace(make=make, mesh=mesh, ranks=ranks, forward=forward, both=both)


# forward: collectives of the forward graph; both: of forward and backward, activations then parameters alike.
CASES = {
    "tensor": case(gpt_block, {"tp": TP}, [2], {(REDUCE, "tp"): 2}, {(REDUCE, "tp"): 4}),
    "tensor, 4 ranks": case(gpt_block, {"tp": TP}, [4], {(REDUCE, "tp"): 2}, {(REDUCE, "tp"): 4}),
    "sequence": case(
        gpt_block,
        {"tp": SP},
        [2],
        {(GATHER, "tp"): 2, (SCATTER, "tp"): 2},
        {(GATHER, "tp"): 4, (SCATTER, "tp"): 4, (REDUCE, "tp"): 5},  # 5 norm and bias gradients
    ),
    "data": case(gpt_block, {"dp": ("batch",)}, [2], {}, {(REDUCE, "dp"): len(BLOCK)}),
    "context": case(
        gpt_block,
        {"cp": ("seq",)},
        [2],
        {(GATHER, "cp"): 2},
        {(GATHER, "cp"): 2, (SCATTER, "cp"): 2, (REDUCE, "cp"): 12},
    ),
    "data x sequence": case(
        gpt_block,
        {"dp": ("batch",), "tp": SP},
        [2, 2],
        {(GATHER, "tp"): 2, (SCATTER, "tp"): 2},
        {(GATHER, "tp"): 4, (SCATTER, "tp"): 4, (REDUCE, "dp"): 12, (REDUCE, "tp"): 5},
    ),
    "data x context x tensor": case(
        gpt_block,
        {"dp": ("batch",), "cp": ("seq",), "tp": TP},
        [2, 2, 2],
        {(GATHER, "cp"): 2, (REDUCE, "tp"): 2},
        {(GATHER, "cp"): 2, (SCATTER, "cp"): 2, (REDUCE, "tp"): 4, (REDUCE, "dp"): 12, (REDUCE, "cp"): 12},
    ),
    "beside": case(beside, {"tp": TP}, [2], {(REDUCE, "tp"): 2}, {(REDUCE, "tp"): 2}),
    "stack, tensor, kept": case(kept_stack, {"tp": TP}, [2], {(REDUCE, "tp"): 2}, {(REDUCE, "tp"): 4}),
    "stack, tensor, redone": case(gpt_stack, {"tp": TP}, [2], {(REDUCE, "tp"): 2}, {(REDUCE, "tp"): 5}),
    "stack, data x sequence": case(
        gpt_stack,
        {"dp": ("batch",), "tp": SP},
        [2, 2],
        {(GATHER, "tp"): 2, (SCATTER, "tp"): 2},
        {(GATHER, "tp"): 6, (SCATTER, "tp"): 5, (REDUCE, "dp"): 12, (REDUCE, "tp"): 5},
    ),
    "expert": case(
        switch,
        {"ep": ("experts", "batch")},
        [2],
        {(SWAP, "ep"): 2, (REDUCE, "ep"): 1},  # 1: the auxiliary loss
        {(SWAP, "ep"): 4, (REDUCE, "ep"): 2},
    ),
    "expert, top 2": case(
        lambda: switch(2),
        {"ep": ("experts", "batch")},
        [4],
        {(SWAP, "ep"): 2, (REDUCE, "ep"): 1},
        {(SWAP, "ep"): 4, (REDUCE, "ep"): 2},
    ),
    "sru, tensor": case(sru, {"tp": ("out",)}, [2], {}, {(GATHER, "tp"): 1, (REDUCE, "tp"): 1}),
    "sru, data": case(sru, {"dp": ("batch",)}, [2], {}, {(REDUCE, "dp"): 7}),
    "vocabulary": case(
        language_model,
        {"tp": ("vocab",)},
        [2],
        {(REDUCE, "tp"): 3, (TOP, "tp"): 1},
        {(REDUCE, "tp"): 5, (TOP, "tp"): 2},
    ),
    "lm, data": case(language_model, {"dp": ("batch",)}, [2], {(REDUCE, "dp"): 1}, {(REDUCE, "dp"): 2}),
    "vocabulary x data": case(
        language_model,
        {"dp": ("batch",), "tp": ("vocab",)},
        [2, 2],
        {(REDUCE, "tp"): 3, (TOP, "tp"): 1, (REDUCE, "dp"): 1},
        {(REDUCE, "tp"): 5, (TOP, "tp"): 2, (REDUCE, "dp"): 2},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_counted_and_simulated(name):
    c = CASES[name]
    graph = c.make()
    both = joint(graph)
    args = list(fill(torch, both).values())
    assert counts(collectives(graph, c.mesh)) == c.forward
    got, ran = simulate(both, c.mesh, c.ranks, SIZES, args, torch, torch.float64)
    assert counts(ran) == c.both
    assert ran == collectives(both, c.mesh)
    for w, g in zip(run(both, SIZES, args, torch, torch.float64), got, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-12)


def test_bytes_and_times():
    """Megatron's volume: b·s·h per all-reduce, four times a layer, each once per layer."""
    n = symbol
    found = collectives(joint(kept_stack()), {"tp": TP})
    assert {c.times for c in found} == {n("n_layers")}
    assert sp.Add(*(c.bytes for c in found)) == 4 * 4 * n("n_layers") * n("n_batch") * n("n_seq") * n("n_width")


def test_a_collective_knows_its_line():
    g = Builder()
    x, w = g.input("x", Type("f32", ("b", "d"))), g.input("w", Type("f32", ("d", "e")))
    with g.at("spec.yaml:7"):
        y = g.einsum(x, w, to="b e")
    with g.at("spec.yaml:8"):
        z = g.map("tanh(y)", y=y)
    (only,) = collectives(g.graph(z), {"tp": ("d",)})
    assert (only.kind, only.value, only.src) == (REDUCE, y.name, "spec.yaml:8")  # where the whole value is needed


def test_natural_never_splits_a_dim_twice():
    assert natural(("seq", "heads"), {"cp": ("seq",), "tp": ("seq", "heads")}) == ("seq", "heads")
    assert natural(("seq",), {"cp": ("seq",), "tp": ("seq",)}) == ("seq", REPLICATED)


class Recorder:
    """Stands in for the ranks and notes the moves."""

    def __init__(self):
        self.moves = []

    def move(self, v, axis, src, want):
        self.moves.append((axis, src, want))


@pytest.mark.parametrize(
    ("have", "want", "steps"),
    [
        (("a", "b"), ("a", "b"), 0),
        ((SUM, REPLICATED), ("a", REPLICATED), 1),
        ((REPLICATED, "a"), ("a", "b"), 2),
        (("a", "b"), ("b", "a"), 3),  # neither can be split before the other is gathered
        ((MAX, SUM), (REPLICATED, "b"), 2),
    ],
)
def test_moves_along_two_axes(have, want, steps):
    v, ranks = Val("v", Type("f32", ("a", "b"))), Recorder()
    walk = _PlacementWalk({"x": ("a", "b"), "y": ("b", "a")}, sp.S.One, ranks)
    walk.have[v] = {have: None}
    walk.get(v, want, "")
    assert want in walk.have[v]
    assert len(ranks.moves) == steps
    for _, _, place in ranks.moves:
        split = [p for p in place if p in "ab"]
        assert len(split) == len(set(split))


def test_a_size_that_ranks_cannot_share_is_named():
    graph = gpt_block()
    with pytest.raises(CheckFailed, match="heads"):
        simulate(graph, {"tp": ("heads",)}, [3], SIZES, list(fill(torch, graph).values()), torch, torch.float64)
