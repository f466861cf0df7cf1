"""Blocks to run passes on: hand-built ones as a frontend would build them, and generated ones."""

import random

import sympy as sp

from weft.ir.builder import Builder
from weft.ir.library import Attend, Dropout, LayerNorm
from weft.ir.pattern import Pattern
from weft.ir.types import Graph, Type, Val

SIZES = {"batch": 2, "seq": 8, "key": 8, "width": 6, "heads": 2, "head": 4, "inner": 10}
PARAMS = ("n1_w", "n1_b", "wq", "wk", "wv", "wo", "n2_w", "n2_b", "w1", "w2")
EPS = sp.Rational(1, 100000)


def floats(dims: str) -> Type:
    return Type("f32", tuple(dims.split()))


def gpt(pattern: str = "causal", dropout: bool = False) -> Graph:
    """A pre-norm transformer block: x and its parameters -> y."""
    g = Builder("spec.yaml:7")
    x = g.input("x", floats("batch seq width"))
    shapes = (
        "width",
        "width",
        *["width heads head"] * 3,
        "heads head width",
        "width",
        "width",
        "width inner",
        "inner width",
    )
    p = {n: g.input(n, floats(d)) for n, d in zip(PARAMS, shapes, strict=True)}
    n = g.one(LayerNorm("width", EPS), x, p["n1_w"], p["n1_b"], names=["norm1"])
    q, k, v = (g.einsum(n, p[w], to="batch seq heads head") for w in ("wq", "wk", "wv"))
    k, v = g.rename(k, "seq", "key"), g.rename(v, "seq", "key")
    attend = Attend("head", "key", "seq", Pattern.parse(pattern), sp.Rational(1, 2), heads=("heads",))
    o, _ = g.many(attend, q, k, v, names=["mixed", "lse"])
    with g.at("spec.yaml:9"):
        o = g.einsum(o, p["wo"], to="batch seq width")
    if dropout:
        seed, layer = g.input("seed", Type("i64", ())), g.input("layer", Type("i64", ()))
        o = g.one(Dropout(sp.Rational(1, 4), 3), o, seed, layer)
    x = g.map("x + o", x=x, o=o, names=["middle"])
    n = g.one(LayerNorm("width", EPS), x, p["n2_w"], p["n2_b"], names=["norm2"])
    h = g.map("gelu(h)", h=g.einsum(n, p["w1"], to="batch seq inner"), names=["active"])
    return g.graph(g.map("x + o", x=x, o=g.einsum(h, p["w2"], to="batch seq width"), names=["y"]))


def generated(rng: random.Random, nodes: int = 8) -> Graph:
    """A random block of maps, reductions and contractions over two square dims."""
    g = Builder()
    pool: list[Val] = [g.input("x", floats("row col")), g.input("w", floats("col")), g.input("u", floats("row col"))]
    for i in range(nodes):
        a, b = (rng.choice(pool[-5:]) for _ in range(2))
        kind = rng.choice(["map", "map", "two", "norm", "dot"])
        if kind == "map":
            out = g.map(rng.choice(["tanh(a)", "a * sigmoid(a)", "exp(-a*a)"]), a=a, names=[f"v{i}"])
        elif kind == "two":
            out = g.map("a * b + 0.5 * a", a=a, b=b, names=[f"v{i}"])
        elif kind == "norm" and "col" in a.dims:
            out = g.map("a - s / n_col", a=a, s=g.reduce(a, to=[d for d in a.dims if d != "col"]), names=[f"v{i}"])
        elif "row" in a.dims and "row" in b.dims and a != b:
            out = g.map("0.3 * c", c=g.einsum(a, b, to="col" if rng.random() < 0.3 else "row col"), names=[f"v{i}"])
        else:
            out = g.map("a + 1", a=a, names=[f"v{i}"])
        pool.append(out)
    last = pool[-1] if "row" in pool[-1].dims else g.map("a * x", a=pool[-1], x=pool[0], to="row col")
    return g.graph(last, pool[-2]) if rng.random() < 0.3 and pool[-2] != last else g.graph(last)


GENERATED = {"row": 5, "col": 5}
