"""Forward and every gradient against torch written by hand and torch autograd, in fp64."""

import inspect
from random import Random

import pytest
import torch
import torch.nn.functional as F

from tests.campaign import count
from tests.ir.generate import KINDS, random_args, random_graph
from tests.models import BLOCK, SIZES, fill, gpt_block, gpt_stack, language_model, sru, switch
from weft.errors import UsageError
from weft.ir.builder import Builder, flatten
from weft.ir.composite import Call, Grad
from weft.ir.formula import philox
from weft.ir.library import Attend, AttendGrad
from weft.ir.loops import keep
from weft.ir.ops.primitives import Loop
from weft.ir.reference import run
from weft.ir.text import parse, show
from weft.ir.types import Graph, Type
from weft.ir.verify import verify
from weft.passes import derivative
from weft.passes.derivative import joint

S = SIZES


def block_torch(x, ln1_w, ln1_b, wq, wk, wv, wo, ln2_w, ln2_b, w1, b1, w2, b2):
    n = F.layer_norm(x, (S["width"],), ln1_w, ln1_b)
    q, k, v = (torch.einsum("btd,dhe->bhte", n, w) for w in (wq, wk, wv))
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + torch.einsum("bhte,hed->btd", o, wo)
    return x + F.gelu(F.layer_norm(x, (S["width"],), ln2_w, ln2_b) @ w1 + b1) @ w2 + b2


def stack_torch(period):
    def run_stack(x, **w):
        for i in range(S["layers"]):
            for p in range(period):
                x = block_torch(x, *(w[f"{n}_{p}"][i] for n in BLOCK))
        return x

    return run_stack


def sru_torch(x, w, c0, vf, vr, bf, br):
    u0, u1, u2 = (x @ w[i] for i in range(3))
    c, hs = c0, []
    for t in range(S["seq"]):
        f = torch.sigmoid(u1[:, t] + vf * c + bf)
        r = torch.sigmoid(u2[:, t] + vr * c + br)
        c = f * c + (1 - f) * u0[:, t]
        hs.append(r * c + (1 - r) * x[:, t])
    return torch.stack(hs), c


def switch_torch(k=1, normalize=False):
    def run_switch(x, wr, w1, w2):
        p = (x @ wr).softmax(-1)
        top, chosen = p.topk(k)
        gates = top / top.sum(-1, keepdim=True) if normalize else top
        rows, fraction = [], F.one_hot(chosen, S["experts"]).sum(2).double().mean(1)
        for b in range(S["batch"]):
            count, row = [0] * S["experts"], []
            for t in range(S["seq"]):
                y = torch.zeros(S["width"], dtype=x.dtype)
                for j, e in enumerate(chosen[b, t].tolist()):
                    if count[e] < S["capacity"]:
                        y = y + gates[b, t, j] * (F.relu(x[b, t] @ w1[e]) @ w2[e])
                    count[e] += 1
                row.append(y)
            rows.append(torch.stack(row))
        return torch.stack(rows), S["experts"] * (fraction * p.mean(1)).sum(-1).mean()

    return run_switch


def switch_z_torch(x, wr, w1, w2):
    return (*switch_torch()(x, wr, w1, w2), (x @ wr).logsumexp(-1).square().mean())


def lm_torch(tokens, target, table, seed):
    index = torch.arange(tokens.numel() * S["width"]).view(*tokens.shape, -1)
    u = philox.uniform(seed, torch.tensor(7), torch.tensor(0), index).double() * 2.0**-24
    x = table[tokens] * (u >= 0.1) / 0.9
    return F.cross_entropy((x @ table.T).flatten(0, 1), target.flatten())


def kept_stack():
    graph = gpt_stack(2)
    return keep(graph, {v.name for n in graph.nodes[0].op.body.nodes for v in n.outs})


