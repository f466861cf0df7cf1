"""Printed functions compute what the interpreter computes, and read as ruff would have them."""

from dataclasses import replace
from random import Random

import pytest
import torch

from tests.campaign import count
from tests.codegen.emission import callable_of, ruff, source_of
from tests.ir.generate import random_args, random_graph
from weft.codegen.torch.einsum import align, spell
from weft.codegen.torch.lines import Lines, call, tuple_of
from weft.ir.builder import Builder
from weft.ir.formula import parse
from weft.ir.library import CrossEntropy, Dropout, LayerNorm, RMSNorm, Rotary, Route, Softmax
from weft.ir.ops.movement import Concat
from weft.ir.reference import run
from weft.ir.types import Graph, Type
from weft.passes.derivative import joint as joint_of
from weft.passes.pairs import fast
from weft.passes.rewrite import merge, unlet

SIZES = {"b": 2, "t": 3, "s": 5, "d": 4, "h": 3, "e": 2, "f": 6, "E": 2}


def agree(graph: Graph, printed: Graph, sizes: dict[str, int], args: list[torch.Tensor], runtime: tuple[str, ...] = ()):
    """The printed function gives the interpreter's outputs: shape, dtype, numbers."""
    want = run(graph, sizes, args, torch, torch.float64)
    got = callable_of(source_of(printed, sizes, runtime))(*args)
    for v, a, b in zip(graph.outputs, got, want, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), v
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda m, v=v: f"{v}: {m}")


@pytest.mark.parametrize("chunk", range(4))
def test_generated_graphs_print_right(chunk):
    n = count(sample=25, soak=250)
    for seed in range(chunk * n, chunk * n + n):
        rng = Random(seed)
        graph, sizes = random_graph(rng, nodes=rng.randint(4, 16))
        given = {d for v in graph.inputs for d in v.dims}
        runtime = tuple(d for d in rng.sample("abcd", rng.randint(0, 3)) if d in given)

        agree(graph, graph, sizes, random_args(graph, sizes, torch, seed), runtime)


@pytest.mark.parametrize("chunk", range(4))
def test_generated_backwards_print_right(chunk):
    n = count(sample=15, soak=125)
    for seed in range(chunk * n, chunk * n + n):
        rng = Random(seed)
        graph, sizes = random_graph(rng, nodes=rng.randint(4, 12))
        outputs = tuple(dict.fromkeys(v for v in graph.outputs if v.type.floating))
        joint = joint_of(replace(graph, outputs=outputs))

        agree(joint, fast(merge(unlet(joint))), sizes, random_args(joint, sizes, torch, seed))


def composite(op, *types: str, dtype: str = "f32") -> Graph:
    g = Builder()
    ins = [
        g.input(f"x{i}", Type("i64" if t.startswith("i64 ") else dtype, tuple(t.removeprefix("i64 ").split())))
        for i, t in enumerate(types)
    ]
    return g.graph(*g.many(op, *ins))


COMPOSITES = {
    "layer_norm": composite(LayerNorm("d", parse("0.01")), "b t d", "d", "d"),
    "layer_norm without bias": composite(LayerNorm("d", parse("0.01")), "b t d", "d"),
    "plain layer_norm": composite(LayerNorm("d", parse("0.01")), "b t d"),
    "layer_norm over another dim": composite(LayerNorm("t", parse("0.01")), "b t d", "t"),
    "rms_norm": composite(RMSNorm("d", parse("0.01")), "b t d", "d"),
    "plain rms_norm": composite(RMSNorm("d", parse("0.01")), "b t d"),
    "rms_norm with bias": composite(RMSNorm("d", parse("0.01")), "b t d", "d", "d"),
    "softmax": composite(Softmax("t"), "b t d"),
    "cross_entropy": composite(CrossEntropy("f"), "b t f", "i64 b t"),
    "cross_entropy, ignoring": composite(CrossEntropy("f", 1), "b t f", "i64 b t"),
    "dropout": composite(Dropout(parse("1/4"), 3), "b t d", "i64 ", "i64 "),
    "dropout with shared bits": composite(Dropout(parse("1/4"), 3, ("t",)), "b t d", "i64 ", "i64 "),
    "rotary": composite(Rotary("t", "d"), "b t h d"),
    "interleaved rotary": composite(Rotary("t", "d", style="interleaved"), "b t h d"),
    "half of it rotary": composite(Rotary("t", "f", fraction=parse("2/3")), "b t h f"),
    "rotary at given places": composite(Rotary("t", "d"), "b t h d", "i64 b t"),
    "route": composite(Route("E", "t"), "b t E"),
    "route to two": composite(Route("f", "t", 2, "e", True, True), "b t f"),
}


@pytest.mark.parametrize("name", COMPOSITES)
def test_composites_and_their_gradients(name):
    graph = COMPOSITES[name]
    args = random_args(graph, SIZES, torch, 1)
    agree(graph, graph, SIZES, args)
    joint = joint_of(graph)
    args = random_args(joint, SIZES, torch, 1)

    agree(joint, fast(merge(unlet(joint))), SIZES, args)


