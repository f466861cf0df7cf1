"""Every primitive: its value against plain torch, its vjp against torch autograd, its second derivative too."""

import random

import pytest
import torch

from tests.campaign import count
from tests.ir.generate import random_args, random_graph
from weft.ir.builder import Builder, flatten
from weft.ir.composite import Call, Grad
from weft.ir.derive import joint
from weft.ir.graphs import with_gradient
from weft.ir.library import Softmax
from weft.ir.ops.chunks import Chunk, Unchunk
from weft.ir.ops.op import op_name
from weft.ir.ops.primitives import PRIMITIVES, Opaque
from weft.ir.reference import run
from weft.ir.types import Graph, Type
from weft.ir.verify import verify

F64 = torch.float64
SIZES = {"b": 2, "t": 3, "d": 4, "e": 5, "v": 6, "c": 2, "n": 3, "z": 5, "p": 2, "u": 3}


def f(dims: str) -> Type:
    return Type("f32", tuple(dims.split()))


def i64(dims: str) -> Type:
    return Type("i64", tuple(dims.split()))


def einsum(g):
    return g.einsum(g.input("x", f("b t d")), g.input("w", f("d e")), g.input("s", f("n")), to="e b t")


def einsum_alone(g):
    return g.einsum(g.input("x", f("b t")), to="t")


def map_lets(g):
    x, w = g.input("x", f("b t d")), g.input("w", f("d"))
    let = {"f": "sigmoid(x + w)", "r": "tanh(f*x)*n_d + i_t"}
    return g.maps(["f*x + (1 - f)*r", "r**2/3"], let=let, x=x, w=w, to="t b d")


def map_choice(g):
    x, y = g.input("x", f("b t")), g.input("y", f("t"))
    c = g.map("x > y and i_t < 2", x=x, y=y)
    return g.map("where(c, max(x, y), min(x, y)*2) + abs(x)", c=c, x=x, y=y, to="b t")


def cast(g):
    return g.cast(g.map("x*x", x=g.input("x", f("b t")), dtype="f64"), "f32")


def reduce_sum(g):
    return g.reduce(g.input("x", f("b t d")), to="d b")


def reduce_max(g):
    return g.reduce(g.input("x", f("b t d")), to="t", kind="max")


def gather(g):
    return g.gather(g.input("x", f("v d")), g.input("i", i64("b t")), at="v")


def gather_two(g):
    return g.gather(g.input("x", f("v d c")), g.input("i", i64("b")), g.input("j", i64("b t")), at="c v")


def gather_aligned(g):
    """The index has a dim of the table: row by row."""
    return g.gather(g.input("x", f("b v")), g.input("i", i64("b t")), at="v")


def gather_permutation(g):
    """The dim looked up is also the index's: a permutation along it."""
    return g.gather(g.input("x", f("b t")), g.table([2, 0, 5], "t", (3,)), at="t")


def scatter(g):
    return g.scatter(g.input("x", f("b t d")), g.input("i", i64("b t")), at="v", to="b v d")


def scatter_two(g):
    return g.scatter(g.input("x", f("b d")), g.input("i", i64("b t")), g.input("j", i64("t")), at="c v", to="v c d")


def rename(g):
    x = g.input("x", f("b t d"))
    return g.einsum(x, g.rename(x, "t", "n"), to="b t n")


def concat(g):
    return g.concat(g.input("x", f("b t d")), g.input("y", f("b c d")), dims="t c", new="z")


def part(g):
    return g.part(g.input("x", f("b z")), "z", "p", "n_z - n_p - 1")


def chunk(g):
    return g.one(Chunk("t", "c", "p"), g.input("x", f("b t d")))


def unchunk(g):
    return g.one(Unchunk("c", "p", "t"), g.input("x", f("b c p d")))


def detach(g):
    x = g.input("x", f("b"))
    return g.map("x*y", x=x, y=g.detach(g.map("x + 1", x=x)))


def table(g):
    t = g.table([3, 1, 4, 1, 5, 9], "b t", (2, 3))
    return g.map("x*t", x=g.input("x", f("b t")), t=t)


