"""Every role and linearity claim of every op in several joint graphs, enumerated and executed."""

from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch

from tests.ir.simulate import simulate
from tests.models import SIZES, dropless, f32, fill, gpt_block, gpt_stack, i64, language_model, sru, switch
from weft.ir.builder import Builder, flatten
from weft.ir.composite import Composite
from weft.ir.formula import parse
from weft.ir.library import Attend, Rotary, Route, Softmax
from weft.ir.ops.op import op_name
from weft.ir.ops.primitives import Concat, Einsum, Loop, Map, Reduce
from weft.ir.pattern import Pattern
from weft.ir.placement import collectives
from weft.ir.reference import run
from weft.ir.types import Graph, Node, Type
from weft.passes.derivative import joint

SPLITS = ("parallel", "sum", "max")


def strained() -> Graph:
    """Ops that the models lack: concat, part, table, maxima, rotary, scores with block tables and segments."""
    g = Builder()
    a, b = g.input("a", f32("batch memory width")), g.input("b", f32("batch seq width"))
    y = g.concat(a, b, dims="memory seq", new="joined")
    cut = g.part(g.map("y*y", y=y), old="joined", new="half", start=parse("n_memory - 1"))
    top = g.reduce(y, to="batch width", kind="max")
    bias = g.gather(b, g.table(range(4), "half", [4]), at="seq")
    turned = g.one(Rotary("half", "width"), g.map("c + b", c=cut, b=bias))
    q = g.input("q", f32("batch seq heads head"))
    pattern = Pattern.parse("same_segment and blocks(2, [[0, 0], [0, 1], [2], [3, 3, 1]])")
    attend = Attend("head", "key", "seq", pattern, parse("1/2"), heads=("heads",), meta=("segments",))
    k = g.rename(q, old="seq", new="key")
    out, _ = g.many(attend, q, k, k, g.input("segments", i64("batch seq")))
    return g.graph(turned, top, out)


MODELS = {
    "gpt block": gpt_block,
    "stack": gpt_stack,
    "sru": sru,
    "switch": switch,
    "top 2": lambda: switch(2, z_loss=True),
    "dropless": dropless,
    "tied lm": language_model,
    "strained": strained,
}


def alone(n: Node) -> Graph:
    """One node as a graph."""
    g = Builder()
    return g.graph(*g.many(n.op, *(g.input(f"x{i}", v.type) for i, v in enumerate(n.ins))))


def nodes(graph: Graph) -> list[Node]:
    """Every node, those inside loops too."""
    return [m for n in graph.nodes for m in (n, *(nodes(n.op.body) if isinstance(n.op, Loop) else ()))]


def distinct(make) -> list[Node]:
    return list({(n.op, n.types): n for n in nodes(flatten(joint(make())))}.values())


def numbers(graph: Graph) -> list[torch.Tensor]:
    return list(fill(torch, graph, seed=4).values())


def claims(n: Node) -> list[tuple[str, str]]:
    return [(dim, role) for dim in n.space if (role := n.op.role(n, dim)) in SPLITS]