def test_formulas_hold_in_the_tails():
    g = Builder()
    x = g.input("x", Type("f32", ("b",)))
    texts = [
        "softplus(x)",
        "logaddexp(x, 0)",
        "sigmoid(x)",
        "1 - sigmoid(x)",
        "gelu(x)",
        "silu(x)",
        "tanh(x)",
        "relu(x)",
    ]
    graph = g.graph(*(g.map(t, x=x) for t in texts))
    args = [torch.tensor([-1e4, -30.0, -1.0, 0.0, 1.0, 30.0, 1e4], dtype=torch.float64)]

    agree(graph, graph, {"b": 7}, args)


def test_what_stands_among_arguments_has_no_parentheses_of_its_own():
    g = Builder()
    x, y = (g.input(n, Type("f32", ("b", "d"))) for n in ("x", "y"))
    both = g.map("a + b", a=x, b=y)
    joined = g.one(Concat(("d",), "f"), both)
    graph = g.graph(joined, g.one(Softmax("d"), g.map("a - b", a=x, b=y)))

    text = source_of(graph, {"b": 2, "d": 3, "f": 3})
    assert "torch.softmax(x - y, -1)" in text
    agree(graph, graph, {"b": 2, "d": 3, "f": 3}, random_args(graph, {"b": 2, "d": 3, "f": 3}, torch))


def random_dims(rng: Random, most: int = 4) -> tuple[str, ...]:
    return tuple(rng.sample(sorted(SIZES), rng.randint(1, most)))


def test_einsum_spellings():
    rng, letters = Random(0), dict(zip(SIZES, "abcdefgh"))
    for _ in range(count(sample=400, soak=4000)):
        x, y = random_dims(rng), random_dims(rng)
        every = list(dict.fromkeys(x + y))
        to = tuple(rng.sample(every, rng.randint(0, len(every))))
        a, c = (torch.randn([SIZES[d] for d in dims], dtype=torch.float64) for dims in (x, y))
        said = spell(["a", "c"], [x, y], to, lambda d: str(SIZES[d]))
        equation = ",".join("".join(letters[d] for d in ds) for ds in (x, y)) + "->" + "".join(letters[d] for d in to)

        got = eval(said, {"torch": torch, "F": torch.nn.functional, "a": a, "c": c})

        torch.testing.assert_close(got, torch.einsum(equation, a, c), msg=lambda m, said=said: f"{said}: {m}")


@pytest.mark.parametrize(
    ("x", "y", "to", "said"),
    [
        ("b t d", "d f", "b t f", "x @ y"),
        ("b t d", "f d", "b t f", "F.linear(x, y)"),
        ("b t d", "d h e", "b t h e", "(x @ y.flatten(1)).unflatten(-1, (3, 2))"),
        ("b t h e", "h e d", "b t d", "x.flatten(2) @ y.flatten(0, 1)"),
        ("b t d", "b t f", "d f", "x.flatten(0, 1).T @ y.flatten(0, 1)"),
        ("b h t e", "b h s e", "b h t s", "x @ y.mT"),
        ("d", "f", "d f", "x[..., None] * y"),
    ],
)
def test_contractions_are_one_product_over_views(x, y, to, said):
    dims = [tuple(x.split()), tuple(y.split())]

    assert spell(["x", "y"], dims, tuple(to.split()), lambda d: str(SIZES[d])) == said


def test_alignment_broadcasts():
    rng = Random(1)
    for _ in range(300):
        to = random_dims(rng, 5)
        x = tuple(rng.sample(to, rng.randint(0, len(to))))
        a = torch.randn([SIZES[d] for d in x])
        want = a.permute([x.index(d) for d in to if d in x])[tuple(slice(None) if d in x else None for d in to)]

        got = eval(align("a", x, to), {"a": a})

        shape = [SIZES[d] for d in to]
        assert torch.equal(got.expand(shape), want.expand(shape)), (x, to)


def random_expression(rng: Random, depth: int) -> str:
    name = rng.choice("abcdefgh") * rng.randint(1, 12) + str(rng.randint(0, 99))
    pick = rng.random()
    if depth == 0 or pick < 0.3:
        return name
    inner = [random_expression(rng, depth - 1) for _ in range(rng.randint(1, 6))]
    if pick < 0.7:
        return call(rng.choice(["f", "torch.add", "torch.ops.aten.gelu_backward"]), *inner)
    return tuple_of(inner) if pick < 0.85 else f"[{', '.join(inner)}]"


def test_lines_are_as_ruff_would_break_them(tmp_path):
    rng, lines = Random(0), Lines()
    for i in range(count(sample=150, soak=600)):
        with lines.indent(f"def function_{i}({', '.join(f'argument_{j}' for j in range(rng.randint(1, 14)))}):"):
            lines.add(f"x = {call('g', *(random_expression(rng, 2) for _ in range(rng.randint(1, 6))))}")
            lines.add(f"return {', '.join(random_expression(rng, 1) for _ in range(rng.randint(1, 6)))}")
        lines.lines += ["", ""]
    path = tmp_path / "lines.py"
    path.write_text(lines.source())

    assert ruff("format", "--diff", "--line-length", "120", path) == ""
