"""A backward of some results alone: the numbers of the whole one at zero, and none of its work on zeros."""

from dataclasses import replace
from random import Random

import torch

from tests.campaign import count
from tests.codegen.emission import planned
from tests.ir.generate import random_args, random_graph
from weft.ir.builder import Builder
from weft.ir.ops.primitives import Map
from weft.ir.reference import run
from weft.ir.types import Graph, Type
from weft.passes.derivative import joint as joint_of
from weft.passes.pairs import fast
from weft.passes.rewrite import merge, unlet
from weft.passes.without import without


def same(graph: Graph, gone: list[str], sizes: dict[str, int], args: list[torch.Tensor]) -> Graph:
    """The graph without these inputs, which gives what the graph gives where they are zero."""
    less = without(graph, [v for v in graph.inputs if v.name in gone])
    zeros = [torch.zeros_like(a) if v.name in gone else a for v, a in zip(graph.inputs, args)]
    left = [a for v, a in zip(graph.inputs, args) if v.name not in gone]
    want, got = run(graph, sizes, zeros, torch, torch.float64), run(less, sizes, left, torch, torch.float64)
    for v, a, b in zip(graph.outputs, got, want, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), v
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    return less


def test_generated_backwards_without_some_cotangents():
    shorter = 0
    for seed in range(count(sample=30, soak=1000)):
        rng = Random(seed)
        graph, sizes = random_graph(rng, nodes=rng.randint(4, 12))
        outputs = tuple(dict.fromkeys(v for v in graph.outputs if v.type.floating))
        joint = fast(merge(unlet(joint_of(replace(graph, outputs=outputs)))))
        cotangents = [v.name for v in joint.inputs[len(graph.inputs) :]]
        gone = rng.sample(cotangents, rng.randint(1, len(cotangents)))

        less = same(joint, gone, sizes, random_args(joint, sizes, torch, seed))
        shorter += len(less.nodes) < len(joint.nodes)
    assert shorter


def test_what_follows_from_zeros_alone_is_gone():
    g = Builder()
    x, dy, dz = (g.input(n, Type("f32", ("b", "d"))) for n in ("x", "dy", "dz"))
    both = g.map("a*2 + b", a=dz, b=dy)
    graph = g.graph(g.map("a*b", a=both, b=x), g.reduce(g.map("a*b", a=dz, b=x), to=["d"]))
    less = same(graph, ["dz"], {"b": 2, "d": 3}, [torch.randn(2, 3, dtype=torch.float64) for _ in range(3)])

    assert [str(n.op.exprs[0]) for n in less.nodes if isinstance(n.op, Map)] == ["_0*_1", "0"]
    assert less.nodes[0].ins == less.inputs[::-1]


def test_a_backward_of_the_loss_alone_adds_no_zeros():
    for b in planned("switch_base").blocks:
        for pair in b.made.pairs:
            for graph in pair.whole[2].values():
                zeros = {n.outs[0] for n in graph.nodes if isinstance(n.op, Map) and n.op.exprs == (0,)}
                assert not any(zeros & set(n.ins) for n in graph.nodes)
