"""Attention that drops weights: the same bits in every route, against the n x n matrix written by hand, in fp64."""

from dataclasses import replace
from math import ceil

import pytest
import torch

from tests.campaign import some
from tests.codegen.emission import callable_of, source_of
from tests.ir.composites import evaluate, gradients_match
from tests.ir.simulate import simulate
from tests.kernels.emitted import Emitted, check
from tests.models import f32, i64
from weft.codegen.runtime import attention_strips, philox
from weft.codegen.runtime.attention_drop import Dropping
from weft.ir.builder import Builder
from weft.ir.composite import Grad
from weft.ir.formula import parse
from weft.ir.formula.philox import uniform
from weft.ir.library import Attend, AttendGrad
from weft.ir.pattern import Pattern, holds
from weft.ir.reference import run
from weft.ir.types import Type
from weft.passes.derivative import joint

RATE, OP = "3/10", 5
SIZES = {"b": 2, "t": 13, "s": 13, "h": 4, "kv": 2, "g": 2, "e": 4, "r": 6}
PATTERNS = (
    *(
        "causal",
        "all",
        "window(3)",
        "band(2, 1)",
        "causal and strided(3)",
        "causal and fixed(4, 1)",
        "block_diagonal(5)",
    ),
    *("causal and fixed(4, 2)", "columns(4, 1, 2)", "heads(window(2), causal and strided(3), all, causal)", "valid"),
    *("blocks(3, [[0, 1], [1], [2, 0], [3], [4, 2]])", "q % 3 == 1", "rows(2) or k <= q", "q - k > 4", "k == q + 2"),
)


def attend(pattern, grouped=False, score="s", near="", tail=False):
    """The op, and a graph of it alone."""
    heads, keys = ("kv g", "kv") if grouped else ("h", "h")
    meta = (*(("valid",) if "valid" in pattern else ()), *(("near",) if near else ()), "seed", "layer")
    op = Attend(
        "e", "s", "t", Pattern.parse(pattern, {"seq": 13}), parse("1/sqrt(n_e)"), parse(score), heads, meta, tail=tail,
        rate=parse(RATE), op_id=OP,
    )  # fmt: skip
    g = Builder()
    x = [g.input(n, f32(d)) for n, d in (("q", f"b t {heads} e"), ("k", f"b s {keys} e"), ("v", f"b s {keys} e"))]
    types = {
        "valid": Type("bool", ("b", "s")),
        "near": f32(near.replace("h", heads)),
        "seed": i64(""),
        "layer": i64(""),
    }
    return op, g.graph(g.many(op, *x, *(g.input(m, types[m]) for m in meta))[0])


def numbers(graph, sizes=SIZES, seed=0):
    draw = torch.Generator().manual_seed(seed)
    given = {"seed": torch.tensor(2**40 + 77), "layer": torch.tensor(3)}
    out = []
    for v in graph.inputs:
        real = torch.randn([sizes[d] for d in v.dims], generator=draw, dtype=torch.float64)
        out.append(given.get(v.name, real > -0.5 if v.dtype == "bool" else real))
    return out


def by_hand(op, grouped, sizes=SIZES):
    def ref(q, k, v, *rest):
        given = dict(zip(op.meta, rest))
        if grouped:
            q = q.flatten(2, 3)
            k, v = (x.repeat_interleave(sizes["g"], 2) for x in (k, v))
        n, m = sizes["t"], sizes["s"]
        i, j = torch.arange(n)[:, None] + (m - n if op.tail else 0), torch.arange(m)
        meta = {"valid": (given["valid"][:, None],) * 2} if "valid" in given else {}
        s = torch.einsum("bthe,bshe->bhts", q, k) / 2
        if "near" in given:
            gap = (i - j).clamp(0, sizes["r"])
            table = given["near"].flatten(0, -2)
            s = s + torch.where(i >= j, torch.cat([table, table.new_zeros(len(table), 1)], 1)[:, gap], 0)
        index = torch.arange(s.numel()).view(s.shape)
        kept = uniform(given["seed"], OP, given["layer"], index) >= ceil(0.3 * 2**24)
        out = []
        for h in range(s.shape[1]):
            seen = holds(op.pattern, i, j, torch.tensor(h), meta, torch, n=13) * 1.0
            w = seen.expand(sizes["b"], n, -1) * torch.exp(
                5 * torch.tanh(s[:, h] / 5) if op.score != parse("s") else s[:, h]
            )
            p = w / w.sum(-1, keepdim=True).clamp(min=1e-300)
            out.append((p * kept[:, h] / 0.7) @ v[:, :, h])
        out = torch.stack(out, 2)
        return out.unflatten(2, (sizes["kv"], sizes["g"])) if grouped else out

    return ref


@pytest.fixture(autouse=True)
def _sizes(monkeypatch):
    monkeypatch.setattr("tests.ir.composites.S", SIZES)


CASES = [
    *((p, {"grouped": g}) for p in PATTERNS for g in ((False, True) if "heads" not in p else (False,))),
    ("causal", {"score": "5*tanh(s/5)"}),
    ("valid", {"score": "5*tanh(s/5)", "grouped": True}),
    ("causal", {"near": "h r"}),
    ("window(4)", {"near": "h r", "tail": True, "grouped": True}),
]


