"""One rejection for every rule of the verifier, and of every op."""

from dataclasses import replace
from functools import partial

import pytest
import sympy as sp

from weft.errors import VerifyError
from weft.ir.builder import Builder
from weft.ir.composite import Call, Grad
from weft.ir.formula import operand, parse
from weft.ir.library import Softmax
from weft.ir.ops.chunks import Chunk, Unchunk
from weft.ir.ops.primitives import Concat, Einsum, Loop, Map, Opaque, OpaqueGrad, Part, Reduce, Table
from weft.ir.types import Graph, Type, Val
from weft.ir.verify import verify


def f(dims: str, dtype: str = "f32") -> Type:
    return Type(dtype, tuple(dims.split()))


def graph() -> Graph:
    g = Builder()
    x, w = g.input("x", f("b t d")), g.input("w", f("d e"))
    with g.at("spec.yaml:4"):
        h = g.einsum(x, w, to="b t e")
    return g.graph(g.map("tanh(h)", h=h, names=["y"]))


def second(g: Graph, **changes) -> Graph:
    return replace(g, nodes=(g.nodes[0], replace(g.nodes[1], **changes)))


def loop(**changes) -> Graph:
    """A loop over t whose body is changed."""
    g, b = Builder(), Builder()
    c0, x = g.input("c0", f("b")), g.input("x", f("b t"))
    c, u = b.input("c", f("b")), b.input("u", f("b"))
    body = b.graph(b.map("c + u", c=c, u=u))
    out = g.loop("t", body, 1, c0, x)
    made = g.graph(out[0])
    node = made.nodes[0]
    return replace(made, nodes=(replace(node, op=replace(node.op, body=replace(body, **changes))),))


def body_out_of_order() -> Graph:
    b = Builder()
    c, u = b.input("c", f("b")), b.input("u", f("b"))
    y = b.map("c*u", c=c, u=u)
    b.map("y + 1", y=y)
    return loop(nodes=(b.nodes[1], b.nodes[0]), outputs=(b.nodes[1].outs[0],))


G = graph()
X, W = G.inputs
H, Y = (n.outs[0] for n in G.nodes)
SIZES = {"b": 2, "t": 3, "d": 4, "e": 5}


def rename_all(g: Graph, old: str, new: str) -> Graph:
    """Another name for an input dim, wherever it stands."""

    def val(v: Val) -> Val:
        return replace(v, type=v.type.but(new if d == old else d for d in v.dims))

    nodes = tuple(replace(n, ins=tuple(map(val, n.ins)), outs=tuple(map(val, n.outs))) for n in g.nodes)
    return Graph(tuple(map(val, g.inputs)), nodes, tuple(map(val, g.outputs)))


GRAPH_RULES = {
    "1 a value's name is an identifier": (lambda: replace(G, inputs=(replace(X, name="x y"), W)), "not an identifier"),
    "1 in ASCII": (lambda: replace(G, inputs=(replace(X, name="ａ"), W)), "not an identifier"),
    "1 the name of a dim is an identifier": (lambda: rename_all(G, "d", "d-1"), "dim 'd-1' of x is not an identifier"),
    "2 a known dtype": (lambda: replace(G, inputs=(replace(X, type=f("b t d", "f8")), W)), "unknown dtype 'f8'"),
    "3 a dim at most once": (lambda: replace(G, inputs=(replace(X, type=f("b t t")), W)), "has a dim twice"),
    "4 bound once, inputs": (lambda: replace(G, inputs=(X, X)), "x is bound twice"),
    "4 bound once, nodes": (lambda: replace(G, nodes=(*G.nodes, G.nodes[0])), "einsum is bound twice"),
    "5 bound before use": (lambda: replace(G, nodes=G.nodes[::-1]), "operand einsum is not bound before use"),
    "5 with the type it is used at": (
        lambda: second(G, ins=(replace(H, type=f("b t e", "f64")),)), r"operand einsum is f32\[b t e\], used as f64",
    ),
    "6 an op accepts its operands": (lambda: second(G, ins=(H, H)), "never reads _1"),
    "6 and says which line": (
        lambda: replace(G, nodes=(replace(G.nodes[0], op=Einsum(("q",))),)),
        r"einsum \(spec.yaml:4\): einsum cannot make \[q\]",
    ),
    "7 results have the types the op gives": (
        lambda: second(G, outs=(replace(Y, type=f("b e t")),)), r"gives f32\[b t e\], the graph says f32\[b e t\]",
    ),
    "7 as many as it gives": (lambda: second(G, outs=(Y, replace(Y, name="z"))), "the op gives"),
    "8 an output is bound": (lambda: replace(G, outputs=(Val("z", Y.type),)), "output z is not bound"),
    "9 in bodies too": (body_out_of_order, "is not bound before use"),
}  # fmt: skip


