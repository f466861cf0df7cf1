"""Derivatives of loops against torch autograd through the interpreter, what they stack, and linearity in the state."""

from random import Random

import pytest
import torch

from tests.campaign import count
from tests.models import SIZES, f32, fill, gpt_stack, i64, sru, switch
from weft.ir.builder import Builder, flatten
from weft.ir.composite import Call
from weft.ir.library import Softmax
from weft.ir.loops import keep, linear_in_state
from weft.ir.ops.primitives import Loop
from weft.ir.reference import run
from weft.ir.types import Graph, Type, Val
from weft.ir.verify import verify
from weft.passes.derivative import joint

S = {"t": 5, "b": 2, "d": 3, "e": 3, "n": 4}
N = count(sample=25, soak=300)


def numbers(graph: Graph, seed=0):
    gen = torch.Generator().manual_seed(seed)
    real = [torch.randn([S[d] for d in v.dims], generator=gen, dtype=torch.float64) for v in graph.inputs]
    return [x if v.type.floating else (x * 2).long() for x, v in zip(real, graph.inputs)]


def check(graph: Graph, seed=0, sizes=S, args=None, tol=1e-10) -> Graph:
    """The joint graph against autograd through the interpreter; float outputs only count."""
    verify(graph, sizes)
    both = joint(graph)
    verify(both, sizes)
    args = args or numbers(graph, seed)
    leaf = [a.clone().requires_grad_(a.is_floating_point()) for a in args]
    out = run(graph, sizes, leaf, torch, torch.float64)
    floats = [v for v in out if v.is_floating_point()]
    live = [a for a in leaf if a.requires_grad]
    gen = torch.Generator().manual_seed(9)
    seeds = [torch.randn(v.shape, generator=gen, dtype=v.dtype) for v in floats]
    reached = [(v, s) for v, s in zip(floats, seeds) if v.requires_grad]
    ends, starts = zip(*reached)
    want = torch.autograd.grad(ends, live, starts, allow_unused=True, materialize_grads=True)
    got = run(both, sizes, [*args, *seeds], torch, torch.float64)[len(out) :]
    for w, g in zip(want, got, strict=True):
        torch.testing.assert_close(g, w, rtol=tol, atol=tol)
    return both


def body(*inputs: tuple[str, Type]):
    b = Builder()
    return b, *(b.input(n, t) for n, t in inputs)


@pytest.mark.parametrize("reverse", [False, True])
def test_everything_at_once(reverse):
    """Two carries, one of integers; slices along an inner dim; shared operands; outputs; histories; a mixed body."""
    b, c, k, x, w, u = body(("c", f32("b d")), ("k", i64()), ("x", f32("b d")), ("w", f32("d e")), ("u", f32("d")))
    m = b.rename(b.einsum(c, w, to="b e"), old="e", new="d")
    c2 = b.map("tanh(m + x*u) + c/4", m=m, x=x, u=u, c=c)
    k2 = b.map("k + 1", k=k, dtype="i64")
    y = b.map("c*x + k", c=c2, x=x, k=k)
    op = Loop("t", b.graph(c2, k2, y, b.reduce(y, to="b")), 2, reverse)
    g = Builder()
    ins = [g.input("c", f32("b d")), g.input("k", i64()), g.input("x", f32("b t d"))]
    out = g.many(op, *ins, g.input("w", f32("d e")), g.input("u", f32("d")))
    check(g.graph(*out))
    check(g.graph(out[3], out[4]))  # the outputs that are not a carry, the carry's history: not the final carry
    check(g.graph(out[0]))


def test_a_shared_operand_of_a_cell_is_summed_once_after_the_loop():
    both = joint(sru())
    back = next(n for n in both.nodes if isinstance(n.op, Loop) and n.op.reverse)
    sums = back.outs[1:5]
    assert all(set(v.dims) == {"batch", "out"} for v in sums)  # vf, vr, bf, br: batch is summed outside


def test_body_results_that_are_one_value():
    """One value is the next carry, and twice an output."""
    b, c, x = body(("c", f32("d")), ("x", f32("d")))
    y = b.map("sigmoid(c) * x", c=c, x=x)
    g = Builder()
    out = g.loop("t", b.graph(y, y, y), 1, g.input("c", f32("d")), g.input("x", f32("d t")))
    check(g.graph(*out[:3]))


