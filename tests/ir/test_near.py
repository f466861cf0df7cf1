"""Attention with a table by distance, and with queries behind other keys, against torch written by hand, in fp64."""

from dataclasses import replace

import pytest
import torch

from tests.codegen.emission import callable_of, source_of
from tests.ir.composites import evaluate, gradients_match, numbers
from tests.models import f32, i64
from weft.errors import VerifyError
from weft.ir.builder import Builder
from weft.ir.composite import Grad
from weft.ir.formula import parse
from weft.ir.library import Attend, AttendGrad
from weft.ir.pattern import Pattern, holds
from weft.ir.reference import run
from weft.ir.text import parse as read
from weft.ir.text import show
from weft.ir.types import Type
from weft.passes.derivative import joint

SIZES = {"b": 2, "t": 5, "s": 8, "h": 3, "e": 4, "r": 6, "kv": 3, "g": 2}
SCORES = {
    "s": lambda s, q, k, h: s,
    "5*tanh(s/5) + i_h*(i_q - i_k)": lambda s, q, k, h: 5 * torch.tanh(s / 5) + h * (q - k),
}
TABLES = ("b t h r", "h r", "r", "t r", "b r")
PATTERNS = ("causal", "all", "0 <= q - k <= 3", "valid", "blocks(3, [[0, 0, 1], [2], []])", "q % 3 == 1")


def attend(pattern, score, table, first="0", tail=False, grouped=False):
    heads, keys = ("kv g", "kv") if grouped else ("h", "h")
    op = Attend(
        "e", "s", "t", Pattern.parse(pattern, {"seq": 8}), parse("1/sqrt(n_e)"), parse(score), heads,
        ("valid", *(("near",) if table else ())), first=parse(first), tail=tail,
    )  # fmt: skip
    g = Builder()
    x = [g.input(n, f32(d)) for n, d in (("q", f"b t {heads} e"), ("k", f"b s {keys} e"), ("v", f"b s {keys} e"))]
    x += [g.input("valid", Type("bool", ("b", "s")))]
    x += [g.input("near", f32(table.replace("h", heads)))] if table else []
    return op, g.graph(g.many(op, *x)[0])


def by_hand(op, score, table, grouped):
    """The n x n scores, the table read pair by pair."""

    def ref(q, k, v, valid, near=None):
        n, before = SIZES["t"], SIZES["s"] - SIZES["t"] if op.tail else 0
        first = int(op.first.subs({s: SIZES[s.name[2:]] for s in op.first.free_symbols}))
        if grouped:
            q = q.flatten(2, 3)
            k, v = (x.repeat_interleave(SIZES["g"], 2) for x in (k, v))
            near = None if near is None else near.flatten(-3, -2) if "h" in table else near
        i, j = torch.arange(n)[:, None] + before, torch.arange(SIZES["s"])
        s = torch.einsum("bthe,bshe->bhts", q, k) / 2
        if near is not None:
            dims = table.split()
            full = near[tuple(slice(None) if d in dims else None for d in ("b", "t", "h", "r"))].transpose(1, 2)
            full = full.expand(SIZES["b"], s.shape[1], n, -1)
            added = torch.zeros_like(s)
            for a in range(n):
                for c in range(SIZES["s"]):
                    row = a + before - c - first
                    if 0 <= row < SIZES["r"]:
                        added[:, :, a, c] = full[:, :, a, row]
            s = s + added
        meta = {"valid": (valid[:, None], valid[:, None])}
        out = []
        for h in range(s.shape[1]):
            times = holds(op.pattern, i, j, torch.tensor(h), meta, torch, n=8) * 1.0
            times = times.expand(SIZES["b"], n, -1)
            w = times * torch.exp(score(s[:, h], i, j, h))
            out.append((w / w.sum(-1, keepdim=True).clamp(min=1e-300)) @ v[:, :, h])
        out = torch.stack(out, 2)
        return out.unflatten(2, (SIZES["kv"], SIZES["g"])) if grouped else out

    return ref