@pytest.mark.parametrize("rule", GRAPH_RULES)
def test_graph_rules(rule):
    make, message = GRAPH_RULES[rule]
    with pytest.raises(VerifyError, match=message):
        verify(make())


def concat() -> Graph:
    g = Builder()
    return g.graph(g.concat(g.input("x", f("a b")), g.input("y", f("c b")), dims="a c", new="z"))


def part() -> Graph:
    g = Builder()
    return g.graph(g.part(g.input("x", f("a b")), "a", "p", "n_b - 1"))


def table() -> Graph:
    g = Builder()
    return g.graph(g.table([1, 2, 3], "a", (3,)))


def chunk() -> Graph:
    g = Builder()
    return g.graph(g.one(Chunk("a", "n", "m"), g.input("x", f("a b"))))


SIZE_RULES = {
    "10 every dim has a size": (lambda: G, {"b": 2, "t": 3, "d": 4}, "dim e of w has no size"),
    "11 a concat is as long as its operands": (concat, {"a": 2, "b": 1, "c": 3, "z": 6}, "a \\+ c is 5, but z is 6"),
    "12 a part lies within": (part, {"a": 4, "b": 3, "p": 3}, r"p \(2 to 5\) leaves a \(4\)"),
    "13 a table fills its dims": (table, {"a": 4}, r"a table of \(3,\)"),
    "14 pieces hold a dim": (chunk, {"a": 4, "b": 2, "n": 3, "m": 2}, r"a \(4\) is not n \(3\) pieces of m \(2\)"),
}


@pytest.mark.parametrize("rule", SIZE_RULES)
def test_size_rules(rule):
    make, sizes, message = SIZE_RULES[rule]
    verify(make())
    with pytest.raises(VerifyError, match=message):
        verify(make(), sizes)


def test_a_good_graph_passes():
    assert verify(G, SIZES) is G
    assert verify(loop(), SIZES)


x, y, k, c = f("b t d"), f("d e"), f("b t", "i64"), f("b", "bool")
BODY = Builder()
BODY_GRAPH = BODY.graph(BODY.map("c + u", c=BODY.input("c", f("b")), u=BODY.input("u", f("b"))))


def m(*exprs: str, to: str = "b t d", lets: tuple[str, ...] = (), dtype: str = "f32") -> Map:
    return Map(tuple(map(parse, lets)), tuple(map(parse, exprs)), tuple(to.split()), dtype)


