"""All ranks on numbers: generated graphs and their derivatives, split along random dims, equal one process."""

from random import Random

import pytest
import torch

from tests.campaign import count
from tests.ir.generate import random_args, random_graph
from tests.ir.simulate import Grid, simulate
from tests.models import SIZES, fill, gpt_block
from weft.errors import CheckFailed
from weft.ir import placement
from weft.ir.builder import Builder
from weft.ir.placement import MAX, REPLICATED, SUM
from weft.ir.reference import Site, run
from weft.ir.types import Type, Val
from weft.passes.derivative import joint

N = count(sample=40, soak=500)


@pytest.mark.parametrize("seed", range(N))
def test_generated_graphs_on_random_meshes(seed):
    rng = Random(seed)
    graph, sizes = random_graph(rng, nodes=8)
    graph = joint(graph) if seed % 2 else graph
    args = random_args(graph, sizes, torch, seed)
    want = run(graph, sizes, args, torch, torch.float64)
    even = sorted(d for d, n in sizes.items() if n % 2 == 0)
    rng.shuffle(even)
    cut = rng.randint(0, len(even))
    one, two = {"x": tuple(even)}, {"x": tuple(even[:cut]), "y": tuple(even[cut:])}
    for mesh in (one, two, {"x": tuple(even), "y": tuple(even)}):
        got, _ = simulate(graph, mesh, [2] * len(mesh), sizes, args, torch, torch.float64)
        for w, g in zip(want, got, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-9)


def grid(*counts: int) -> Grid:
    return Grid(counts, {"a": 4, "b": 6}, torch, torch.float64)


V = Val("v", Type("f32", ("a", "b")))
FULL = torch.arange(24, dtype=torch.float64).view(4, 6)


@pytest.mark.parametrize("place", [("a", "b"), ("b", "a"), ("a", REPLICATED), (REPLICATED, REPLICATED)])
def test_put_and_whole_are_inverse(place):
    g = grid(2, 2)
    g.put(V, FULL, place)
    assert torch.equal(g.whole(V, place), FULL)
    assert g.at[V, place][1, 0].numel() == 24 // 2 ** sum(p in "ab" for p in place)


def test_collectives_on_numbers():
    g = grid(2)
    g.at[V, (SUM,)] = {(0,): FULL, (1,): 2 * FULL}
    g.move(V, 0, (SUM,), (REPLICATED,))
    assert all(torch.equal(x, 3 * FULL) for x in g.at[V, (REPLICATED,)].values())
    g.move(V, 0, (SUM,), ("b",))
    assert torch.equal(g.at[V, ("b",)][1,], 3 * FULL[:, 3:])
    g.move(V, 0, ("b",), ("a",))
    assert torch.equal(g.at[V, ("a",)][0,], 3 * FULL[:2])
    g.at[V, (MAX,)] = {(0,): FULL, (1,): 5 - FULL}
    g.move(V, 0, (MAX,), (REPLICATED,))
    assert torch.equal(g.at[V, (REPLICATED,)][0,], torch.maximum(FULL, 5 - FULL))


def test_ranks_that_must_agree_and_do_not_are_named():
    g = grid(2)
    g.at[V, (REPLICATED,)] = {(0,): FULL, (1,): FULL + 1e-3}
    with pytest.raises(CheckFailed, match="same on every rank"):
        g.whole(V, (REPLICATED,))


@pytest.mark.parametrize("fault", ["missing reduction", "wrong offset"])
def test_a_planted_fault_shows(fault, monkeypatch):
    """The walk with one collective left out, or a rank at the wrong place, gives other numbers."""
    graph = joint(gpt_block())
    args = list(fill(torch, graph).values())
    want = run(graph, SIZES, args, torch, torch.float64)
    if fault == "missing reduction":
        join = Grid.joined
        monkeypatch.setattr(Grid, "joined", lambda s, v, w, parts: parts[0] if w == SUM else join(s, v, w, parts))
    else:
        monkeypatch.setattr(Site, "coord", lambda s, d, to: s.align(torch.arange(s.local[d]), (d,), to))
    try:
        got, _ = simulate(graph, {"cp": ("seq",)}, [2], SIZES, args, torch, torch.float64)
    except CheckFailed:
        return
    assert any((w - g).abs().max() > 1e-6 for w, g in zip(want, got, strict=True))


def test_a_constant_is_cut_without_talking():
    g = Builder()
    x, c = g.input("x", Type("f32", ("a",))), g.map("i_a + 1", to="a")
    graph = g.graph(g.map("x*c", x=x, c=c))
    assert placement.collectives(graph, {"x": ("a",)}) == []
