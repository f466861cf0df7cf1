"""The text form: parse(show(g)) == g, sources included, for every op and every kind of attribute."""

import random
from contextlib import suppress
from dataclasses import dataclass

import pytest
import sympy as sp

from tests.campaign import count
from tests.ir.generate import random_graph
from weft.errors import TextError, WeftError
from weft.ir import text
from weft.ir.all_ops import OPS
from weft.ir.builder import Builder, flatten
from weft.ir.composite import Call, Grad
from weft.ir.derive import joint
from weft.ir.formula import parse as formula
from weft.ir.library import (
    Attend,
    CrossEntropy,
    Dropout,
    FromStatistics,
    LayerNorm,
    Rotary,
    RotaryBack,
    Softmax,
    SoftmaxGrad,
    WithStatistics,
)
from weft.ir.ops.op import Op, op_name
from weft.ir.ops.primitives import Opaque
from weft.ir.pattern import Pattern
from weft.ir.types import Decision, Graph, Type
from weft.ir.verify import verify
from weft.passes.pairs import fast


def f(dims: str, dtype: str = "f32") -> Type:
    return Type(dtype, tuple(dims.split()))


def sources(graph: Graph) -> list:
    """The sources of all nodes, those of bodies too."""
    return [(n.src, [sources(b) for b in vars(n.op).values() if isinstance(b, Graph)]) for n in graph.nodes]


def round_trip(graph: Graph) -> None:
    shown = text.show(graph)
    back = text.parse(shown)

    assert back == graph, shown
    assert sources(back) == sources(graph)
    assert text.show(back) == shown


def test_generated_graphs():
    """Forward, joint forward-backward and flattened graphs."""
    for seed in range(count(sample=60, soak=500)):
        graph, sizes = random_graph(random.Random(seed))
        verify(graph, sizes)
        round_trip(graph)
        both = joint(graph, [v.name for v in graph.inputs])
        round_trip(both)
        round_trip(flatten(both))


def test_what_it_looks_like():
    g = Builder()
    x, w = g.input("x", f("batch seq width", "bf16")), g.input("w", f("width inner", "bf16"))
    with g.at("spec.yaml:14"):
        h = g.einsum(x, w, to="batch seq inner")
    y = g.map("gelu(h)*scale", h=h, let={"scale": "1/sqrt(n_inner)"}, dtype="f32", names=["y"])

    assert text.show(g.graph(y)) == (
        "(x: bf16[batch seq width], w: bf16[width inner]) {\n"
        "  einsum: bf16[batch seq inner] = einsum(x, w) to=[batch seq inner] @spec.yaml:14\n"
        '  y: f32[batch seq inner] = map(einsum) lets=["rsqrt(n_inner)"] exprs=["_t0*gelu(einsum)"]'
        " to=[batch seq inner]\n"
        "  return y\n"
        "}"
    )


def test_values_whose_names_mean_something_in_formulas():
    g = Builder()
    names = ("log", "pi", "i_b", "n_b", "_0", "_t0", "lambda", "True", "x")
    x = [g.input(n, f("b")) for n in names]
    y = g.map(" + ".join(f"{k}*v{k}" for k in range(1, 10)), **{f"v{k}": v for k, v in enumerate(x, 1)})
    twice = g.map("a*b + a", a=y, b=y)

    round_trip(g.graph(twice))


def test_every_library_op():
    g = Builder()
    q, k = g.input("q", f("b t h e")), g.input("k", f("b s h e"))
    seed, layer = g.input("seed", Type("i64", ())), g.input("layer", Type("i64", ()))
    with g.at('a "b" {}.yaml:3'):
        q = g.one(Dropout(sp.Rational(1, 10), op_id=3), g.one(Rotary("t", "e", style="interleaved"), q), seed, layer)
    pattern = Pattern.parse("causal and window(3)")
    score = formula("tanh(s)*30 - abs(i_q - i_k)")
    attend = Attend("e", "s", "t", pattern, formula("1/sqrt(n_e)"), score, heads=("h",))
    out, lse = g.many(attend, q, k, k)
    loss = g.one(CrossEntropy("e", ignore=-100), out, g.input("target", Type("i64", ("b", "t", "h"))))
    graph = g.graph(loss, lse)

    round_trip(graph)
    round_trip(joint(graph, ["q", "k"]))
    round_trip(flatten(joint(graph, ["q", "k"])))


