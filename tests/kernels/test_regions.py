"""Regions of generated graphs: from formula to interpreted kernels, forward and backward, equal to autograd."""

from math import prod
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.campaign import count
from tests.ir.generate import random_formula, random_graph
from tests.kernels.attention_cases import patterns
from tests.kernels.emitted import Emitted, check
from weft.codegen.skeletons.common import host
from weft.codegen.skeletons.common.writer.wrapper import Why
from weft.codegen.skeletons.cross_entropy.writer.space import LONG
from weft.ir.builder import Builder
from weft.ir.formula import parse
from weft.ir.library import Attend, CrossEntropy, Dropout, LayerNorm, RMSNorm, Softmax, WithStatistics
from weft.ir.pattern import Pattern
from weft.ir.types import Graph, Type

EPS = parse("0.00001")
ONCE_WRONG = (20, 65, 113, 158, 168)
"""Seeds of graphs that had a kernel which did not run or was wrong: read what only another hole has; a scalar compared
with a block; a dim beside its new name; sums spread over rows again; an axis of one with a stride of its own."""


def draw(graph: Graph, sizes: dict[str, int], seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    """Inputs of a graph: floats that fp32 holds exactly."""
    g = torch.Generator().manual_seed(seed)
    out: dict[str, Tensor] = {}
    for v in graph.inputs:
        shape = [sizes[d] for d in v.dims]
        if v.type.floating:
            out[v.name] = torch.randn(shape, generator=g) * scale
        elif v.dtype == "bool":
            out[v.name] = torch.rand(shape, generator=g) > 0.3
        else:
            out[v.name] = torch.randint(0, 3, shape, generator=g)
    return out


# -- operands ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(count(20, 500)))
def test_operands_of_any_strides(seed):
    """A group of axes is walked by its one stride, or the tensor is copied; axes of one may have any stride."""
    rng = Random(seed)
    shape = [rng.choice((1, 1, 2, 3)) for _ in range(rng.randint(1, 4))]
    strides = [rng.choice((1, 2, 3, 6, 7)) for _ in shape] if rng.random() < 0.5 else list(torch.empty(shape).stride())
    strides = [rng.choice((n, n, 2 * n, 5)) for n in strides]
    store = torch.arange(sum((n - 1) * s for n, s in zip(shape, strides)) + 1)
    x = store.as_strided(shape, strides)
    cut = rng.randint(0, len(shape))
    groups = tuple(g for g in (tuple(range(cut)), tuple(range(cut, len(shape)))) if g)
    y, steps = host.strided(x, *groups, None)

    assert steps[-1] == 0
    assert torch.equal(x, y)
    sizes = [prod(shape[a] for a in g) for g in groups]
    assert torch.equal(y.as_strided(sizes, steps[:-1]).reshape(shape), x)


# -- recurrent cells ---------------------------------------------------------------------------------------------------


def cell(seed: int) -> tuple[Graph, dict[str, int]]:
    """A loop over a random elementwise cell: states, inputs per step, parameters per channel, per lane or per batch."""
    rng = Random(seed)
    sizes = {"batch": rng.choice((1, 2, 3)), "seq": rng.choice((1, 2, 5, 9)), "channels": rng.choice((1, 3, 17))}
    g = Builder()
    states = [f"s{j}" for j in range(rng.choice((1, 1, 2)))]
    steps = [f"x{j}" for j in range(rng.choice((1, 2, 3)))]
    params = [f"p{j}" for j in range(rng.choice((0, 1, 2)))]
    lanes = ("batch", "channels")
    init = [
        g.input(f"init{j}", Type("f32", lanes)) if rng.random() < 0.4 else g.map("0", to=lanes, dtype="f32")
        for j in range(len(states))
    ]
    order = rng.choice((("batch", "seq", "channels"), ("seq", "batch", "channels")))
    outer = [g.input(x, Type("f32", order)) for x in steps]
    outer += [g.input(p, Type("f32", rng.choice((("channels",), lanes, ("batch",))))) for p in params]
    if rng.random() < 0.3:  # a map ahead of the loop, per step
        outer[0] = g.map("gelu(x)", x=outer[0], dtype="f32")
    b = Builder()
    inner = {n: b.input(n, Type("f32", lanes)) for n in states}
    inner |= {
        n: b.input(n, Type("f32", tuple(d for d in v.dims if d != "seq"))) for n, v in zip([*steps, *params], outer)
    }
    names = [*states, *steps, *params]
    lets: dict[str, Any] = {"f": f"sigmoid({random_formula(rng, rng.sample(names, min(3, len(names))), 1)})"}
    used = {n for n in names if n in lets["f"]}
    mix = [f"f*{s} + (1 - f)*tanh({random_formula(rng, [s, *rng.sample(steps, 1)], 2)})" for s in states]
    rest = [n for n in names if n not in used and n not in "".join(mix)]
    y = random_formula(rng, [rng.choice(states), *rest], 1)
    made = b.maps([*mix, y], inner, let=lets, to=lanes)
    reverse = rng.random() < 0.3
    out = g.loop("seq", b.graph(*made), len(states), *init, *outer, reverse=reverse)
    stacked = out[len(states)]
    if rng.random() < 0.4:  # and one after it
        stacked = g.map("y*sigmoid(x)", y=stacked, x=outer[0], to=order, dtype="f32")
    return g.graph(stacked, *(out[:1] if rng.random() < 0.5 else ())), sizes


@pytest.mark.parametrize("seed", range(count(8, 320)))
def test_cells(seed):
    graph, sizes = cell(seed)
    made = Emitted(graph, sizes, runtime=(), keep=seed % 3 > 0)

    assert check(made, draw(graph, sizes, seed)) < 1e-10
    assert check(made, draw(graph, sizes, seed), torch.float32) < 1e-5
    assert {r.kernel for r in made.rows if r.region.skeleton == "scan"} - {"torch"}
    assert [r for r in made.rows if r.region.skeleton == "scan" and r.kernel == "torch"] == []


# -- attention: masks and scores ---------------------------------------------------------------------------------------

SCORES = (
    "s",
    "5*tanh(s/5)",
    "s - abs(i_q - i_k)/(1 + i_h)/8",
    "s*sigmoid(s)",
    "s + where(i_q - i_k > 3, 0.5, -0.25)",
    "max(s, 0.1*s)",
    "s/(1 + s**2/50) + cos(i_q - i_k)",
    "s - softplus(s)/2",
)


def attention(seed: int) -> tuple[Graph, dict[str, int], str]:
    """An Attend with a random pattern, score, grouping and sizes."""
    rng = Random(seed)
    kinds = [k for k in patterns(rng) if k not in ("ahead",)]
    kind = kinds[seed % len(kinds)]
    pattern = Pattern.parse(patterns(rng)[kind])
    square = kind not in ("all", "lag", "band", "columns")
    n = rng.choice((1, 7, 16, 33, 64, 65)) if "bl" not in kind and kind != "bigbird" else 64
    sizes = {"batch": rng.choice((1, 2)), "seq": n, "key": n if square or rng.random() < 0.5 else rng.randint(1, 50)}
    sizes |= {"kv": rng.choice((1, 2)), "group": rng.choice((1, 2)), "head": rng.choice((16, 24)), "own": 16}
    meta = ("segments",) if kind == "segments" else ()
    score = rng.choice(SCORES) if not pattern.multiset else "s"
    g = Builder()
    q = g.input("q", Type("f32", ("batch", "seq", "kv", "group", "head")))
    k = g.input("k", Type("f32", ("batch", "key", "kv", "head")))
    v = g.input("v", Type("f32", ("batch", "key", "kv", "own")))
    more = [g.input("segments", Type("i64", ("batch", "seq")))] if meta else []
    if Random(f"{seed}, sinks").random() < 0.4:
        meta, more = (*meta, "sinks"), [*more, g.input("sinks", Type("f32", ("kv", "group")))]
    if pattern.needs_length:
        pattern = pattern.at(n)
    scale = parse("1/sqrt(n_head)")
    attend = Attend("head", "key", "seq", pattern, scale, parse(score), heads=("kv", "group"), meta=meta)
    out, _ = g.many(attend, q, k, v, *more)
    if rng.random() < 0.3:
        gate = g.input("gate", Type("f32", ("batch", "seq", "kv", "group", "own")))
        out = g.map("o*sigmoid(g) + i_seq/100", o=out, g=gate, to=out.dims, dtype="f32")
    return g.graph(out), sizes, f"{kind}, {score}"


@pytest.mark.parametrize("seed", range(count(8, 210)))
def test_masks_and_scores(seed):
    graph, sizes, _ = attention(seed)
    args = draw(graph, sizes, seed)
    if "segments" in args:
        args["segments"] = (args["segments"] == 0).long().cumsum(-1)
    made = Emitted(graph, sizes, runtime=())

    assert check(made, args) < 1e-10
    assert check(made, args, torch.float32) < 1e-5
    refused = [r for r in made.rows if r.region.skeleton == "attention" and "attention" not in r.kernel]
    assert refused == [], [(r.why, r.region.nodes) for r in refused]


# -- rows and points ---------------------------------------------------------------------------------------------------


def chain(seed: int) -> tuple[Graph, dict[str, int]]:
    """Norms, softmax, losses, dropout, bias and residual in a random order."""
    rng = Random(seed)
    sizes = {"batch": rng.choice((1, 2)), "seq": rng.choice((1, 3, 8)), "width": rng.choice((1, 5, 16, 33))}
    full = ("batch", "seq", "width")
    g = Builder()
    x = g.input("x", Type("f32", full))
    seed_, layer = g.input("seed", Type("i64", ())), g.input("layer", Type("i64", ()))
    vector = lambda name: g.input(name, Type("f32", ("width",)))  # noqa: E731
    for step in range(rng.randint(2, 5)):
        kind = rng.choice(("layer", "rms", "softmax", "dropout", "bias", "act", "residual", "scale", "weights"))
        if kind == "layer":
            x = g.one(LayerNorm("width", EPS), x, *([vector("w"), vector("b")][: rng.randint(0, 2)]))
        elif kind == "rms":
            x = g.one(RMSNorm("width", EPS), x, *([vector("w")] if rng.random() < 0.7 else []))
        elif kind == "softmax":
            x = g.one(Softmax("width"), x)
        elif kind == "dropout":
            shared = ("seq",) if rng.random() < 0.3 else ()
            x = g.one(Dropout(parse("0.25"), step, shared), x, seed_, layer)
        elif kind == "bias":
            x = g.map("gelu_tanh(x + b)", x=x, b=vector("bias"), to=full, dtype="f32")
        elif kind == "act":
            x = g.map(random_formula(rng, ["x"], 2), x=x, dtype="f32")
        elif kind == "residual":
            x = g.map("x + r", x=x, r=g.input("r", Type("f32", full)), dtype="f32")
        elif kind == "scale":
            x = g.map("x*p + i_seq/n_width", x=x, p=g.input("p", Type("f32", ("seq", "batch"))), to=full, dtype="f32")
        else:
            rows = g.einsum(x, g.input("mix", Type("f32", full)), to=("batch", "seq"))
            x = g.map("x*sigmoid(t)", x=x, t=rows, to=full, dtype="f32")
    if rng.random() < 0.3:
        target = g.input("target", Type("i64", ("batch", "seq")))
        return g.graph(g.one(CrossEntropy("width", ignore=rng.choice((None, 2))), x, target)), sizes
    return g.graph(x), sizes


@pytest.mark.parametrize("seed", range(count(10, 300)))
def test_rows_and_points(seed):
    graph, sizes = chain(seed)
    args = draw(graph, sizes, seed)
    if "target" in args:
        args["target"] = args["target"] % sizes["width"]
    made = Emitted(graph, sizes, runtime=("batch", "seq") if seed % 2 else (), keep=seed % 3 > 0)

    assert check(made, args) < 1e-10
    refused = {(r.why, r.region.nodes) for r in made.rows if r.why not in ("", Why.NO_TENSOR, Why.VIEW)}
    assert refused == set()


@pytest.mark.parametrize("after", ["dropout", "shared dropout", "a*i_seq", "a + i_width - i_batch"])
@pytest.mark.parametrize("of", ["sum over rows", "loss", "long loss"])
def test_what_follows_a_reduction_knows_its_place(of, after):
    """A hole without the place of an element in its space tells it from coordinates."""
    dims, sizes = ("batch", "seq", "width"), {"batch": 2, "seq": 3, "width": 4, "choice": 3}
    g = Builder()
    seed, layer = g.input("seed", Type("i64", ())), g.input("layer", Type("i64", ()))
    if "loss" in of:
        dims, sizes["width"] = ("batch", "seq"), LONG + 1 if of == "long loss" else 4
        target = g.input("target", Type("i64", dims))
        a = g.one(CrossEntropy("width"), g.input("x", Type("f32", (*dims, "width"))), target)
        after = after.replace("i_width", "2")
    else:
        x, gate = (g.input(n, Type("f32", ("batch", "seq", "choice", *d))) for n, d in (("x", ("width",)), ("g", ())))
        a = g.einsum(x, gate, to=dims)
    if "dropout" in after:
        y = g.one(Dropout(parse("0.4"), 9, ("seq",) if "shared" in after else ()), a, seed, layer)
    else:
        y = g.map(after, a=a, to=dims, dtype="f32")
    made = Emitted(g.graph(y), sizes)

    assert check(made, draw(made.graph, sizes, 0)) < 1e-10
    assert [r for r in made.rows if r.kernel == "torch"] == []


@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])
def test_norms_of_one_x_have_statistics_of_their_own(norm):
    """As of sub-layers beside each other: the same numbers, and a tensor for each."""
    g, sizes = Builder(), {"batch": 2, "seq": 5, "width": 8}
    x = g.input("x", Type("f32", ("batch", "seq", "width")))
    op = WithStatistics(norm("width", parse("0.01")))
    made = [g.many(op, x, g.input(name, Type("f32", ("width",)))) for name in "uv"]
    one = Emitted(g.graph(*made[0], *made[1]), sizes)

    assert check(one, draw(one.graph, sizes, 0)) < 1e-10
    assert "rowwise" in one.rows[0].kernel


@pytest.mark.parametrize("seed", sorted({*range(count(12, 300)), *ONCE_WRONG}))
def test_any_graph(seed):
    """Whatever the generator makes: regions that a kernel holds are right, the others stay torch ops."""
    graph, sizes = random_graph(Random(seed))
    made = Emitted(graph, sizes, runtime=())
    if not any(v.type.floating for v in graph.outputs) or not made.rows:
        return
    assert check(made, draw(graph, sizes, seed, 0.7)) < 1e-9
