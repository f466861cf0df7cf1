"""The two halves of a block against its joint graph, and the cuts against brute force."""

import itertools
import random

import pytest
import torch

from tests.campaign import count
from tests.passes.blocks import GENERATED, PARAMS, SIZES, generated, gpt
from weft.errors import VerifyError
from weft.ir import cost
from weft.ir.derive import joint
from weft.ir.reference import run
from weft.ir.types import Graph, Val
from weft.ir.verify import verify
from weft.passes.fusion.price import Prices
from weft.passes.recompute import Halves, Parts, lightest, modes, redone, split
from weft.targets import find


def values(inputs: tuple[Val, ...], sizes: dict[str, int]) -> dict[str, torch.Tensor]:
    gen = torch.Generator().manual_seed(0)
    shapes = {v: [sizes[d] for d in v.dims] for v in inputs}
    return {v.name: torch.randn(s, generator=gen) if v.type.floating else torch.full(s, 5) for v, s in shapes.items()}


def both(j: Graph, halves: Halves, sizes: dict[str, int]):
    """(what the joint graph gives, what the halves give), each its outputs, then its gradients."""
    args = values(j.inputs, sizes)
    whole = run(j, sizes, args, torch)
    out = run(halves.forward, sizes, {v.name: args[v.name] for v in halves.forward.inputs}, torch)
    k = len(halves.forward.outputs) - len(halves.saved)
    args |= {v.name: t for v, t in zip(halves.saved, out[k:])}
    return whole, (
        *out[:k],
        *run(halves.backward, sizes, {v.name: args[v.name] for v in halves.backward.inputs}, torch),
    )


@pytest.mark.parametrize("dropout", [False, True])
def test_every_mode_of_a_transformer_block_gives_bitwise_the_joint_result(dropout: bool):
    j = joint(gpt(dropout=dropout), ("x", *PARAMS))
    found = modes(j, 1, Prices(SIZES, find("sm_90")), PARAMS)
    assert list(found) == ["save", "pointwise", "attention", "block"]
    sizes = []
    for kept in found.values():
        halves = split(j, 1, kept)
        verify(halves.forward)
        verify(halves.backward)
        assert set(kept) == {v.name for v in halves.saved}
        whole, got = both(j, halves, SIZES)
        assert all(torch.equal(a, b) for a, b in zip(whole, got, strict=True))
        sizes.append(sum(t.type.dims.count("seq") for t in halves.saved))
    assert found["block"] == ()
    assert sizes == sorted(sizes, reverse=True)


def test_modes_redo_what_their_names_say():
    j = joint(gpt(), ("x", *PARAMS))
    found = modes(j, 1, Prices(SIZES, find("sm_90")), PARAMS)
    again = {m: {cost.kind(n) for n in redone(split(j, 1, kept))} for m, kept in found.items()}
    assert again["save"] <= {"view"}
    assert again["pointwise"] <= {"view", "pointwise", "rowwise"}
    assert "attention" in again["attention"]
    assert "contraction" not in again["attention"]
    assert "contraction" in again["block"]


def test_what_is_redone_comes_just_before_its_first_use():
    j = joint(gpt(), ("x", *PARAMS))
    nodes = split(j, 1, ()).backward.nodes
    late = Parts(j, 1).late
    for i, n in enumerate(nodes):
        if n.outs[0] not in late:  # the next node that is not of the same chain reads it, or something that reads it
            assert any(v in m.ins for m in nodes[i + 1 :] for v in n.outs)
    first_late = next(i for i, n in enumerate(nodes) if n.outs[0] in late)
    assert any(n.outs[0] not in late for n in nodes[first_late:])


def test_generated_blocks_keep_their_result_whatever_is_saved():
    for seed in range(count(sample=25, soak=300)):
        rng = random.Random(seed)
        g = generated(rng)
        j = joint(g, [v.name for v in g.inputs])
        k = len(g.outputs)
        parts = Parts(j, k)
        early = [v.name for n in j.nodes for v in n.outs if v not in parts.late]
        for kept in ([], early, rng.sample(early, rng.randint(0, len(early)))):
            halves = split(j, k, kept)
            verify(halves.forward)
            verify(halves.backward)
            whole, got = both(j, halves, GENERATED)
            assert all(torch.equal(a, b) for a, b in zip(whole, got, strict=True)), seed


def price_of(parts: Parts, kept: set[Val], held: set[str], weigh, redo) -> tuple[int, float] | None:
    """(bytes, seconds) of one saved set by simulation; None when something forbidden would be redone."""
    need, todo = set[Val](), list(parts.needed)
    first = parts.above(parts.joint.outputs[: parts.outputs])
    bytes_, nodes = 0, {}
    while todo:
        v = todo.pop()
        if v in need:
            continue
        need.add(v)
        node = parts.maker.get(v)
        if node is None or v in kept:
            bytes_ += 0 if v.name in held else weigh(v)
        else:
            nodes[node.outs[0]] = node
            todo += node.ins
    costs = [redo(n) if any(v in first for v in n.outs) else 0.0 for n in nodes.values()]
    return None if None in costs else (bytes_, sum(costs))


def test_cuts_equal_brute_force():
    for seed in range(count(sample=15, soak=100)):
        rng = random.Random(seed)
        g = generated(rng, rng.randint(3, 5))
        parts = Parts(joint(g, [v.name for v in g.inputs]), len(g.outputs))
        weight = {v: rng.randint(1, 9) for v in (*parts.inputs, *parts.maker)}
        seconds = {n.outs[0]: rng.choice([None, 0.0, 1e-6 * rng.randint(1, 9)]) for n in parts.joint.nodes}

        def redo(n, seconds=seconds):
            return seconds[n.outs[0]]

        candidates = [v for v in parts.maker if v in parts.above(parts.needed)]
        if len(candidates) > 11:
            continue
        subsets = itertools.chain.from_iterable(
            itertools.combinations(candidates, r) for r in range(len(candidates) + 1)
        )
        priced = [price_of(parts, set(s), {"w"}, weight.__getitem__, redo) for s in subsets]
        for price in (10**15, 10**5, 10**6):  # bytes first, or weighed against picoseconds
            kept = lightest(parts, weight.__getitem__, redo, {"w"}, price)
            got = price_of(parts, {v for v in parts.maker if v.name in kept}, {"w"}, weight.__getitem__, redo)
            assert got is not None
            totals = [p[0] * price + round(p[1] * 10**12) for p in (got, *priced) if p is not None]
            assert totals[0] == min(totals), seed


def test_a_name_that_is_no_forward_value_is_refused():
    j = joint(gpt(), ("x",))
    with pytest.raises(VerifyError, match="nowhere"):
        split(j, 1, ["nowhere"])
    with pytest.raises(VerifyError, match="cotangent"):
        split(j, 1, [j.outputs[1].name])
