"""Attention under patterns against torch written by hand, its declared derivative against the derived one, in fp64."""

from dataclasses import replace

import pytest
import torch

from tests.ir.composites import S, evaluate, gradients_match, made, numbers
from tests.models import f32, i64
from weft.errors import VerifyError
from weft.ir.builder import Builder
from weft.ir.composite import Grad
from weft.ir.formula import parse
from weft.ir.library import Attend, AttendGrad
from weft.ir.pattern import Pattern, holds, layout
from weft.ir.reference import run
from weft.ir.text import parse as read
from weft.ir.text import show
from weft.ir.types import Type
from weft.passes.derivative import joint

SCORES = {
    "plain": ("s", lambda s, q, k, h: s),
    "soft cap": ("5*tanh(s/5)", lambda s, q, k, h: 5 * torch.tanh(s / 5)),
    "alibi": ("s + (i_k - i_q)/(2 + 2*i_h)", lambda s, q, k, h: s + (k - q).double() / (2 + 2 * h)),
}
PATTERNS = (
    "causal",
    "all",
    "q % 3 == 1 and k <= q",
    "window(3) or k < 2",
    "strict_causal",
    "k <= q and (h % 2 == 0 or q - k < 2)",
    "same_segment and causal",
    "valid",
    "blocks(3, [all, [0, 1, 1], [2, 2, 2]])",
    "bigbird(2, 1, 5)",
    "causal and not same_segment",
    "causal and blocks(3, [[0], [], [0, 2, 2]], [[0, 0], [1], [1]])",
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
        "e",
        "s",
        "t",
        Pattern.parse(pattern, {"seq": S["t"]}),
        parse("1/sqrt(n_e)"),
        parse(score),
        ("kv", "g") if grouped else ("h",),
        ("segments", "valid"),
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


def test_large_scores_stay_finite():
    _, graph = attend("k < q", "5*tanh(s/5) + s")
    big = [a.float() * 100 if a.is_floating_point() else a for a in numbers(graph)]
    big += [torch.ones(S["b"], S["t"], S["h"], S["e"])]
    assert all(v.isfinite().all() for v in run(joint(graph), S, big, torch))
