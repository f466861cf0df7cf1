"""Composite ops against torch written by hand, declared derivatives against the derived ones, all in fp64."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.campaign import count
from tests.models import f32, i64
from weft.errors import VerifyError
from weft.ir.builder import Builder
from weft.ir.formula import parse
from weft.ir.library import (
    Attend,
    AttendGrad,
    CrossEntropy,
    Dropout,
    LayerNorm,
    RMSNorm,
    Rotary,
    Route,
    Softmax,
)
from weft.ir.op import Composite, expansion
from weft.ir.pattern import Pattern, holds, layout
from weft.ir.primitives import Grad
from weft.ir.reference import run
from weft.ir.text import parse as read
from weft.ir.text import show
from weft.ir.types import Type
from weft.ir.verify import verify
from weft.passes.derivative import joint

S = {"b": 2, "t": 9, "s": 9, "h": 4, "g": 2, "kv": 2, "e": 4, "d": 6, "c": 2, "one": 1}
EPS = parse("0.00001")
N = count(sample=12, soak=100)


def made(op, *types: Type):
    g = Builder()
    return g.graph(*g.many(op, *(g.input(f"x{i}", t) for i, t in enumerate(types))))


def numbers(graph, seed=0, high=3):
    gen = torch.Generator().manual_seed(seed)
    out = []
    for v in graph.inputs:
        shape = [S[d] for d in v.dims]
        whole = torch.randint(0, high, shape, generator=gen)
        real = torch.randn(shape, generator=gen, dtype=torch.float64)
        out.append(real if v.type.floating else whole > 0 if v.dtype == "bool" else whole)
    return out


def evaluate(graph, args, dtype=torch.float64):
    verify(graph)
    assert read(show(graph)) == graph
    return run(graph, S, args, torch, dtype)


def gradients_match(graph, ref, args):
    """Results and gradients of the joint graph, of the interpreter under autograd, and of `ref`."""
    both = joint(graph)
    leaf = [a.clone().requires_grad_(a.is_floating_point()) for a in args]
    live = [a for a in leaf if a.requires_grad]
    want = ref(*leaf)
    want = want if isinstance(want, tuple) else (want,)
    gen = torch.Generator().manual_seed(3)
    seeds = [torch.randn(w.shape, generator=gen, dtype=w.dtype) for w in want]
    expected = (*want, *torch.autograd.grad(want, live, seeds, allow_unused=True, materialize_grads=True))
    got = evaluate(both, [*args, *seeds])
    for w, g in zip(expected, got, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-10)
    out = run(graph, S, leaf, torch, torch.float64)
    auto = torch.autograd.grad(out, live, seeds, allow_unused=True, materialize_grads=True)
    for w, g in zip(expected[len(want) :], auto, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-10)


def test_softmax():
    graph = made(Softmax("t"), f32("b t d"))
    gradients_match(graph, lambda x: x.softmax(1), numbers(graph))


@pytest.mark.parametrize("affine", [0, 1, 2])
def test_layer_norm(affine):
    graph = made(LayerNorm("d", EPS), f32("b t d"), *[f32("d")] * affine)
    gradients_match(graph, lambda x, *wb: F.layer_norm(x, (S["d"],), *wb), numbers(graph))


@pytest.mark.parametrize("affine", [0, 1])
def test_rms_norm(affine):
    graph = made(RMSNorm("d", EPS), f32("b t d"), *[f32("d")] * affine)
    gradients_match(graph, lambda x, *w: F.rms_norm(x, (S["d"],), *w, eps=1e-5), numbers(graph))


@pytest.mark.parametrize("op", [Softmax("d"), LayerNorm("d", EPS), RMSNorm("d", EPS)])
def test_statistics_are_fp32_under_half_precision(op):
    graph = made(op, Type("bf16", ("b", "t", "d")))
    assert graph.outputs[0].dtype == "bf16"
    x = (numbers(graph)[0] * 30).bfloat16()
    got = run(graph, S, [x], torch)[0]
    torch.testing.assert_close(got, run(graph, S, [x.double()], torch, torch.float64)[0].bfloat16(), rtol=0, atol=0)


def test_norm_refuses_more_operands():
    with pytest.raises(VerifyError, match="takes x, w and b"):
        made(LayerNorm("d", EPS), f32("b d"), *[f32("d")] * 3)


SCORES = {
    "plain": ("s", lambda s, q, k, h: s),
    "soft cap": ("5*tanh(s/5)", lambda s, q, k, h: 5 * torch.tanh(s / 5)),
    "alibi": ("s + (i_k - i_q)/(2 + 2*i_h)", lambda s, q, k, h: s + (k - q).double() / (2 + 2 * h)),
}
PATTERNS = (
    "causal", "all", "q % 3 == 1 and k <= q", "window(3) or k < 2", "strict_causal",
    "k <= q and (h % 2 == 0 or q - k < 2)",
    "same_segment and causal", "valid", "blocks(3, [all, [0, 1, 1], [2, 2, 2]])", "bigbird(2, 1, 5)",
    "causal and not same_segment", "causal and blocks(3, [[0], [], [0, 2, 2]], [[0, 0], [1], [1]])",
)


def attend_torch(pattern, scale, score, grouped):
    """Masks from the pattern's own meaning, weights multiplicity * exp(score), rows without keys 0."""

    def ref(q, k, v, segments, valid):
        i, j = torch.arange(S["t"])[:, None], torch.arange(S["s"])[None]
        if grouped:  # b t kv g e and b s kv e
            q, k, v = q.flatten(2, 3), k.repeat_interleave(S["g"], 2), v.repeat_interleave(S["g"], 2)
        s = torch.einsum("bthe,bshe->bhts", q, k) * scale
        columns = []
        for h in range(S["h"]):
            meta = {"segments": (segments[:, :, None], segments[:, None]), "valid": (valid[:, :, None], valid[:, None])}
            head = torch.tensor(h)
            times = holds(pattern, i, j, head, meta, torch, n=S["t"]) * 1.0
            x = score(s[:, h], i, j, h)
            top = torch.where(times > 0, x, -torch.inf).amax(-1, keepdim=True).clamp(min=-1e30).detach()
            w = times * torch.exp(torch.where(times > 0, x - top, 0))
            total = w.sum(-1, keepdim=True)
            columns.append((w / total.clamp(min=1e-300)) @ v[:, :, h])
        out = torch.stack(columns, 2)
        return out.unflatten(2, (S["kv"], S["g"])) if grouped else out

    return ref


