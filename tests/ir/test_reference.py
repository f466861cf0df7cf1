"""The interpreter: dtypes, integers, rank-local parts, and what a map computes in."""

import random
import subprocess
import sys

import pytest
import torch

from tests.campaign import count
from tests.ir.generate import random_args, random_graph
from weft.errors import VerifyError
from weft.ir import cost
from weft.ir.builder import Builder, flatten
from weft.ir.composite import Call
from weft.ir.formula import parse, philox, symbol
from weft.ir.graphs import dce
from weft.ir.library import Dropout, LayerNorm, Softmax
from weft.ir.reference import Site, run
from weft.ir.types import Type


def f(dims: str, dtype: str = "f32") -> Type:
    return Type(dtype, tuple(dims.split()))


def test_values_have_their_own_dtypes_unless_overridden():
    g = Builder()
    x = g.input("x", f("b", "bf16"))
    y = g.cast(x, "f32")
    k = g.map("floor(y)", y=y, dtype="i64")
    graph = g.graph(x, y, k, g.map("y > 0", y=y))
    x = torch.randn(4, dtype=torch.float64)

    assert [o.dtype for o in run(graph, {"b": 4}, [x], torch)] == [
        torch.bfloat16,
        torch.float32,
        torch.int64,
        torch.bool,
    ]
    assert [o.dtype for o in run(graph, {"b": 4}, [x], torch, torch.float64)][:2] == [torch.float64] * 2


def test_a_half_precision_map_rounds_once():
    g = Builder()
    x = g.input("x", f("b", "bf16"))
    graph = g.graph(g.map("(x*x + x)*x - x/3", x=x))
    x = torch.randn(1000).bfloat16()
    wide = x.float()

    assert torch.equal(run(graph, {"b": 1000}, [x], torch)[0], ((wide * wide + wide) * wide - wide / 3).bfloat16())