def test_a_carry_passed_through_and_an_operand_given_back():
    b, c, x = body(("c", f32("d")), ("x", f32("d")))
    g = Builder()
    out = g.loop("t", b.graph(c, x), 1, g.input("c", f32("d")), g.input("x", f32("t d")))
    check(g.graph(*out))


def test_a_shared_operand_given_back_by_a_cell():
    b, c, w = body(("c", f32("b d")), ("w", f32("d")))
    g = Builder()
    out = g.loop("t", b.graph(b.map("tanh(c*w)", c=c, w=w), w), 1, g.input("c", c.type), g.input("w", w.type))
    check(g.graph(*out))


def test_gradients_of_unused_results_cost_nothing():
    b, c, x = body(("c", f32("d")), ("x", f32("d")))
    body_graph = b.graph(b.map("c*x", c=c, x=x), b.map("exp(x)", x=x))
    g = Builder()
    out = g.loop("t", body_graph, 1, g.input("c", f32("d")), g.input("x", f32("t d")))
    back = next(n for n in check(g.graph(out[0])).nodes if isinstance(n.op, Loop) and n.op.reverse)
    assert len(back.op.body.outputs) == 2


def test_half_precision_sums_are_fp32():
    b, c, w = body(("c", Type("bf16", ("b", "d"))), ("w", Type("bf16", ("d",))))
    g = Builder()
    out = g.loop("t", b.graph(b.map("c*w", c=c, w=w)), 1, g.input("c", c.type), g.input("w", w.type))
    both = joint(g.graph(out[0]))
    back = next(n for n in both.nodes if isinstance(n.op, Loop) and n.op.reverse)
    assert [v.dtype for v in back.outs[:2]] == ["bf16", "f32"]
    assert [v.dtype for v in both.outputs] == ["bf16"] * 3