def test_the_ops_of_pairs():
    """What torch joins of a forward and its derivative reads back as well."""
    g = Builder()
    x, w = g.input("x", f("b d")), g.input("w", f("d"))
    y = g.one(Softmax("d"), g.one(Rotary("b", "d"), g.one(LayerNorm("d", formula("0.1")), x, w, w)))
    loss = g.one(CrossEntropy("d"), y, g.input("target", Type("i64", ("b",))))
    graph = fast(joint(g.graph(loss), ["x", "w"]))

    assert {WithStatistics, FromStatistics, SoftmaxGrad, RotaryBack} <= {type(n.op) for n in graph.nodes}
    round_trip(graph)


@dataclass(frozen=True)
class Everything(Op):
    """One field of every type that an attribute can have."""

    count: int
    rate: float
    name: str
    flag: bool
    dims: tuple[str, ...]
    flags: tuple[bool, ...]
    values: tuple[int, ...]
    pairs: tuple[tuple[str, int], ...]
    types: tuple[Type, ...]
    scale: sp.Expr
    formulas: tuple[sp.Expr, ...]
    body: Graph
    inner: Op
    pattern: Pattern
    maybe: str | None
    other: Pattern | None = None

    def infer(self, *x):
        return ()


@pytest.fixture
def everything(monkeypatch):
    monkeypatch.setitem(OPS, op_name(Everything), Everything)
    g = Builder()
    x = g.input("x", f("b"))
    y = g.map("x + 1", x=x)
    return Everything(
        count=-3, rate=0.1, name='a "quoted"\nname\\ @x {', flag=False, dims=("b", "t"), flags=(True, False),
        values=(0, -5, 2**62), pairs=(("a b", 1), ("c", -2)), types=(f("b t"), Type("i64", ())),
        scale=formula("x/3 + _0"), formulas=(formula("_0*_1"), sp.oo), body=g.graph(y),
        inner=Grad(Softmax("b"), 1, (True,)), pattern=Pattern.parse("window(5)"), maybe=None,
    )  # fmt: skip


def test_every_type_of_attribute(everything):
    g = Builder()
    x, y = g.input("x", f("b")), g.input("y", f("b"))
    g.many(everything, x, y)
    g.many(everything, x, x)

    round_trip(g.graph(x))


def test_blocks_and_modules():
    g = Builder()
    x, p = g.input("x", f("b t")), g.input("p", f("t"))
    b = Builder("layer.yaml:2")
    body = b.graph(b.map("u*2", u=b.input("u", f("b t"))))
    (y,) = g.many(Call("block", body), x)
    z = g.one(Opaque("mixer", (f("b t"),), ("inner.weight", "bias")), y, p, p)

    round_trip(g.graph(z))
    round_trip(joint(g.graph(z), ["x", "p"]))
    assert isinstance(text.parse(text.show(g.graph(z))).nodes[0].op, Call)


def test_decisions_are_left_out():
    g = Builder()
    x = g.input("x", f("b"))
    graph = g.graph(x, decisions=(Decision("fusion", "x", "alone", "exact"),))

    assert graph == g.graph(x)
    assert text.parse(text.show(graph)).decisions == ()


GOOD = """(x: f32[b t]) {
  y: f32[b] = reduce(x) to=[b]
  return y
}"""


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("reduce", "redus", 2, "unknown op"),
        ("(x) to", "(z) to", 2, "not bound before use"),
        ("to=[b]", "into=[b]", 2, "expected ':'"),
        (" to=[b]", ' to=[b] to=[b] kind="max"', 2, "attribute to twice"),
        ("to=[b]", "to=[b] kind=7", 2, "is not str"),
        ("return y", "return w", 3, "not bound before use"),
        ("}", "", 4, "not bound"),
        ("}", "} extra", 4, "expected the end"),
        ("(x: f32[b t])", "x: f32[b t]", 1, "expected '('"),
    ],
)
def test_errors_name_the_line(old, new, line, message):
    with pytest.raises(TextError) as e:
        text.parse(GOOD.replace(old, new, 1))

    assert message in str(e.value)
    assert abs(e.value.line - line) <= 1


def test_damaged_text_is_an_error_of_ours():
    """Whatever is cut out of a graph's text, parsing it raises an error of ours or gives some graph."""
    rng = random.Random(5)
    shown = text.show(joint(*(lambda g: (g, [v.name for v in g.inputs]))(random_graph(random.Random(3))[0])))
    for _ in range(count(sample=150, soak=1500)):
        i, j = sorted(rng.sample(range(len(shown)), 2))
        put = rng.choice(("", "{", "[", '"', "@", "0", "x", "\n"))
        damaged = shown[:i] + put + shown[min(j, i + rng.randint(0, 9)) :]
        with suppress(WeftError):
            verify(text.parse(damaged))