CASES = {
    "gpt block": (gpt_block, block_torch),
    "stack of calls": (gpt_stack, stack_torch(1)),
    "stack of period 2": (lambda: gpt_stack(2), stack_torch(2)),
    "stack, blocks kept": (kept_stack, stack_torch(2)),
    "sru": (sru, sru_torch),
    "switch": (switch, switch_torch()),
    "top 2": (lambda: switch(2), switch_torch(2)),
    "top 2 normalized": (lambda: switch(2, normalize=True), switch_torch(2, normalize=True)),
    "switch with z-loss": (lambda: switch(z_loss=True), switch_z_torch),
    "tied lm": (language_model, lm_torch),
}


def gradients(graph: Graph, ref, args, got=None):
    """Results and gradients of the reference, then the same of the joint graph."""
    floats = [v.name for v in graph.inputs if v.type.floating]
    both = got or joint(graph)
    verify(both, SIZES)
    leaf = {k: v.clone().requires_grad_(k in floats) for k, v in args.items()}
    by_name = any(p.kind == p.VAR_KEYWORD or p.name in leaf for p in inspect.signature(ref).parameters.values())
    want = ref(**leaf) if by_name else ref(*leaf.values())
    want = want if isinstance(want, tuple) else (want,)
    gen = torch.Generator().manual_seed(5)
    seeds = [torch.randn(w.shape, dtype=w.dtype, generator=gen) for w in want]
    grads = torch.autograd.grad(want, [leaf[n] for n in floats], seeds, allow_unused=True)
    have = run(both, SIZES, [*args.values(), *seeds], torch, torch.float64)
    return (*want, *grads), have