def loop_cell(g):
    c, x, w = g.input("c", f("b")), g.input("x", f("b t")), g.input("w", f("b"))
    got = g.scan("t", {"c": ("f*c + x", c)}, {"h": "tanh(c)*w"}, let={"f": "sigmoid(w*c + x)"}, x=x, w=w)
    return got["h"], got["c"]


def loop_reverse(g):
    c, x = g.input("c", f("b")), g.input("x", f("b t"))
    return g.scan("t", {"c": ("sin(c + x)", c)}, {"h": "c*x"}, reverse=True, x=x)["h"]


def loop_layers(g):
    """A stack of calls; the carries as they were before each step are results too."""
    x, w = g.input("x", f("b d")), g.input("w", f("t d e"))
    b, c = Builder(), Builder()
    u, v = b.input("u", f("b d")), b.input("v", f("d e"))
    body = b.graph(b.map("u + tanh(h)", u=u, h=b.einsum(b.einsum(u, v, to="b e"), v, to="b d")))
    cx, cw = c.input("x", f("b d")), c.input("w", f("d e"))
    out = g.loop("t", c.graph(*c.many(Call("layer", body), cx, cw)), 1, x, w)
    return out[0], out[1]


def call(g):
    x, b = g.input("x", f("b t")), Builder()
    u = b.input("u", f("b t"))
    return g.many(Call("block", b.graph(b.map("u**2", u=u), b.reduce(u, to="t", kind="max"))), x)


def grad(g):
    """A derivative kept as one op, and its own derivative."""
    j = joint(_graph(lambda b: b.one(Softmax("t"), b.input("x", f("b t")))), ["x"])
    return g.inline(j, [g.input("x", f("b t")), g.input("dy", f("b t"))])


CASES = [v for k, v in list(globals().items()) if callable(v) and getattr(v, "__module__", "") == __name__]
CASES = [c for c in CASES if c not in (f, i64)]


def _graph(case) -> Graph:
    g = Builder()
    out = case(g)
    return g.graph(*(out if isinstance(out, tuple) else (out,)))


def _floats(graph, values):
    return [v for x, v in zip(graph.inputs, values) if x.type.floating]


def _check(graph: Graph, sizes: dict, args: list, tol: float = 1e-10) -> Graph:
    """joint's gradients, as they are and flattened, against torch autograd through the interpreter."""
    verify(graph, sizes)
    wrt = [v.name for v in graph.inputs if v.type.floating]
    both = verify(joint(graph, wrt), sizes)
    args = [a.requires_grad_(a.is_floating_point()) for a in args]
    out = run(graph, sizes, args, torch, F64)
    gen = torch.Generator().manual_seed(7)
    dy = [torch.randn(o.shape, generator=gen, dtype=F64) for o in out if o.is_floating_point()]
    live = [(o, d) for o, d in zip([o for o in out if o.is_floating_point()], dy) if o.requires_grad]
    floats = _floats(graph, args)
    ours = zip([v for v in graph.outputs if v.type.floating], dy)
    seeds = [d for v, d in ours if v in with_gradient(graph, graph.outputs)]  # not of what a detach makes
    ends = [o for o, _ in live], floats, [d for _, d in live]
    want = torch.autograd.grad(*ends, allow_unused=True, materialize_grads=True) if live else [x * 0 for x in floats]
    for g in (both, flatten(both)):
        got = run(verify(g, sizes), sizes, [*args, *seeds], torch, F64)[len(out) :]
        for name, a, b in zip(wrt, got, want, strict=True):
            assert (a - b).norm() <= tol * max(b.norm(), 1e-3), name
    return both


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_vjp(case):
    graph = _graph(case)
    args = [torch.randint(-1, 7, a.shape) if a.dtype == torch.int64 else a for a in random_args(graph, SIZES, torch, 3)]
    _check(graph, SIZES, args)


@pytest.mark.parametrize("case", [c for c in CASES if c is not grad], ids=lambda c: c.__name__)
def test_second_order(case):
    """The joint graph is a graph like any other: its derivative is right too."""
    graph = _graph(case)
    both = joint(graph, [v.name for v in graph.inputs if v.type.floating])
    _check(both, SIZES, random_args(both, SIZES, torch, 5))


def test_generated_graphs():
    for seed in range(count(sample=40, soak=400)):
        graph, sizes = random_graph(random.Random(seed))
        _check(graph, sizes, random_args(graph, sizes, torch, seed), 1e-9)


