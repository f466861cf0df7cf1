"""The runner: order, verification after each pass, what a failure tells, what a watcher sees."""

from dataclasses import replace

import pytest

from tests.passes.blocks import PARAMS, SIZES, gpt
from weft.errors import InfeasibleError, PassError
from weft.ir.types import Graph
from weft.passes import PIPELINE, Options, Pass, forward_outputs, run

OPTIONS = Options(SIZES, held=frozenset(PARAMS))


def test_the_pipeline_is_an_explicit_order():
    assert [p.name for p in PIPELINE] == ["pattern", "derivative", "recompute", "fusion"]


def test_every_pass_writes_its_decisions():
    done = run(gpt(), OPTIONS)
    assert forward_outputs(done) == 1
    assert forward_outputs(gpt()) is None
    kinds = {d.pass_ for d in done.decisions}
    assert kinds == {"pattern", "derivative", "recompute", "fusion"}
    modes = [d for d in done.decisions if d.pass_ == "recompute"]
    assert [d.subject for d in modes] == ["save", "pointwise", "attention", "block"]
    assert [dict(d.numbers)["bytes"] for d in modes] == sorted((dict(d.numbers)["bytes"] for d in modes), reverse=True)
    assert [dict(d.numbers)["microseconds"] for d in modes] == sorted(dict(d.numbers)["microseconds"] for d in modes)


def test_without_training_there_is_no_derivative():
    done = run(gpt(), replace(OPTIONS, train=False))
    assert [n.outs for n in done.nodes] == [n.outs for n in gpt().nodes]
    assert {d.pass_ for d in done.decisions} == {"pattern", "fusion"}


def test_a_watcher_sees_every_pass():
    seen: list[tuple[int, str]] = []
    run(gpt(), OPTIONS, watch=lambda i, name, graph: seen.append((i, name)))
    assert seen == [(1, "pattern"), (2, "derivative"), (3, "recompute"), (4, "fusion")]


def broken(graph: Graph, options: Options) -> Graph:
    return replace(graph, nodes=graph.nodes[1:])


def test_a_pass_that_breaks_the_graph_is_named_with_the_graph_before_it():
    good = Pass("good", lambda g, o: g)
    with pytest.raises(PassError) as e:
        run(gpt(), OPTIONS, (good, Pass("bad", broken)))
    assert e.value.name == "bad"
    assert e.value.done == ("good",)
    assert "norm1" in str(e.value)
    assert "not bound before use" in str(e.value)


def test_a_pass_that_raises_is_named_too():
    def raising(graph: Graph, options: Options) -> Graph:
        raise KeyError("lost")

    with pytest.raises(PassError, match=r"pass oops failed: KeyError: 'lost'"):
        run(gpt(), OPTIONS, (Pass("oops", raising),))


def test_what_is_refused_on_purpose_goes_through():
    def refusing(graph: Graph, options: Options) -> Graph:
        raise InfeasibleError("no plan fits", 7)

    with pytest.raises(InfeasibleError):
        run(gpt(), OPTIONS, (Pass("budget", refusing),))