def attend(pattern, score="s", grouped=False):
    op = Attend(
        "e", "s", "t", Pattern.parse(pattern, {"seq": S["t"]}), parse("1/sqrt(n_e)"), parse(score),
        ("kv", "g") if grouped else ("h",), ("segments", "valid"),
    )
    q, kv = ("b t kv g e", "b s kv e") if grouped else ("b t h e", "b s h e")
    g = Builder()
    x = [g.input(n, f32(d)) for n, d in (("q", q), ("k", kv), ("v", kv))]
    x += [g.input("segments", i64("b t")), g.input("valid", Type("bool", ("b", "s")))]
    return op, g.graph(g.many(op, *x)[0])


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_attend(pattern, score, grouped):
    op, graph = attend(pattern, SCORES[score][0], grouped)
    gradients_match(graph, attend_torch(op.pattern, 0.5, SCORES[score][1], grouped), numbers(graph, seed=len(pattern)))


@pytest.mark.parametrize("pattern", ["causal", "q % 3 == 1 and k <= q", "blocks(3, [[0, 0, 1], [], [2]])"])
def test_the_declared_derivative_is_the_derived_one(pattern):
    op, graph = attend(pattern, "5*tanh(s/5)")
    g = Builder()
    x = [g.input(v.name, v.type) for v in graph.inputs]
    out, lse = g.many(op, *x)
    do = g.input("do", out.type)
    declared = g.many(AttendGrad(op), *x[:3], out, lse, do, *x[3:])
    derived = g.many(Grad(op, len(x), (True, False)), *x, do)
    got = evaluate(g.graph(*declared, *derived), numbers(g.graph(out)))
    for a, b in zip(got[:3], got[3:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_a_cotangent_of_lse_uses_the_derived_derivative():
    op, graph = attend("q != 4 and k <= q")
    g = Builder()
    x = [g.input(v.name, v.type) for v in graph.inputs]
    out, lse = g.many(op, *x)
    finite = g.map("where(l < 1000, l, 0)", l=lse)
    graph = g.graph(out, finite)
    args = numbers(graph)

    def ref(q, k, v, segments, valid):
        seen = torch.ones(S["t"], S["s"]).tril().bool() & (torch.arange(S["t"]) != 4)[:, None]
        s = (torch.einsum("bthe,bshe->bhts", q, k) / 2).masked_fill(~seen, -1e9)
        lse = s.logsumexp(-1) * (torch.arange(S["t"]) != 4)
        out = torch.einsum("bhts,bshe->bthe", s.softmax(-1) * seen, v)
        return out, lse.transpose(1, 2)

    gradients_match(graph, ref, args)


def test_rows_that_see_nothing():
    op, graph = attend("k < q - 2")
    args = numbers(graph)
    g = Builder()
    x = [g.input(v.name, v.type) for v in graph.inputs]
    out, lse = evaluate(g.graph(*g.many(op, *x)), args)
    assert (out[:, :3] == 0).all()
    assert (lse[:, :3] == torch.inf).all()
    assert lse[:, 3:].isfinite().all()
    both = evaluate(joint(graph), [*args, torch.ones_like(out)])
    assert all(v.isfinite().all() for v in both)
    assert (both[1][:, :3] == 0).all()


def test_a_multiset_weighs_by_multiplicity():
    _, graph = attend("blocks(3, [[0, 0, 1], [1], [2]])")
    q, k, v, *meta = numbers(graph)
    out = evaluate(graph, [q * 0, k, v, *meta])[0]
    mean = (2 * v[:, :3].sum(1) + v[:, 3:6].sum(1)) / 9
    torch.testing.assert_close(out[:, :3], mean[:, None].expand(-1, 3, -1, -1))


def test_positions_replace_coordinates():
    """A step at position 5 over a cache equals row 5 of the whole."""
    op, graph = attend("window(4) and h % 2 == 0 or k <= q", "s + (i_k - i_q)/4")
    args = numbers(graph)
    want = evaluate(graph, args)[0][:, 5:6]
    g = Builder()
    step = Attend("e", "s", "one", op.pattern, op.scale, op.score, ("h",), ("query_at", "key_at"))
    ins = [g.input("q", f32("b one h e")), *(g.input(n, f32("b s h e")) for n in "kv")]
    ins += [g.input("at", i64("one")), g.input("key_at", i64("s"))]
    order = torch.randperm(S["s"], generator=torch.Generator().manual_seed(1))
    k, v = (x[:, order] for x in args[1:3])
    got = evaluate(g.graph(g.many(step, *ins)[0]), [args[0][:, 5:6], k, v, torch.tensor([5]), order])[0]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_a_layout_rides_along():
    """A choice of how, not of what: it is part of the text and not of the result."""
    op, graph = attend("window(3)")
    chosen = replace(op, layout=layout(op.pattern, S["t"], 3))
    g = Builder()
    x = [g.input(v.name, v.type) for v in graph.inputs]
    placed = g.graph(g.many(chosen, *x)[0])
    args = numbers(graph)
    assert placed != graph
    both = joint(placed)
    assert read(show(both)) == both
    assert any(isinstance(n.op, AttendGrad) and n.op.of.layout == chosen.layout for n in both.nodes)
    assert torch.equal(evaluate(placed, args)[0], evaluate(graph, args)[0])


def test_attend_names_what_it_misses():
    q, k = f32("b t h e"), f32("b s h e")
    causal = Pattern.parse("causal")
    with pytest.raises(VerifyError, match="segments"):
        made(Attend("e", "s", "t", Pattern.parse("same_segment"), parse("1")), q, k, k)
    with pytest.raises(VerifyError, match="metadata"):
        made(Attend("e", "s", "t", causal, parse("1"), meta=("when",)), q, k, k, i64("b t"))
    with pytest.raises(VerifyError, match="lack"):
        made(Attend("e", "s", "time", causal, parse("1")), q, k, k)
    assert Attend("e", "s", "t", causal, parse("1"), heads="h").heads == ("h",)


def test_attention_in_half_precision_keeps_fp32_statistics():
    _, graph = attend("causal")
    half = [Type("bf16", v.dims) if v.type.floating else v.type for v in graph.inputs]
    g = Builder()
    out, lse = g.many(graph.nodes[0].op, *(g.input(f"x{i}", t) for i, t in enumerate(half)))
    assert (out.dtype, lse.dtype) == ("bf16", "f32")
    args = [a.bfloat16() if a.is_floating_point() else a for a in numbers(graph)]
    got = run(g.graph(out), S, args, torch)[0]
    want = run(g.graph(out), S, args, torch, torch.float64)[0]
    torch.testing.assert_close(got.double(), want, rtol=2**-8, atol=1e-3)



@pytest.mark.parametrize("ignore", [None, 1, -100])
def test_cross_entropy(ignore):
    graph = made(CrossEntropy("d", ignore), f32("b d t"), i64("b t"))
    args = numbers(graph)
    args[1][0, :2] = -100 if ignore == -100 else args[1][0, :2]
    other = -1 if ignore is None else ignore
    gradients_match(graph, lambda x, y: F.cross_entropy(x, y, reduction="none", ignore_index=other), args)


def test_dropout_is_one_function_of_the_global_index():
    op = Dropout(parse("0.25"), 3)
    graph = made(op, f32("b t d"), i64(), i64())
    x = torch.ones(S["b"], S["t"], S["d"], dtype=torch.float64)
    seed, layer = torch.tensor(11), torch.tensor(2)
    got = evaluate(graph, [x, seed, layer])[0]
    assert set(got.unique().tolist()) == {0.0, 1 / 0.75}
    twin = made(op, f32("b t d"), i64(), i64())
    assert torch.equal(evaluate(twin, [x, seed, layer])[0], got)
    for other in ((x, torch.tensor(12), layer), (x, seed, torch.tensor(3))):
        assert not torch.equal(evaluate(graph, other)[0], got)
    gradients_match(graph, lambda x, s, i: x * (got > 0) / 0.75, [x, seed, layer])
    big = run(twin, {"b": 40, "t": 50, "d": 20}, [torch.ones(40, 50, 20), seed, layer], torch)
    assert abs((big[0] > 0).float().mean() - 0.75) < 0.01


def test_dropout_shared_over_time():
    graph = made(Dropout(parse("0.5"), 3, shared=("t",)), f32("b t d"), i64(), i64())
    got = evaluate(graph, [torch.ones(S["b"], S["t"], S["d"]), torch.tensor(1), torch.tensor(0)])[0]
    assert (got == got[:, :1]).all()
    assert 0 < (got > 0).double().mean() < 1


def rotary_torch(x, at, r, theta, style):
    """The usual cos, sin and rotate_half (or pairs of neighbours), on the first r of the last dim."""
    angle = at[..., None] * theta ** (-torch.arange(0, r, 2, dtype=torch.float64) / r)
    angle = torch.cat([angle, angle], -1) if style == "half" else angle.repeat_interleave(2, -1)
    y, rest = x[..., :r], x[..., r:]
    if style == "half":
        turned = torch.cat([-y[..., r // 2 :], y[..., : r // 2]], -1)
    else:
        turned = torch.stack([-y[..., 1::2], y[..., ::2]], -1).flatten(-2)
    return torch.cat([y * angle.cos()[:, None] + turned * angle.sin()[:, None], rest], -1)


@pytest.mark.parametrize("fraction", ["1", "1/2"])
@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_rotary(style, fraction):
    graph = made(Rotary("t", "e", parse("10000"), style, parse(fraction)), f32("t h e"))
    r = int(S["e"] * eval(fraction))
    at = torch.arange(S["t"], dtype=torch.float64)
    gradients_match(graph, lambda x: rotary_torch(x, at, r, 10000.0, style), numbers(graph))
    moved = made(Rotary("t", "e", parse("500000"), style, parse(fraction)), f32("t h e"), i64("t"))
    x, _ = numbers(moved)
    at = torch.arange(S["t"]) * 7 + 3
    gradients_match(moved, lambda x, at: rotary_torch(x, at.double(), r, 5e5, style), [x, at])



def route_by_hand(logits, k, start):
    """Python loops over tokens: experts by (-logit, index), places in the order of the tokens."""
    b, t, n = logits.shape
    expert, place = torch.zeros(b, t, k, dtype=torch.long), torch.zeros(b, t, k, dtype=torch.long)
    counts = start.clone()
    for i in range(b):
        for j in range(t):
            order = sorted(range(n), key=lambda e: (-logits[i, j, e].item(), e))[:k]
            for c, e in enumerate(order):
                expert[i, j, c], place[i, j, c] = e, counts[i, e]
            for e in order:
                counts[i, e] += 1
    return expert, place, counts


@pytest.mark.parametrize("seed", range(N))
def test_routes_with_ties(seed):
    gen = torch.Generator().manual_seed(seed)
    k = 1 + seed % 3
    logits = torch.randint(0, 3, (S["b"], S["t"], S["h"]), generator=gen).double()  # few values: many ties
    start = torch.randint(0, 3, (S["b"], S["h"]), generator=gen)
    graph = made(Route("h", "t", k, choice="c", z_loss=True), f32("b t h"), i64("b h"))
    sizes = S | {"c": k}
    expert, place, gate, aux, counts, z = run(graph, sizes, [logits, start], torch, torch.float64)
    want = route_by_hand(logits, k, start)
    for a, b in zip((expert, place, counts), want, strict=True):
        assert torch.equal(a, b)
    p = logits.softmax(-1)
    torch.testing.assert_close(gate, p.gather(-1, expert))
    f = F.one_hot(expert, S["h"]).sum(2).double().mean(1)
    torch.testing.assert_close(aux, S["h"] * (f * p.mean(1)).sum(-1).mean())
    torch.testing.assert_close(z, logits.logsumexp(-1).square().mean())


def test_a_route_continues_where_it_stopped():
    op = Route("h", "t")
    graph = made(op, f32("b t h"), i64("b h"))
    logits = numbers(graph)[0]
    none = torch.zeros(S["b"], S["h"], dtype=torch.long)
    whole = run(graph, S, [logits, none], torch, torch.float64)
    first = run(graph, S | {"t": 4}, [logits[:, :4], none], torch, torch.float64)
    second = run(graph, S | {"t": 5}, [logits[:, 4:], first[4]], torch, torch.float64)
    for i in (0, 1, 2):
        torch.testing.assert_close(torch.cat([first[i], second[i]], 1), whole[i])
    assert torch.equal(second[4], whole[4])


def test_routing_refuses_half_precision_and_nameless_choices():
    with pytest.raises(VerifyError, match="fp32"):
        made(Route("h", "t"), Type("bf16", ("b", "t", "h")))
    with pytest.raises(VerifyError, match="choices"):
        made(Route("h", "t", 2), f32("b t h"))


EVERY: dict[str, tuple[Composite, tuple[Type, ...]]] = {
    "softmax": (Softmax("d"), (f32("b t d"),)),
    "layer_norm": (LayerNorm("d", EPS), (f32("b t d"), f32("d"), f32("d"))),
    "rms_norm": (RMSNorm("d", EPS), (f32("b t d"), f32("d"))),
    "cross_entropy": (CrossEntropy("d"), (f32("b d"), i64("b"))),
    "dropout": (Dropout(parse("0.1"), 1), (f32("b d"), i64(), i64())),
    "rotary": (Rotary("t", "e"), (f32("b t h e"),)),
}


@pytest.mark.parametrize("name", EVERY)
def test_half_precision_in_half_precision_out(name):
    """Gradients have the dtype of their operand, whatever is computed in between."""
    op, types = EVERY[name]
    half = tuple(Type("f16", t.dims) if t.floating else t for t in types)
    both = joint(made(op, *half))
    verify(both)
    assert [v.dtype for v in both.outputs[1:]] == ["f16" for t in half if t.floating]
    assert expansion(op, half).outputs[0].dtype == ("f32" if name == "cross_entropy" else "f16")


def test_large_arguments_stay_finite():
    for op, shape in ((Softmax("d"), "b d"), (LayerNorm("d", EPS), "b d"), (RMSNorm("d", EPS), "b d")):
        graph = joint(made(op, f32(shape)))
        x = torch.tensor([[1e4, -1e4, 0, 1, 2, 3], [-1e4] * 6])
        assert all(v.isfinite().all() for v in run(graph, S, [x, torch.ones(2, 6)], torch))
    _, graph = attend("k < q", "5*tanh(s/5) + s")
    big = [a.float() * 100 if a.is_floating_point() else a for a in numbers(graph)]
    big += [torch.ones(S["b"], S["t"], S["h"], S["e"])]
    assert all(v.isfinite().all() for v in run(joint(graph), S, big, torch))
    graph = joint(made(CrossEntropy("d"), f32("b d"), i64("b")))
    args = [torch.tensor([[1e4, -1e4, 0, 1, 2, 3], [-1e4] * 6]), torch.tensor([1, 2]), torch.ones(2)]
    loss, _ = run(graph, S, args, torch)
    torch.testing.assert_close(loss, torch.tensor([2e4, math.log(6)]))
