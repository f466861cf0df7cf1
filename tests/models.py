"""Small models through the builder, shared by the tests: GPT blocks and stacks, SRU, Switch, a tied language model."""

from typing import Any

from weft.ir.builder import Builder
from weft.ir.composite import Call
from weft.ir.formula import parse
from weft.ir.library import Attend, CrossEntropy, Dropout, ExpertProduct, LayerNorm, Route
from weft.ir.ops.chunks import Chunk, Unchunk
from weft.ir.pattern import Pattern
from weft.ir.types import Graph, Type, Val

EPS = parse("0.00001")
SIZES = {
    "batch": 4,
    "seq": 8,
    "key": 8,
    "width": 12,
    "heads": 4,
    "head": 4,
    "inner": 20,
    "layers": 3,
    "gate": 4,
    "out": 12,
    "router": 4,
    "experts": 4,
    "capacity": 2,
    "choice": 2,
    "vocab": 12,
    "memory": 4,
    "joined": 12,
    "half": 4,
    "place": 8,
}


def f32(dims: str) -> Type:
    return Type("f32", tuple(dims.split()))


def i64(dims: str = "") -> Type:
    return Type("i64", tuple(dims.split()))


BLOCK = {
    "ln1_w": "width",
    "ln1_b": "width",
    "wq": "width heads head",
    "wk": "width heads head",
    "wv": "width heads head",
    "wo": "heads head width",
    "ln2_w": "width",
    "ln2_b": "width",
    "w1": "width inner",
    "b1": "inner",
    "w2": "inner width",
    "b2": "width",
}


def gpt_layer(g: Builder, x: Val, *w: Val, pattern: str = "causal") -> Val:
    """One pre-norm GPT-2 block on [batch seq width]."""
    ln1_w, ln1_b, wq, wk, wv, wo, ln2_w, ln2_b, w1, b1, w2, b2 = w
    n = g.one(LayerNorm("width", EPS), x, ln1_w, ln1_b)
    q, k, v = (g.einsum(n, m, to="batch seq heads head") for m in (wq, wk, wv))
    k, v = (g.rename(y, old="seq", new="key") for y in (k, v))
    attend = Attend("head", "key", "seq", Pattern.parse(pattern), parse("1/sqrt(n_head)"), heads=("heads",))
    o, _ = g.many(attend, q, k, v)
    x = g.map("x + y", x=x, y=g.einsum(o, wo, to="batch seq width"))
    n = g.one(LayerNorm("width", EPS), x, ln2_w, ln2_b)
    a = g.map("gelu(h + b)", h=g.einsum(n, w1, to="batch seq inner"), b=b1)
    return g.map("x + y + b", x=x, y=g.einsum(a, w2, to="batch seq width"), b=b2, to="batch seq width")


def gpt_block() -> Graph:
    g = Builder()
    x = g.input("x", f32("batch seq width"))
    return g.graph(gpt_layer(g, x, *(g.input(n, f32(d)) for n, d in BLOCK.items())))


def pieces() -> Graph:
    """Positions in pieces, each with its number added; and whole again."""
    g = Builder()
    x = g.one(Chunk("seq", "gate", "capacity"), g.input("x", f32("batch seq width")))
    y = g.map("x*(1 + i_gate) + i_capacity", x=x, to=x.dims)
    return g.graph(g.one(Unchunk("gate", "capacity", "seq"), y), x)


def gpt_stack(period: int = 1) -> Graph:
    """A loop over layers whose body calls `period` blocks, each with its own stacked parameters."""
    g = Builder()
    x = g.input("x", f32("batch seq width"))
    ws = [g.input(f"{n}_{p}", f32(f"layers {d}")) for p in range(period) for n, d in BLOCK.items()]
    b = Builder()
    y = b.input("x", x.type)
    rows = [b.input(w.name, w.type.but(w.dims[1:])) for w in ws]
    for p in range(period):
        (y,) = b.many(Call("block", gpt_block()), y, *rows[p * len(BLOCK) : (p + 1) * len(BLOCK)])
    return g.graph(g.loop("layers", b.graph(y), 1, x, *ws)[0])


SRU = {"c0": "batch out", "vf": "out", "vr": "out", "bf": "out", "br": "out"}


