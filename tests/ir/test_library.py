"""Norms, loss, dropout, rotary and routing against torch written by hand, in fp64."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.campaign import count
from tests.ir.composites import S, evaluate, gradients_match, made, numbers
from tests.models import f32, i64
from weft.codegen.runtime import places
from weft.errors import VerifyError
from weft.ir.composite import Composite, expansion
from weft.ir.formula import parse, symbol
from weft.ir.library import (
    CrossEntropy,
    Dropout,
    ExpertProduct,
    ExpertWeights,
    LayerNorm,
    Places,
    RMSNorm,
    Rotary,
    Route,
    Softmax,
)  # fmt: skip
from weft.ir.reference import run
from weft.ir.types import Type
from weft.ir.verify import verify
from weft.passes.derivative import joint

EPS = parse("0.00001")
N = count(sample=12, soak=100)


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


@pytest.mark.parametrize("rows", ["b t", "b t c"])
@pytest.mark.parametrize("own", ["b t d", "b t c d"])
def test_rows_meet_the_matrices_of_their_experts(rows, own):
    """Rows of x, where it lacks a dim of theirs, are shared; an expert without rows has no gradient."""
    if "c" in own and "c" not in rows:
        return
    op = ExpertProduct("h", (*rows.split(), "e"))
    graph = made(op, f32(own), f32("h d e"), i64(rows))
    x, r = own.replace(" ", ""), rows.replace(" ", "")

    def by_hand(x_, w, expert):
        return torch.einsum(f"{x},{r}de->{r}e", x_, w[expert])

    gradients_match(graph, by_hand, numbers(graph, high=S["h"] - 1))
    node, sizes = graph.nodes[0], {symbol(f"n_{d}"): n for d, n in S.items()}
    assert node.op.flops(node).xreplace(sizes) == 2 * math.prod(S[d] for d in f"{r}de")  # each row meets one expert


def test_products_of_experts_refuse_what_is_no_row():
    op = ExpertProduct("h", ("b", "t", "e"))
    for x, w, expert, words in (
        ("b t d", "d e", "b t", "a dim of"), ("b t d", "h d e", "b s", "all dims of the rows"),
        ("b t d", "h t e", "b t", "has dims of the rows"), ("b t s", "h d e", "b t", "neither rows nor matrices"),
    ):  # fmt: skip
        with pytest.raises(VerifyError, match=words):
            made(op, f32(x), f32(w), i64(expert))


EVERY: dict[str, tuple[Composite, tuple[Type, ...]]] = {
    "softmax": (Softmax("d"), (f32("b t d"),)),
    "layer_norm": (LayerNorm("d", EPS), (f32("b t d"), f32("d"), f32("d"))),
    "rms_norm": (RMSNorm("d", EPS), (f32("b t d"), f32("d"))),
    "cross_entropy": (CrossEntropy("d"), (f32("b d"), i64("b"))),
    "dropout": (Dropout(parse("0.1"), 1), (f32("b d"), i64(), i64())),
    "rotary": (Rotary("t", "e"), (f32("b t h e"),)),
    "expert_product": (ExpertProduct("h", ("b", "t", "e")), (f32("b t d"), f32("h d e"), i64("b t"))),
    "expert_weights": (ExpertWeights("h", ("h", "d", "e")), (f32("b t d"), f32("b t e"), i64("b t"))),
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
    graph = joint(made(CrossEntropy("d"), f32("b d"), i64("b")))
    args = [torch.tensor([[1e4, -1e4, 0, 1, 2, 3], [-1e4] * 6]), torch.tensor([1, 2]), torch.ones(2)]
    loss, _ = run(graph, S, args, torch)
    torch.testing.assert_close(loss, torch.tensor([2e4, math.log(6)]))


@pytest.mark.parametrize("cut", [0, 1, 4, 9])
def test_places_are_counted_in_documents_and_go_on(cut):
    """Against a count by hand, of the whole and of a part behind what earlier tokens left; torch's form likewise."""
    segments = torch.tensor([[3, 3, 1, 1, 1, 3, 3, 3, 0], [0] * 9])
    valid = torch.tensor([[0, 1, 1, 1, 1, 1, 0, 1, 0], [0, 0, 1, 1, 1, 1, 1, 1, 0]]).bool()
    place = torch.tensor([[0, 0, 0, 1, 2, 0, 1, 1, 0], [0, 0, 0, 1, 2, 3, 4, 5, 6]])
    number = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2, 3], [0] * 9])
    rest = segments[:, cut:], valid[:, cut:]
    left = [torch.zeros(2, dtype=torch.int64)] * 3
    if cut:
        left = [number[:, cut - 1] + 1, segments[:, cut - 1], place[:, cut - 1] + valid[:, cut - 1]]
    op, rows = Places("t", True, True), Type("bool", ("b", "t"))
    want = place[:, cut:], number[:, cut:]
    if not cut:
        whole = made(op, i64("b t"), rows)
        assert all(map(torch.equal, evaluate(whole, list(rest)), want))
        assert all(map(torch.equal, places.documents(*rest), want))
        assert torch.equal(places.counted(valid), valid.long().cumsum(1) - valid.long())
    if cut < 9:
        after = made(op, i64("b t"), rows, *(i64("b") for _ in range(3)))
        assert all(map(torch.equal, run(after, S | {"t": 9 - cut}, [*rest, *left], torch, torch.float64), want))
        assert all(map(torch.equal, places.documents(*rest, *left), want))
