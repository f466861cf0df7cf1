"""Layouts on the graph, decisions with the numbers that justify them, and the same result."""

import pytest
import torch

from tests.models import SIZES, f32, fill, gpt_block, gpt_stack, i64
from weft.ir.builder import Builder
from weft.ir.formula import parse, symbol
from weft.ir.library import Attend, AttendGrad
from weft.ir.pattern import Pattern, PatternLayout
from weft.ir.program import Program, Runtime
from weft.ir.reference import run
from weft.ir.text import parse as read
from weft.ir.text import show
from weft.ir.types import Graph
from weft.ir.verify import verify
from weft.passes.derivative import joint
from weft.passes.pattern import pattern

LONG = SIZES | {"seq": 512, "key": 512, "heads": 4}


def attention(text: str, meta: str = "") -> Graph:
    g = Builder()
    q, k, v = (g.input(n, f32(f"batch {d} heads head")) for n, d in (("q", "seq"), ("k", "key"), ("v", "key")))
    known = {"segments": i64("batch seq"), "query_at": i64("seq")}
    names = tuple(meta.split())
    extra = [g.input(m, known[m]) for m in names]
    op = Attend("head", "key", "seq", Pattern.parse(text), parse("1/sqrt(n_head)"), heads=("heads",), meta=names)
    with g.at("spec.yaml:14"):
        return g.graph(*g.many(op, q, k, v, *extra, names=["out", "lse"]))


def attends(graph: Graph) -> list[Attend]:
    found = []
    for n in graph.nodes:
        found += [n.op] if isinstance(n.op, Attend) else attends(n.op.body) if hasattr(n.op, "body") else []
    return found


def test_an_attend_gets_its_layout_and_a_decision():
    after = pattern(attention("causal and (window(16) or strided(16))"), LONG)

    (op,) = attends(after)
    assert str(op.layout) == "residues(modulus=16, inner=strict) | window(width=16)"
    (decision,) = after.decisions
    assert (decision.pass_, decision.subject, decision.kind) == ("pattern", "out", "numerics")
    assert decision.choice == str(op.layout)
    assert decision.src == "spec.yaml:14"
    numbers = dict(decision.numbers)
    assert numbers["nnz"] == 4 * sum(min(q + 1, 16) + (q // 16 - 0 if q >= 16 else 0) for q in range(512))
    assert numbers["full"] + numbers["partial"] + numbers["empty"] == 4 * (512 // 128) ** 2
    assert numbers["density"] == pytest.approx(numbers["nnz"] / (4 * 512**2), abs=1e-6)
    assert numbers["exact"] == 1
    assert all(why == "dearer" and dict(n)["pairs"] >= numbers["pairs"] for _, why, n in decision.rejected)
    assert any(text.startswith("tiles(") for text, _, _ in decision.rejected)


def test_the_text_form_keeps_the_layout():
    after = pattern(attention("causal and heads(window(16), strided(16))"), LONG)

    again = read(show(after))

    assert again == after
    text = "heads 0:4:2: window(width=16) | heads 1:4:2: residues(modulus=16, inner=causal)"
    assert attends(again)[0].layout == PatternLayout.parse(text)


def test_every_attend_of_a_stack_and_its_derivative_is_laid_out():
    after = pattern(gpt_stack(2), LONG)
    assert [str(a.layout) for a in attends(after)] == ["causal", "causal"]
    assert len(after.decisions) == 2

    back = pattern(joint(gpt_block()), LONG)
    grads = [n.op.of.layout for n in back.nodes if isinstance(n.op, AttendGrad)]
    assert [str(x) for x in grads] == ["causal"]


SOME = ["causal", "causal and fixed(4, 2)", "bigbird(2, 1, 0)", "causal and heads(window(2), all)"]


@pytest.mark.parametrize("text", SOME)
def test_the_result_is_the_same(text):
    graph = attention(text)
    args = fill(torch, graph)

    before, after = (run(g, SIZES, args, torch) for g in (graph, pattern(graph, SIZES)))

    assert all(torch.equal(a, b) for a, b in zip(before, after))
    verify(pattern(graph, SIZES))


def test_a_pattern_that_needs_a_length_is_fixed_at_it():
    (op,) = attends(pattern(attention("bigbird(16, 2, 0)"), LONG))

    assert str(op.pattern) == "bigbird(16, 2, 0, 512)"
    assert str(op.layout) == "blocks(bigbird(16, 2, 0, 512))"


def test_metadata_runs_in_tiles_and_is_not_exact():
    after = pattern(attention("causal and same_segment", "segments"), LONG)

    assert str(attends(after)[0].layout) == "tiles(causal and same_segment)"
    assert dict(after.decisions[0].numbers)["exact"] == 0


def test_positions_as_operands_are_left_alone():
    after = pattern(attention("causal", "query_at"), LONG)

    assert attends(after)[0].layout is None
    assert after.decisions == ()


def test_blind_rows_and_given_up_atoms_are_told():
    blind = pattern(attention("strict_causal"), LONG)
    assert dict(blind.decisions[0].numbers)["blind_rows"] == 1

    irregular = "causal and (q * 7919 + k * 104729) % 1000003 < 500000"
    given_up = pattern(attention(irregular), LONG | {"seq": 1 << 16, "key": 1 << 16})
    assert "1000003" in dict(given_up.decisions[0].numbers)["given_up"]


def test_a_block_without_attention_is_unchanged():
    g = Builder()
    x = g.input("x", f32("batch width"))
    graph = g.graph(g.map("2 * x", x=x))

    assert pattern(graph, SIZES) == graph


def test_a_layout_holds_for_every_length():
    graph = attention("causal and (window(16) or strided(16))")
    sizes = {d: n for d, n in SIZES.items() if d in ("heads", "head")} | {"key": symbol("n_seq")}
    runtime = {"batch": Runtime(8), "seq": Runtime(1 << 20)}
    program = Program("one", graph, sizes, runtime, (), ("q", "k", "v"), ("out", "lse"))

    longest, short = (pattern(graph, program.resolve(batch=8, seq=n)) for n in (1 << 20, 64))

    assert dict(longest.decisions[0].numbers)["queries"] == 1 << 20
    assert short.decisions[0].choice == longest.decisions[0].choice