def sru() -> Graph:
    """An SRU layer by formula (Lei 2021): h [seq batch out] and the last state."""
    g = Builder()
    x, w = g.input("x", f32("batch seq width")), g.input("w", f32("gate width out"))
    c0, vf, vr, bf, br = (g.input(n, f32(d)) for n, d in SRU.items())
    ws = [g.gather(w, g.map(i, to=(), dtype="i64"), at="gate") for i in range(3)]
    u = {f"u{i}": g.einsum(x, m, to="batch seq out") for i, m in enumerate(ws)}
    got = g.scan(
        along="seq",
        state={"c": ("f*c + (1 - f)*u0", c0)},
        out={"h": "r*(f*c + (1 - f)*u0) + (1 - r)*x"},
        let={"f": "sigmoid(u1 + vf*c + bf)", "r": "sigmoid(u2 + vr*c + br)"},
        **u,
        x=g.rename(x, old="width", new="out"),
        vf=vf,
        vr=vr,
        bf=bf,
        br=br,
    )
    return g.graph(got["h"], got["c"])


def switch(k: int = 1, **options: Any) -> Graph:
    """A routed MLP with capacity: y [batch seq width], the auxiliary loss, then whatever Route gives more.

    `router` and `experts` are one size and two shardings."""
    g = Builder()
    x, wr = g.input("x", f32("batch seq width")), g.input("wr", f32("width router"))
    w1, w2 = g.input("w1", f32("experts width inner")), g.input("w2", f32("experts inner width"))
    route = Route("router", "seq", k, choice="choice" if k > 1 else "", **options)
    expert, place, gate, aux, _, *more = g.many(route, g.einsum(x, wr, to="batch seq router"))
    xs = g.scatter(x, expert, place, at="experts capacity", to="batch experts capacity width")
    h = g.map("relu(x)", x=g.einsum(xs, w1, to="batch experts capacity inner"))
    y = g.gather(g.einsum(h, w2, to="batch experts capacity width"), expert, place, at="experts capacity")
    return g.graph(g.einsum(gate, y, to="batch seq width"), aux, *more)


def dropless(k: int = 2) -> Graph:
    """A routed MLP whose tokens meet their experts' weights where they are: y [batch seq width]."""
    g = Builder()
    x, wr = g.input("x", f32("batch seq width")), g.input("wr", f32("width router"))
    w1, w2 = g.input("w1", f32("experts width inner")), g.input("w2", f32("experts inner width"))
    b1 = g.input("b1", f32("experts inner"))
    expert, _, gate, *_ = g.many(Route("router", "seq", k, choice="choice"), g.einsum(x, wr, to="batch seq router"))
    rows = ("batch", "seq", "choice")
    up = g.one(ExpertProduct("experts", (*rows, "inner")), x, w1, expert)
    h = g.map("silu(u + b)", u=up, b=g.gather(b1, expert, at="experts"))
    y = g.one(ExpertProduct("experts", (*rows, "width")), h, w2, expert)
    return g.graph(g.einsum(gate, y, to="batch seq width"))


def language_model() -> Graph:
    """Embedding tied with the head, dropout, cross-entropy: the mean loss."""
    g = Builder()
    tokens, target = g.input("tokens", i64("batch seq")), g.input("target", i64("batch seq"))
    table, seed = g.input("table", f32("vocab width")), g.input("seed", i64())
    layer = g.map(0, to=(), dtype="i64")
    x = g.one(Dropout(parse("0.1"), 7), g.gather(table, tokens, at="vocab"), seed, layer)
    loss = g.one(CrossEntropy("vocab"), g.einsum(x, table, to="batch seq vocab"), target)
    return g.graph(g.mean(loss, ("batch", "seq")))


def fill(torch: Any, graph: Graph, seed: int = 0, **sizes: int) -> dict[str, Any]:
    """fp64 numbers for every input; integers below the vocabulary's size."""
    n, gen = SIZES | sizes, torch.Generator().manual_seed(seed)

    def draw(v: Val) -> Any:
        shape = [n[d] for d in v.dims]
        if v.type.floating:
            return torch.randn(shape, generator=gen, dtype=torch.float64) * 0.5
        return torch.randint(0, n["vocab"], shape, generator=gen)

    return {v.name: draw(v) for v in graph.inputs}