OP_RULES = [
    (Einsum(("b",)), (), "needs an operand"),
    (Einsum(("b",)), (x, f("d", "f16")), "different dtypes"),
    (Einsum(("b",)), (k,), "multiplies floats"),
    (Einsum(("b", "q")), (x, y), "cannot make"),
    (Einsum(("b", "b")), (x, y), "a dim twice"),
    (m("_0", dtype="f8"), (x,), "unknown dtype"),
    (m("_0", to="b t"), (x,), "would lose d"),
    (Map((), (), ("b",)), (), "without a formula"),
    (m("_0 + i_z"), (x,), "no coordinate i_z"),
    (m("_0 + speed"), (x,), "reads speed"),
    (m("_0 + _1"), (x,), "reads _1"),
    (m("_t0", lets=("_0 + _t1", "_t0 + 1")), (x,), "reads _t1"),
    (m("_0"), (x, x), "never reads _1"),
    (m("_0", lets=("_0*2",)), (x,), "never reads _t0"),
    (m("_0 > 0"), (x,), "has dtype bool"),
    (Reduce(("b",)), (), "one operand"),
    (Builder.reduce, (x, "b q"), "cannot make"),
    (Builder.reduce, (x, "b", "mean"), "knows sum, max and argmax"),
    (Builder.reduce, (x, "b", "argmax"), "over one dim"),
    (Builder.reduce, (c, ""), "of conditions"),
    (Builder.gather, (x,), "no dims"),
    (Builder.gather, (x, k, "v"), "no dims"),
    (Builder.gather, (x, k, "d d"), "no dims"),
    (Builder.gather, (x, "d"), "1 dims need 1 indices"),
    (Builder.gather, (x, x, "d"), "indices are i64"),
    (Builder.scatter, (k, k, "v", "v"), "adds floats"),
    (Builder.scatter, (x, k, "v", "w"), "no dims"),
    (Builder.scatter, (x, "v", "v"), "1 dims need 1 indices"),
    (Builder.scatter, (x, x, "v", "v"), "indices are i64"),
    (Builder.scatter, (x, k, "v", "v q"), "no q"),
    (Builder.rename, (x, "q", "r"), "no dim q"),
    (Builder.rename, (x, "b", "d"), "already has a dim d"),
    (Concat(("b",), "z"), (), "1 dims for 0 operands"),
    (Concat(("b", "q"), "z"), (x, x), "no dim q"),
    (Concat(("b", "b"), "d"), (x, x), "already has a dim d"),
    (Concat(("b", "d"), "z"), (x, y), "differ outside"),
    (Part("q", "r", sp.S.Zero), (x,), "no dim q"),
    (Part("b", "d", sp.S.Zero), (x,), "already has a dim d"),
    (Part("b", "r", operand(0)), (x,), "start is over sizes"),
    (Chunk("q", "n", "m"), (x,), "no dim q"),
    (Chunk("b", "n", "n"), (x,), "two dims called n"),
    (Chunk("b", "d", "m"), (x,), "already has d or m"),
    (Unchunk("b", "t", "d"), (x,), "already has a dim d"),
    (Unchunk("b", "d", "q"), (x,), "no b d beside each other"),
    (Table((1, 2), ("a",), (2,)), (x,), "takes no operand"),
    (Table((1, 2), ("a",), (2, 1)), (), "1 dims, 2 sizes"),
    (Table((1, 2), ("a",), (3,)), (), "do not fill"),
    (Table((2**63,), ("a",), (1,)), (), "does not fit i64"),
    (Loop("t", BODY_GRAPH, 2), (f("b"), f("b t")), "2 carries"),
    (Loop("t", BODY_GRAPH, 1), (f("b"), x), "do not fit the body"),
    (Loop("t", BODY_GRAPH, 1), (f("b t"), f("b t")), "a carry has the dim t"),
    (Call("block", BODY_GRAPH), (f("b"), f("b t")), "call block: operands"),
    (Grad(Softmax("d"), 2, (True,)), (x,), "2 operands of softmax, 1 given"),
    (Grad(Softmax("d"), 1, (True, True)), (x, x), "2 flags for 1 results"),
    (Grad(Softmax("d"), 1, (True,)), (x, y), "expected"),
    (Opaque("k", (), ()), (x,), "no results"),
    (Opaque("k", (x,), ("w", "v")), (x,), "2 parameters, 1 operands"),
    (OpaqueGrad(Opaque("k", (x,)), 1, (True, True)), (x, x), "2 flags for 1 results"),
    (OpaqueGrad(Opaque("k", (x,)), 1, (True,)), (x, y), "expected"),
]


@pytest.mark.parametrize(("op", "args", "message"), OP_RULES, ids=lambda a: a if isinstance(a, str) else "")
def test_op_rules(op, args, message):
    g = Builder()
    ins = [g.input(f"x{i}", a) if isinstance(a, Type) else a for i, a in enumerate(args)]
    values = [a for a in ins if isinstance(a, Val)]
    dims = [a for a in ins if not isinstance(a, Val)]
    keys = {Builder.gather: ("at",), Builder.scatter: ("at", "to")}.get(op, ())
    names = dict(zip(keys, dims or [""]))
    call = partial(op, g) if callable(op) else partial(g.many, op)
    with pytest.raises(VerifyError, match=message.replace("(", r"\(")):
        call(*(values if keys else ins), **names)


def test_a_body_that_changes_a_carry():
    b = Builder()
    y = b.map("c + u", c=b.input("c", f("b")), u=b.input("u", f("b")), dtype="f64")
    with pytest.raises(VerifyError, match="a carry changes type"):
        Loop("t", b.graph(y), 1).infer(f("b"), f("b t"))


def test_a_body_that_makes_the_dim_of_the_loop():
    b = Builder()
    c0 = b.input("c", f("b"))
    y = b.map("c + i_t", c=c0, to="b t")
    with pytest.raises(VerifyError, match="the body makes the dim t"):
        Loop("t", b.graph(c0, y), 1).infer(f("b"))
