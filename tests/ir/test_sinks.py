"""Attention with a sink for each head, a logit without a value, against torch written by hand, in fp64."""

from dataclasses import replace

import pytest
import torch

import weft
from tests.codegen.emission import callable_of, source_of
from tests.ir.composites import evaluate, gradients_match, numbers
from tests.models import f32, i64
from weft.errors import VerifyError
from weft.ir import library
from weft.ir.builder import Builder
from weft.ir.composite import Grad
from weft.ir.formula import parse
from weft.ir.pattern import Pattern, holds
from weft.ir.reference import run
from weft.ir.text import parse as read
from weft.ir.text import show
from weft.passes.derivative import joint

SIZES = {"b": 2, "t": 7, "s": 7, "h": 4, "e": 4, "r": 7, "kv": 2, "g": 2}
PATTERNS = ("causal", "window(3)", "q > 2 and k <= q", "causal and (window(2) or strided(3))", "heads(all, window(2))")


def attend(pattern, grouped=False, near=False, score="s"):
    heads, keys = ("kv g", "kv") if grouped else ("h", "h")
    meta = ("near", "sinks") if near else ("sinks",)
    op = library.Attend("e", "s", "t", Pattern.parse(pattern, {"seq": 7}), parse("1/2"), parse(score), heads, meta)
    g = Builder()
    x = [g.input(n, f32(d)) for n, d in (("q", f"b t {heads} e"), ("k", f"b s {keys} e"), ("v", f"b s {keys} e"))]
    x += [g.input("near", f32(f"{heads} r"))] if near else []
    return op, g.graph(g.many(op, *x, g.input("sinks", f32(heads)))[0])


def by_hand(op, grouped):
    """Softmax over scores and one column more, which is then left out."""

    def ref(q, k, v, *rest):
        *near, z = rest
        if grouped:
            q, z = q.flatten(2, 3), z.flatten()
            k, v = (x.repeat_interleave(SIZES["g"], 2) for x in (k, v))
            near = [x.flatten(0, 1) for x in near]
        n, heads = SIZES["t"], q.shape[2]
        i, j = torch.arange(n)[:, None], torch.arange(n)
        s = torch.einsum("bthe,bshe->bhts", q, k) / 2
        if near:
            s = s + torch.where(i >= j, near[0][:, (i - j).clamp(min=0)], 0)
        s = s if op.score == parse("s") else 3 * torch.tanh(s / 3)
        seen = torch.stack(
            [torch.as_tensor(holds(op.pattern, i, j, h, {}, torch, n=n)).expand(n, n) for h in range(heads)]
        )
        s = torch.where(seen, s, -torch.inf)
        p = torch.cat([s, z[None, :, None, None].expand(*s.shape[:3], 1)], -1).softmax(-1)[..., :-1]
        out = torch.einsum("bhts,bshe->bthe", p, v)
        return out.unflatten(2, (SIZES["kv"], SIZES["g"])) if grouped else out

    return ref


@pytest.fixture(autouse=True)
def _sizes(monkeypatch):
    monkeypatch.setattr("tests.ir.composites.S", SIZES)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_sink_for_each_head(pattern, grouped):
    """Interpreted and printed, forward and backward."""
    for near, score in ((False, "s"), (True, "3*tanh(s/3)")):
        op, graph = attend(pattern, grouped, near, score)
        args = numbers(graph, seed=len(pattern))
        gradients_match(graph, by_hand(op, grouped), args)
        both = joint(graph)
        more = numbers(both, seed=3)
        for a, b in zip(callable_of(source_of(both, SIZES, ("b",)))(*more), evaluate(both, more), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_the_declared_derivative_is_the_derived_one():
    op, graph = attend("causal", near=True)
    g = Builder()
    x = [g.input(v.name, v.type) for v in graph.inputs]
    out, lse = g.many(op, *x)
    do, dlse = g.input("do", out.type), g.input("dlse", lse.type)
    declared = op.vjp(g, tuple(x), (out, lse), (do, None))
    derived = g.many(Grad(op, len(x), (True, False)), *x, do)
    both = g.many(Grad(op, len(x), (True, True)), *x, do, dlse)
    got = evaluate(g.graph(*declared, *derived, *both), numbers(g.graph(out)))
    assert any(isinstance(n.op, library.AttendGrad) and "sinks" not in n.op.of.meta for n in g.nodes)
    for a, b in zip(got[:5], got[5:10], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    assert not any(torch.allclose(a, b) for a, b in zip(got[5:7], got[10:12], strict=True))


def test_text_and_refusals():
    op, graph = attend("causal", grouped=True)
    assert read(show(graph)) == graph
    g = Builder()
    x = [g.input(v.name, v.type) for v in graph.inputs]
    with pytest.raises(VerifyError, match=r"sinks f32\[kv\] are not over its heads"):
        g.many(op, *x[:3], g.input("few", f32("kv")))


def test_positions_that_are_given():
    op, graph = attend("causal")
    args = numbers(graph)
    at = replace(op, meta=(*op.meta, "query_at", "key_at"))
    g = Builder()
    x = [g.input(v.name, v.type) for v in graph.inputs]
    x += [g.input("query_at", i64("b t")), g.input("key_at", i64("b s"))]
    given = g.graph(g.many(at, *x)[0])
    places = [torch.arange(7).expand(2, -1)] * 2
    (want,) = evaluate(graph, args)
    for got in (
        run(given, SIZES, [*args, *places], torch, torch.float64),
        callable_of(source_of(given, SIZES, ("b",)))(*args, *places),
    ):
        torch.testing.assert_close(got[0] if isinstance(got, tuple | list) else got, want, rtol=1e-12, atol=1e-12)


def test_a_value_may_have_the_name_of_the_runtime():
    op, graph = attend("causal")
    g = Builder()
    out = g.many(op, *(g.input(v.name, v.type) for v in graph.inputs))[0]
    named = g.graph(*g.maps(["exp(o)"], o=out, names=["attention"]), out)
    args = numbers(graph)
    found, _ = callable_of(source_of(named, SIZES, ("b",)))(*args)
    torch.testing.assert_close(found, evaluate(graph, args)[0].exp(), rtol=1e-12, atol=1e-12)


def test_a_model_moved_to_half_precision():
    """gpt-oss at its small shape, with sinks that matter: log-sum-exps stay wide, and nothing else does."""
    module = weft.compile("examples/specs/gpt_oss_20b.yaml", small=True)
    for name, p in module.named_parameters():
        p.data = torch.linspace(-3, 9, p.numel()).view_as(p) if name.endswith(".sinks") else p.data
    tokens = torch.randint(0, 96, (2, 32), generator=torch.Generator().manual_seed(0))
    want = module.double()(tokens).logits
    out = module.half()(tokens, tokens)
    out.loss.backward()
    assert out.logits.dtype == torch.float16
    assert (out.logits - want).abs().max() < 0.02 * want.abs().max()
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)