@pytest.fixture(autouse=True)
def _sizes(monkeypatch):
    monkeypatch.setattr("tests.ir.composites.S", SIZES)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_table_by_distance(pattern, table, grouped):
    for tail, first, score in ((False, "0", "s"), (True, "0", [*SCORES][1]), (True, "1 - n_t", "s")):
        op, graph = attend(pattern, score, table, first, tail, grouped)
        gradients_match(graph, by_hand(op, SCORES[score], table, grouped), numbers(graph, seed=len(pattern)))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_queries_behind_other_keys(pattern):
    op, graph = attend(pattern, "s", "", tail=True)
    gradients_match(graph, by_hand(op, SCORES["s"], "", False), numbers(graph))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("table", ["", *TABLES])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_printed(pattern, table, grouped):
    """The emitted function, forward and backward, against the interpreter; lengths read off shapes."""
    for tail, first, score in ((True, "0", "s"), (False, "2 - n_s", [*SCORES][1])):
        if not (table or tail):
            continue
        _, graph = attend(pattern, score, table, first, tail, grouped)
        both = joint(graph)
        args = numbers(both, seed=3)
        source = source_of(both, SIZES, ("b", "t", "s"))
        assert "distances.Tiles" in source
        got = callable_of(source)(*args)
        for a, b in zip(got, evaluate(both, args), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_pattern_that_shows_nothing_reads_no_metadata():
    _, graph = attend("false", "s", "h r", tail=True)
    (out,) = callable_of(source_of(graph, SIZES, ("t", "s")))(*numbers(graph))
    assert not out.any()


def test_tiles_of_any_size_are_the_same(monkeypatch):
    from weft.codegen.runtime import distances  # the module that is set is the one that is run

    _, graph = attend("0 <= q - k <= 3", "s", "b t h r", tail=True)
    both = joint(graph)
    args = numbers(both)
    run_it = callable_of(source_of(both, SIZES, ("t", "s")))
    whole = run_it(*args)
    monkeypatch.setattr(distances, "PAIRS_AT_ONCE", 2 * 3 * 8 * 2)
    for a, b in zip(run_it(*args), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_declared_derivative_is_the_derived_one():
    op, graph = attend("causal", "5*tanh(s/5)", "b t h r")
    g = Builder()
    x = [g.input(v.name, v.type) for v in graph.inputs]
    out, lse = g.many(op, *x)
    do = g.input("do", out.type)
    declared = g.many(AttendGrad(op), *x[:3], out, lse, do, *x[3:])
    derived = g.many(Grad(op, len(x), (True, False)), *x, do)
    got = evaluate(g.graph(*declared, *derived), numbers(g.graph(out)))
    assert len(got) == 8
    for a, b in zip(got[:4], got[4:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_text_and_refusals():
    op, graph = attend("causal", "s", "h r", first="1 - n_t", tail=True)
    assert read(show(graph)) == graph
    assert "tail=true" in show(graph)
    g = Builder()
    x = [g.input(v.name, v.type) for v in graph.inputs]
    with pytest.raises(VerifyError, match=r"near f32\[h r r2\] has besides rows .* one dim"):
        g.many(op, *x[:4], g.input("wide", f32("h r r2")))


def test_positions_that_are_given():
    """query_at and key_at replace coordinates for the table as well."""
    op, graph = attend("causal", "s", "b t h r", tail=True)
    args = numbers(graph)
    at = replace(op, tail=False, meta=(*op.meta, "query_at", "key_at"))
    g = Builder()
    x = [g.input(v.name, v.type) for v in graph.inputs]
    x += [g.input("query_at", i64("b t")), g.input("key_at", i64("b s"))]
    given = g.graph(g.many(at, *x)[0])
    places = [(torch.arange(5) + 3).expand(2, -1), torch.arange(8).expand(2, -1)]
    (want,) = evaluate(graph, args)
    (got,) = run(given, SIZES, [*args, *places], torch, torch.float64)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    source = source_of(given, SIZES, ("b", "t", "s"))
    assert "distances.Steps" in source
    torch.testing.assert_close(callable_of(source)(*args, *places)[0], want, rtol=1e-12, atol=1e-12)