@pytest.mark.parametrize(("pattern", "more"), some(CASES, 5), ids=str)
def test_every_route_draws_the_same_bits(pattern, more, monkeypatch):
    """The interpreter and the emitted function, whole and in strips, give what the matrix gives; gradients too."""
    op, graph = attend(pattern, **more)
    args = numbers(graph)
    gradients_match(graph, by_hand(op, more.get("grouped", False)), args)
    both = joint(graph)
    args = numbers(both, seed=3)
    want = evaluate(both, args)
    source = source_of(both, SIZES, ("b", "t", "s"))
    assert "attention.Dropping(0.3, 5)" in source
    fn = callable_of(source)
    for pairs in (attention_strips.PAIRS_AT_ONCE, 64):
        monkeypatch.setattr(attention_strips, "PAIRS_AT_ONCE", pairs)
        for a, b in zip(fn(*args), want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        shapes = fn(*(x.to("meta") for x in args))
        assert [x.shape for x in shapes] == [x.shape for x in want]


@pytest.mark.parametrize(
    ("pattern", "more"),
    some([*CASES[:6], ("causal and fixed(4, 2)", {}), (PATTERNS[9], {}), *CASES[-4:-2]], 2),
    ids=str,
)
def test_kernels_draw_the_same_bits(pattern, more):
    """Forward and both kernels of the backward, at lengths and samples that are open."""
    _, graph = attend(pattern, **more)
    emitted = Emitted(graph, SIZES, ("b", "t", "s"))
    args = {v.name: x for v, x in zip(graph.inputs, numbers(graph))}
    assert check(emitted, args) < 1e-10
    assert {r.kernel.split("_")[1] for r in emitted.rows} == {"attention"}


def test_a_fault_in_the_bits_shows(monkeypatch):
    """A strip whose rows, keys or heads are counted from its own first gives another matrix."""
    _, graph = attend("causal and strided(3)")
    both = joint(graph)
    args = numbers(both)
    want, fn = evaluate(both, args), callable_of(source_of(both, SIZES, ("t", "s")))
    places = attention_strips.Span.places
    monkeypatch.setattr(attention_strips.Span, "places", lambda s, d: places(replace(s, start=0), d))
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(fn(*args), want, strict=True))


def test_the_declared_derivative_is_the_derived_one():
    op, graph = attend("causal", score="5*tanh(s/5)")
    g = Builder()
    x = [g.input(v.name, v.type) for v in graph.inputs]
    out, lse = g.many(op, *x)
    do = g.input("do", out.type)
    declared = g.many(AttendGrad(op), *x[:3], out, lse, do, *x[3:])
    derived = g.many(Grad(op, len(x), (True, False)), *x, do)
    got = evaluate(g.graph(*declared, *derived), numbers(g.graph(out)))
    for a, b in zip(got[:3], got[3:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_ranks_that_share_heads_or_samples_draw_the_same_bits():
    _, graph = attend("window(3)")
    both = joint(graph)
    args = numbers(both)
    for dims in ("h", "b"):
        got, _ = simulate(both, {"x": (dims,)}, [2], SIZES, args, torch, torch.float64)
        for a, b in zip(got, evaluate(both, args), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_how_often_a_pair_is_kept():
    """Of 2**20 bits as many as the rate says, within five deviations, in rows and in keys alike; at any index."""
    n = 1 << 10
    q = torch.zeros(1, 1, n, 1)
    bits = Dropping(0.1, 1).by(torch.tensor(9), 2).over(q, q)
    assert bits is not None
    zero = torch.zeros((), dtype=torch.int64)
    left = bits.along(zero, zero, torch.arange(n), zero, n, torch.float32)
    kept = (left > 0).double()
    assert left.unique().tolist() == [0, torch.tensor(1 / 0.9).item()]
    assert abs(kept.mean() - 0.9) < 5 * (0.09 / n**2) ** 0.5
    assert ((kept.mean(0) - 0.9).abs() < 6 * (0.09 / n) ** 0.5).all()
    assert ((kept.mean(1) - 0.9).abs() < 6 * (0.09 / n) ** 0.5).all()
    far = torch.tensor([2**31 - 2, 2**33 + 5, 2**62 + 3])
    runs = philox.keep_along(far, 9, 0.1, 9, 1, 2)
    assert torch.equal(runs, philox.keep_at(far[:, None] + torch.arange(9), 0.1, 9, 1, 2))
    assert torch.equal(runs, uniform(9, 1, 2, far[:, None] + torch.arange(9)) >= ceil(0.1 * 2**24))


def test_nothing_is_dropped_without_a_seed_nor_in_a_step():
    op, graph = attend("causal")
    args = numbers(graph)
    plain = replace(op, meta=(), rate=parse("0"), op_id=0)
    g = Builder()
    want = run(g.graph(g.many(plain, *(g.input(v.name, v.type) for v in graph.inputs[:3]))[0]), SIZES, args[:3], torch,
               torch.float64)  # fmt: skip
    fn = callable_of(source_of(graph, SIZES, ("t", "s")))
    torch.testing.assert_close(fn(*args[:3], None, args[4])[0], want[0], rtol=1e-12, atol=1e-12)
    node = graph.nodes[0]
    assert node.op.untrained(node).op == plain