def holds_split(n: Node, dim: str) -> None:
    """The node split along dim over 2 ranks gives what it gives whole. Raises AssertionError."""
    graph = alone(n)
    args = numbers(graph)
    got, _ = simulate(graph, {"rank": (dim,)}, [2], SIZES, args, torch, torch.float64)
    for w, g in zip(run(graph, SIZES, args, torch, torch.float64), got, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("name", MODELS)
def test_every_role_claim_holds(name):
    seen = Counter()
    for n in distinct(MODELS[name]):
        for dim, role in claims(n):
            holds_split(n, dim)
            seen[role] += 1
    assert seen["parallel"] > 10
    assert seen["sum"] > 0


def linear_holds(n: Node) -> None:
    """op(a) + op(b) = op(a + b) for all results: partial sums in, partial sums out."""
    graph = alone(n)
    a, b = (list(fill(torch, graph, seed=s).values()) for s in (1, 2))
    three = (run(graph, SIZES, x, torch, torch.float64) for x in (a, b, [u + v for u, v in zip(a, b)]))
    for x, y, z in zip(*three, strict=True):
        torch.testing.assert_close(x + y, z, rtol=1e-12, atol=1e-12)


def test_every_linearity_claim_holds_and_none_is_empty():
    seen = Counter()
    for make in MODELS.values():
        for n in distinct(make):
            if n.op.linear() and all(v.type.floating for v in n.ins):
                assert n.ins, "a claim about no operand says nothing"
                linear_holds(n)
                seen[op_name(type(n.op))] += 1
    assert {"map", "reduce", "rename", "concat", "part", "detach"} <= set(seen)


def test_every_kind_of_claim_is_made_by_the_ops_that_can():
    every = [n for make in MODELS.values() for n in distinct(make)]
    seen = {(op_name(type(n.op)), role) for n in every for _, role in claims(n)}
    want = {(op, "parallel") for op in ("einsum", "map", "reduce", "gather", "scatter", "rename", "concat", "part")}
    want |= {(op, "parallel") for op in ("detach", "loop", "block_table")}
    want |= {(op, "sum") for op in ("einsum", "reduce", "gather", "scatter")} | {("reduce", "max")}
    assert want <= seen
    whole = {(op_name(type(n.op)), n.op.role(n, d)) for n in every for d in n.space}
    assert {(op, "whole") for op in ("rename", "concat", "part", "gather")} | {("loop", "sequential")} <= whole


def test_composites_derive_their_roles():
    """What a composite claims follows from its expansion; splitting it that way needs no collective inside."""
    seen = Counter()
    for make in MODELS.values():
        for n in {(n.op, n.types): n for n in joint(make()).nodes if isinstance(n.op, Composite)}.values():
            for dim, role in claims(n):
                graph = alone(n)
                found = collectives(graph, {"rank": (dim,)})
                outputs = {v.name for v in flatten(graph).outputs if dim not in v.dims}
                assert {c.value for c in found} <= outputs
                assert bool(found) == (role != "parallel")
                holds_split(n, dim)
                seen[op_name(type(n.op)), role] += 1
    assert {(op, "parallel") for op in ("attend", "layer_norm", "attend_grad")} | {("grad", "sum")} <= set(seen)
    g = Builder()
    y = g.one(Softmax("seq"), g.input("x", f32("batch seq")))
    assert [g.nodes[0].op.role(g.nodes[0], d) for d in y.dims] == ["parallel", "whole"]


@dataclass(frozen=True)
class WrongSum(Map):
    """Claims that any formula keeps partial sums."""

    def linear(self) -> bool:
        return True


@dataclass(frozen=True)
class WrongConcat(Concat):
    """Claims that its ranks can each join their own part."""

    def role(self, node, dim):
        return "parallel"


@dataclass(frozen=True)
class WrongMax(Reduce):
    """Claims that maxima of parts add up."""

    @property
    def absent(self):
        return "sum"


def one(op, *types: Type) -> Node:
    g = Builder()
    g.many(op, *(g.input(f"x{i}", t) for i, t in enumerate(types)))
    return g.nodes[0]


def test_wrong_claims_are_caught():
    square = g_map("x*x", "batch")
    wrong = WrongSum(square.op.lets, square.op.exprs, square.op.to, square.op.dtype)
    with pytest.raises(AssertionError, match="not close"):
        linear_holds(replace(square, op=wrong))
    with pytest.raises(AssertionError, match="'shape' do not match"):
        holds_split(one(WrongConcat(("memory", "seq"), "joined"), f32("memory width"), f32("seq width")), "joined")
    with pytest.raises(AssertionError, match="not close"):
        holds_split(one(WrongMax(("batch",), "max"), f32("batch seq")), "seq")


def g_map(formula: str, dims: str) -> Node:
    g = Builder()
    g.map(formula, x=g.input("x", f32(dims)))
    return g.nodes[0]


def test_a_sum_over_nothing_claims_nothing():
    assert not g_map("x + 1", "batch").op.linear()
    assert not one(Einsum(("batch",)), f32("batch seq"), f32("seq")).op.linear()
    g = Builder()
    g.map(0, to="batch")
    assert not g.nodes[0].op.linear()


def test_argmax_and_routing_are_not_split_over_experts():
    n = one(Route("router", "seq"), f32("batch seq router"))
    assert [n.op.role(n, d) for d in ("seq", "router")] == ["whole", "whole"]