def test_integers_are_exact():
    g = Builder()
    k = g.input("k", Type("i64", ("b",)))
    graph = g.graph(g.map("(k // 3)*2 + k % 5 + i_b*n_b", k=k, dtype="i64"))
    k = torch.tensor([2**61 + 1, -7, 8])

    assert run(graph, {"b": 3}, [k], torch, torch.float64)[0].tolist() == [
        (v // 3) * 2 + v % 5 + 3 * i for i, v in enumerate(k.tolist())
    ]


def test_real_division_of_integers_is_in_the_run_s_dtype():
    g = Builder()
    graph = g.graph(g.map("i_b/n_b + 1/3", to="b"))
    (out,) = run(graph, {"b": 7}, [], torch, torch.float64)

    assert torch.equal(out, torch.arange(7, dtype=torch.float64) / 7 + 1 / 3)


def test_dropout_draws_philox_by_global_index():
    g = Builder()
    x, seed, layer = g.input("x", f("b t")), g.input("seed", Type("i64", ())), g.input("layer", Type("i64", ()))
    graph = g.graph(g.one(Dropout(parse("1/4"), op_id=9), x, seed, layer))
    x, seed, layer = torch.ones(5, 8), torch.tensor(-3), torch.tensor(2)
    (out,) = run(graph, {"b": 5, "t": 8}, [x, seed, layer], torch)
    u = philox.uniform(-3, 9, 2, torch.arange(40)).reshape(5, 8) / 2**24

    assert torch.equal(out, torch.where(u >= 0.25, torch.full_like(x, 4 / 3), 0))


def test_rank_local_parts_see_the_whole():
    """One rank's half of a map over coordinates is the half of the whole."""
    g = Builder()
    node = g.graph(g.map("10*i_b + i_t + n_b/2", to="b t")).nodes[0]
    whole = node.op.torch(Site(node, {"b": 4, "t": 3}, torch), torch)[0]
    part = node.op.torch(Site(node, {"b": 4, "t": 3}, torch, local={"b": 2, "t": 3}, offset={"b": 2}), torch)[0]

    assert torch.equal(part, whole[2:])


def test_inputs_by_name_and_by_order():
    g = Builder()
    x, y = g.input("x", f("b")), g.input("y", f("b"))
    graph = g.graph(g.map("x - y", x=x, y=y))
    a, b = torch.randn(3), torch.randn(3)

    assert torch.equal(run(graph, {"b": 3}, {"y": b, "x": a}, torch)[0], run(graph, {"b": 3}, [a, b], torch)[0])


def test_loops_over_nothing():
    g = Builder()
    c, x = g.input("c", f("b")), g.input("x", f("t b"))
    got = g.scan("t", {"c": ("c + x", c)}, {"h": "c*2"}, x=x)
    out = run(g.graph(got["c"], got["h"]), {"t": 0, "b": 3}, [torch.ones(3), torch.ones(0, 3)], torch)

    assert torch.equal(out[0], torch.ones(3))
    assert out[1].shape == (0, 3)


def test_flatten_and_dce_keep_the_result():
    for seed in range(count(sample=40, soak=400)):
        graph, sizes = random_graph(random.Random(1000 + seed))
        args = random_args(graph, sizes, torch, seed)
        want = run(graph, sizes, args, torch, torch.float64)
        for other in (flatten(graph), dce(graph)):
            for a, b in zip(run(other, sizes, args, torch, torch.float64), want, strict=True):
                assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_provenance_survives():
    g = Builder()
    x = g.input("x", f("b t"))
    with g.at("spec.yaml:3"):
        y = g.one(Softmax("t"), x)
        with g.at(""):
            z = g.map("y + 1", y=y)
    g.map("z", z=z)

    assert [n.src for n in g.nodes] == ["spec.yaml:3", "spec.yaml:3", ""]
    assert {n.src for n in flatten(g.graph(z)).nodes} == {"spec.yaml:3"}


def test_a_built_graph_is_a_verified_one():
    g = Builder()
    with pytest.raises(VerifyError):
        g.input("x y", f("b"))
    x = g.input("x", f("b"))
    op = g.graph(*g.maps(["x", "x + 1"], x=x)).nodes[0].op
    with pytest.raises(VerifyError, match="has 2 results"):
        g.one(op, x)


def test_flops_and_bytes():
    """Of a linear layer: 2 b d e multiplications and additions; every operand and the result moved once."""
    g = Builder()
    x, w = g.input("x", f("b d", "bf16")), g.input("w", f("d e", "bf16"))
    graph = g.graph(g.einsum(x, w, to="b e"))
    b, d, e = (symbol(f"n_{n}") for n in "bde")

    assert cost.flops(graph) == 2 * b * d * e
    assert (cost.bytes(graph) - 2 * (b * d + d * e + b * e)).expand() == 0


def test_a_loop_moves_its_body_s_bytes_and_a_cell_its_operands():
    g, b = Builder(), Builder()
    x, w = g.input("x", f("b d")), g.input("w", f("l d"))
    u, v = b.input("u", f("b d")), b.input("v", f("d"))
    g.loop("l", b.graph(b.one(LayerNorm("d", parse("0.1")), u, v)), 1, x, w)
    g.scan("b", {"c": ("c*x", g.reduce(x, to="d"))}, {}, x=x)
    n = {d: symbol(f"n_{d}") for d in "bdl"}
    layers, _, cell = (node.op.bytes(node).expand() for node in g.nodes)

    assert layers == (n["l"] * 4 * (2 * n["b"] * n["d"] + n["d"])).expand()
    assert cell == (4 * (n["b"] * n["d"] + 2 * n["d"] + n["b"] * n["d"])).expand()


def test_kinds():
    g = Builder()
    x, w = g.input("x", f("b t")), g.input("w", f("t"))
    g.map("x + w", x=x, w=w)
    g.einsum(x, w, to="b")
    g.reduce(x, to="b")
    g.one(LayerNorm("t", parse("0.1")), x, w, w)
    g.rename(x, "t", "s")
    g.table([1], "k", (1,))
    g.scan("t", {"c": ("c + x", g.reduce(x, to="b"))}, {}, x=x)
    b = Builder()
    g.many(Call("block", b.graph(b.reduce(b.input("x", f("b t")), to="b"))), x)
    kinds = [cost.kind(n) for n in g.nodes]

    assert kinds == ["pointwise", "rowwise", "rowwise", "rowwise", "view", "memory", "rowwise", "scan", "region"]


def test_a_deep_stack_is_one_body():
    """128 layers: one loop, built and differentiated in a time that does not know how many there are."""
    g, b = Builder(), Builder()
    x, w = g.input("x", f("b d")), g.input("w", f("layers d e"))
    u, v = b.input("x", f("b d")), b.input("w", f("d e"))
    y = b.map("u + gelu(h)", u=u, h=b.einsum(b.einsum(u, v, to="b e"), v, to="b d"))
    (out,) = g.loop("layers", b.graph(y), 1, x, w)[:1]
    graph = g.graph(out)

    assert len(graph.nodes) == 1
    assert graph.nodes[0].op.flops(graph.nodes[0]).has(symbol("n_layers"))


def test_the_core_imports_no_torch_and_no_numpy():
    names = ("all_ops", "derive", "text", "cost", "reference", "program")
    code = f"import sys\nimport {', '.join(f'weft.ir.{n}' for n in names)}\n"
    code += "print(sorted({'torch', 'numpy', 'networkx', 'onnx', 'pydantic'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert out.stdout.strip() == "[]"