def test_keep_reads_instead_of_redoing():
    graph = flatten(gpt_stack())
    inside = {v.name for n in graph.nodes if isinstance(n.op, Loop) for m in n.op.body.nodes for v in m.outs}
    kept = keep(graph, inside)
    verify(kept)
    redone = [next(n.op for n in joint(x).nodes if isinstance(n.op, Loop) and n.op.reverse) for x in (graph, kept)]
    einsums = [sum(type(n.op).__name__ == "Einsum" for n in op.body.nodes) for op in redone]
    assert einsums[0] - einsums[1] >= 5  # q, k, v, out and the first of the MLP
    args = list(fill(torch, joint(graph)).values())
    for a, b in zip(*(run(joint(x), SIZES, args, torch, torch.float64) for x in (graph, kept)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    some = keep(graph, sorted(inside)[:2])
    got = run(joint(some), SIZES, args, torch, torch.float64)
    for a, b in zip(got, run(joint(graph), SIZES, args, torch, torch.float64), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def random_loop(seed: int) -> Graph:
    """A loop of 1 to 3 carries and random smooth nodes over them, slices and shared operands."""
    rng, b, g = Random(seed), Builder(), Builder()
    dims = [("b", "d"), ("d",), ("b",)]
    carries = [f32(" ".join(rng.choice(dims))) for _ in range(rng.randint(1, 3))]
    sliced = [f32(" ".join(rng.choice(dims))) for _ in range(rng.randint(0, 2))]
    shared = [f32(" ".join(rng.choice(dims))) for _ in range(rng.randint(0, 2))]
    inner = [b.input("v", t) for t in (*carries, *sliced, *shared)]
    outer = [g.input("v", t) for t in carries]
    for t in sliced:
        at = rng.randint(0, len(t.dims))
        outer.append(g.input("v", t.but((*t.dims[:at], "t", *t.dims[at:]))))
    outer += [g.input("v", t) for t in shared]
    have: list[Val] = list(inner)
    for _ in range(rng.randint(1, 5)):
        x, y = rng.choice(have), rng.choice(have)
        pick = rng.randint(0, 4)
        if pick == 0 and "d" in x.dims:
            have.append(b.one(Softmax("d"), x))
        elif pick == 1:
            have.append(b.detach(b.reduce(x, to=x.dims[:1], kind="max")))
        elif pick == 2:
            have.append(b.einsum(x, y, to=[d for d in ("b", "d") if d in (*x.dims, *y.dims)][: rng.randint(0, 2)]))
        else:
            have.append(b.map("tanh(x)*y + x/3", x=x, y=y, let={"u": "sigmoid(y)"}))
    body_outs = []
    for t in carries:
        x = rng.choice([v for v in have if set(v.dims) <= set(t.dims)] or [inner[0]])
        fits = set(x.dims) <= set(t.dims)
        base = b.map("x", x=x, to=t.dims) if fits else b.map(0, to=t.dims)
        body_outs.append(b.map("sin(x) + v", x=base, v=next(v for v in inner if v.type == t)))
    stacked = [rng.choice(have) for _ in range(rng.randint(0, 2))]
    out = g.loop("t", b.graph(*body_outs, *stacked), len(carries), *outer, reverse=rng.random() < 0.5)
    results = out[: len(carries) + len(stacked)]
    return g.graph(*rng.sample(results, rng.randint(1, len(results))), out[-1])


@pytest.mark.parametrize("seed", range(N))
def test_random_loops(seed):
    check(random_loop(seed), seed, tol=1e-9)


# formula of the next state c, over a state c, another state h, gates f, g and an input x -> is it linear?
CELLS = {
    "f*c + (1 - f)*x": True,
    "x + (c - x)*sigmoid(f)": True,
    "sigmoid(x)*c/(1 + g**2) + x": True,
    "where(x > 0, f*c, x)": True,
    "(c + x)**2 - c**2": True,
    "c*(h + 1) - c*h": True,
    "f*c + g*h": True,
    "x": True,
    "sigmoid(f*c)*x": False,
    "f*c*c": False,
    "c*h": False,
    "where(c > 0, f*c, x)": False,
    "relu(c)": False,
    "floor(c) + x": False,
    "abs(c)": False,
    "max(c, x)": False,
    "x/c": False,
    "tanh(c)": False,
}


@pytest.mark.parametrize("formula", CELLS)
@pytest.mark.parametrize("let", [False, True])
def test_linear_in_state(formula, let):
    g = Builder()
    c, h = (g.input(n, f32("d")) for n in "ch")
    gates = {n: g.input(n, f32("t d")) for n in "fgx"}
    lets = {"u": formula} if let else None
    g.scan("t", {"c": ("u" if let else formula, c), "h": ("h*f", h)}, {}, lets, **gates)
    op = g.nodes[-1].op
    assert linear_in_state(op) is CELLS[formula]
    if not CELLS[formula]:
        return
    rows = [torch.randn(S["d"], dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(7)]

    def at(c, h):
        return run(op.body, S, [c, h, *rows[4:][: len(op.body.inputs) - 2]], torch, torch.float64)[0]

    mix = at((rows[0] + rows[1]) / 2, (rows[2] + rows[3]) / 2)
    torch.testing.assert_close(mix, (at(rows[0], rows[2]) + at(rows[1], rows[3])) / 2)


def test_linear_through_nodes():
    """A matrix recurrence is linear; through a softmax it is not; a call is looked into."""
    b, c, w = body(("c", f32("d")), ("w", f32("d e")))
    step = b.graph(b.rename(b.einsum(c, w, to="e"), old="e", new="d"))
    assert linear_in_state(Loop("t", step, 1))
    b, c, w = body(("c", f32("d")), ("w", f32("d e")))
    (y,) = b.many(Call("step", step), c, w)
    assert linear_in_state(Loop("t", b.graph(y), 1))
    assert not linear_in_state(Loop("t", b.graph(b.one(Softmax("d"), y)), 1))
    b, c, w = body(("c", f32("d")), ("w", f32("d")))
    assert not linear_in_state(Loop("t", b.graph(b.map("c*s", c=c, s=b.einsum(c, w, to=""))), 1))


def test_the_models_are_decided():
    loops = [n.op for n in (*sru().nodes, *flatten(switch()).nodes) if isinstance(n.op, Loop)]
    assert [linear_in_state(op) for op in loops] == [False, True]  # SRU's gates read its state; the router counts