def test_every_primitive_has_a_case():
    seen = {type(n.op) for c in CASES for n in joint(_graph(c), []).nodes} | {
        type(n.op) for c in CASES for n in joint(_graph(c), [v.name for v in _graph(c).inputs if v.type.floating]).nodes
    }
    missing = {op_name(p) for p in (*PRIMITIVES, Call, Grad) if p not in seen}

    assert missing == {"opaque", "opaque_grad"}


VALUES = {
    einsum: lambda x, w, s: torch.einsum("btd,de,n->ebt", x, w, s),
    einsum_alone: lambda x: x.sum(0),
    reduce_sum: lambda x: x.sum(1).T,
    reduce_max: lambda x: x.amax((0, 2)),
    gather: lambda x, i: torch.where(((i >= 0) & (i < 6))[..., None], x[i.clamp(0, 5)], 0),
    gather_permutation: lambda x: torch.stack([x[:, 2], x[:, 0], x[:, 0] * 0]),
    rename: lambda x: torch.einsum("btd,bnd->btn", x, x),
    concat: lambda x, y: torch.cat([x, y], 1),
    part: lambda x: x[:, 2:4],
    chunk: lambda x: torch.cat([x, x[:, :1] * 0], 1).view(2, 2, 2, 4),
    unchunk: lambda x: x.flatten(1, 2)[:, :3],
    table: lambda x: x * torch.tensor([[3, 1, 4], [1, 5, 9]]),
}


@pytest.mark.parametrize("case", VALUES, ids=lambda c: c.__name__)
def test_value(case):
    graph = _graph(case)
    args = [torch.randint(-1, 7, a.shape) if a.dtype == torch.int64 else a for a in random_args(graph, SIZES, torch, 3)]

    assert torch.equal(run(graph, SIZES, args, torch, F64)[0], VALUES[case](*args).to(F64))


def test_scatter_is_the_transpose_of_gather():
    """<scatter(x), y> = <x, gather(y)> with coordinates out of range on both sides."""
    for one, other in ((scatter, gather_aligned_3d),):
        s, g = _graph(one), _graph(other)
        x, i = random_args(s, SIZES, torch, 1)
        i = torch.randint(-2, 9, i.shape)
        (y,) = (torch.randn(2, 6, 4, dtype=F64),)
        left = (run(s, SIZES, [x, i], torch, F64)[0] * y).sum()
        right = (x * run(g, SIZES, [y, i], torch, F64)[0]).sum()

        assert torch.allclose(left, right)


def gather_aligned_3d(g):
    return g.gather(g.input("x", f("b v d")), g.input("i", i64("b t")), at="v")


class Mixer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(4, 4, dtype=F64)

    def forward(self, x, scale):
        return torch.tanh(self.inner(x)) * scale


def test_opaque():
    """A wrapped module: its value, and its gradients in inputs and parameters, by torch autograd."""
    g, mixer = Builder(), Mixer()
    x, s = g.input("x", f("b d")), g.input("s", f("d"))
    w, b = g.input("w", f("v d")), g.input("bias", f("d"))
    y = g.one(Opaque("mixer", (f("b d"),), ("inner.weight", "inner.bias")), x, s, w, b)
    graph = g.graph(g.map("y*y", y=y))
    sizes = {"b": 2, "d": 4, "v": 4}
    values = [torch.randn(2, 4, dtype=F64), torch.randn(4, dtype=F64), mixer.inner.weight, mixer.inner.bias]
    values = [v.detach().requires_grad_() for v in values]
    mixer.load_state_dict({"inner.weight": values[2], "inner.bias": values[3]})
    dy = torch.randn(2, 4, dtype=F64)
    both = verify(joint(graph, ["x", "s", "w", "bias"]), sizes)
    out, *got = run(both, sizes, [*values, dy], torch, F64, modules={"mixer": mixer})
    want = (
        torch.func.functional_call(mixer, {"inner.weight": values[2], "inner.bias": values[3]}, tuple(values[:2])) ** 2
    )

    assert torch.allclose(out, want)
    for a, b in zip(got, torch.autograd.grad(want, values, dy)):
        assert torch.allclose(a, b)