@pytest.mark.parametrize("name", CASES)
def test_forward_and_gradients_equal_torch(name):
    make, ref = CASES[name]
    graph = make()
    verify(graph, SIZES)
    want, got = gradients(graph, ref, fill(torch, graph))
    assert len(want) == len(got)
    for w, g in zip(want, got, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_flattening_and_text_keep_the_joint_graph(name):
    make, _ = CASES[name]
    both = joint(make())
    assert parse(show(both)) == both
    flat = flatten(both)
    verify(flat, SIZES)
    args = list(fill(torch, both).values())
    for a, b in zip(*(run(g, SIZES, args, torch, torch.float64) for g in (both, flat)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_the_docstring_is_what_happens():
    before, after = (derivative.__doc__.split(f"{word}:\n")[1] for word in ("before", "after"))
    before, after = before[: before.index("after")], after[: after.index("A loop")]
    assert show(joint(parse(before))).split() == after.split()


def test_a_stack_stays_a_reversed_loop_of_blocks():
    both = joint(gpt_stack(2))
    loops = [n.op for n in both.nodes if isinstance(n.op, Loop)]
    assert [op.reverse for op in loops] == [False, True]
    inside = [n.op for n in loops[1].body.nodes]
    assert sum(isinstance(op, Grad) and isinstance(op.inner, Call) for op in inside) == 2
    assert sum(isinstance(op, Call) for op in inside) == 1  # the first block again; the last one's result is not needed
    again = next(n.op for n in joint(kept_stack()).nodes if isinstance(n.op, Loop) and n.op.reverse)
    assert not any(isinstance(n.op, Call) for n in again.body.nodes)


def test_a_block_is_derived_through_its_own_ops():
    block = joint(gpt_block())
    assert any(isinstance(n.op, AttendGrad) for n in block.nodes)
    assert not any(isinstance(n.op, Grad) and isinstance(n.op.inner, Attend) for n in block.nodes)


def test_wrt_chooses_and_orders_the_gradients():
    graph = gpt_block()
    some = joint(graph, ["w2", "x"])
    args = list(fill(torch, some).values())
    all_, two = (run(g, SIZES, args, torch, torch.float64) for g in (joint(graph), some))
    names = [v.name for v in graph.inputs]
    torch.testing.assert_close(two[1], all_[1 + names.index("w2")])
    torch.testing.assert_close(two[2], all_[1 + names.index("x")])
    assert len(some.nodes) < len(joint(graph).nodes)
    with pytest.raises(UsageError, match="tokens"):
        joint(language_model(), ["tokens"])


def test_an_input_that_nothing_reads_gets_zeros():
    g = Builder()
    x, y = (g.input(n, Type("f32", ("batch",))) for n in "xy")
    both = joint(g.graph(g.map("x*x", x=x)))
    args = fill(torch, both)
    assert run(both, SIZES, list(args.values()), torch, torch.float64)[2].abs().max() == 0
    assert y.name in args


def test_second_order():
    both = joint(sru())
    twice = joint(both, ["x", "vf", "bf"])
    args = fill(torch, twice)
    leaf = {k: v.clone().requires_grad_(k in ("x", "vf", "bf")) for k, v in args.items()}
    out = run(both, SIZES, [leaf[v.name] for v in both.inputs], torch, torch.float64)
    seeds = [args[v.name] for v in twice.inputs[-len(out) :]]
    want = torch.autograd.grad(out, [leaf[n] for n in ("x", "vf", "bf")], seeds)
    got = run(twice, SIZES, list(args.values()), torch, torch.float64)[len(out) :]
    for w, g in zip(want, got, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", range(count(sample=60, soak=500)))
def test_generated_graphs(seed):
    """The joint graph, and that graph flattened, against autograd through the interpreter."""
    kinds = tuple(k for k in KINDS if k != "detach")  # max(x, detach(x)) is a tie, and torch splits a tie's gradient
    graph, sizes = random_graph(Random(seed), nodes=10, kinds=kinds)
    both = joint(graph)
    verify(both, sizes)
    args = random_args(graph, sizes, torch, seed)
    leaf = [a.requires_grad_(a.is_floating_point()) for a in args]
    out = run(graph, sizes, leaf, torch, torch.float64)
    floats = [v for v in out if v.is_floating_point()]
    seeds = [torch.randn(v.shape, dtype=v.dtype) for v in floats]
    ends = [(v, s) for v, s in zip(floats, seeds) if v.requires_grad]
    live = [a for a in leaf if a.requires_grad]
    grads = [torch.zeros_like(a) for a in live]
    if ends:
        results, starts = zip(*ends)
        grads = torch.autograd.grad(results, live, starts, allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        for g in (both, flatten(both)):
            got = run(g, sizes, [*args, *seeds], torch, torch.float64)
            for w, v in zip((*out, *grads), got, strict=True):
                torch.testing.assert_close(v, w, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("let", "formula"),
    [
        ({}, "where(x > 1, sqrt(x - 1) + 1/(x - 1), x)"),
        ({"a": "sqrt(x - 1)"}, "where(x > 1, a + 1/a, x)"),
        ({"a": "log(x - 1)", "b": "a*exp(a)"}, "where(x > 1, b*a, x)"),
    ],
)
def test_what_a_choice_left_out_takes_no_gradient(let, formula):
    """Infinite or nan as its slope may be there: of lets too, derived and by the interpreter's autograd."""
    g = Builder()
    graph = g.graph(g.map(formula, x=g.input("x", Type("f64", ("n",))), let=let))
    x = torch.tensor([-2.0, 0.0, 1.0, 1.5, 3.0], dtype=torch.float64)
    there = (x[3:] - 1).requires_grad_()
    chosen = {0: there.sqrt() + 1 / there, 1: there.sqrt() + there.rsqrt()}.get(len(let), there.log().square() * there)
    (slope,) = torch.autograd.grad(chosen.sum(), there)
    want = torch.cat([torch.ones(3, dtype=torch.float64), slope])

    leaf = x.clone().requires_grad_()
    (out,) = run(graph, {"n": 5}, [leaf], torch, torch.float64)
    (own,) = torch.autograd.grad(out.sum(), leaf)
    _, derived = run(joint(graph, ["x"]), {"n": 5}, [x, torch.ones_like(x)], torch, torch.float64)

    assert torch.allclose(own, want, rtol=1e-12)
    assert torch.allclose(derived, want, rtol=1e-12)
