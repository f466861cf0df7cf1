"""The pipeline: order, verification after each pass, what a failure tells, what a watcher sees; all of it runs once."""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.campaign import SHIPPED, some
from weft import api
from weft.codegen.build import files_of
from weft.codegen.package.fused import Kernels
from weft.codegen.torch.composites import known
from weft.errors import InfeasibleError, PassError
from weft.ir.types import Graph
from weft.passes.derivative import joint as joint_of
from weft.passes.fusion import grouping
from weft.passes.pipeline import PIPELINE, Pass, run
from weft.passes.stage import PassOptions, StagedProgram
from weft.passes.structure import structure

SPECS = Path(__file__).parents[2] / "examples" / "specs"
SPEC = SPECS / "gpt2_345m.yaml"
NAMES = ["pattern", "blocks", "chunk", "derivative", "unlet", "pairs", "recompute", "split", "open", "loops"]
NAMES += ["measure", "choose", "dispatch", "fusion"]


def start(train: bool = True) -> tuple[StagedProgram, PassOptions]:
    program = api.program(api.open_spec(SPEC, small=True), train)
    return StagedProgram(program), PassOptions(program.resolve(), known=known)


def test_the_pipeline_is_an_explicit_order():
    assert [p.name for p in PIPELINE] == NAMES


def test_every_pass_shows_what_it_made():
    seen: list[tuple[str, dict[str, Graph]]] = []
    done = run(*start(), watch=lambda name, graphs: seen.append((name, dict(graphs))))
    assert [name for name, _ in seen] == NAMES
    assert all(graphs for _, graphs in seen)
    shown = dict(seen)
    assert set(shown["pattern"]) == {"model"}
    assert set(shown["derivative"]) >= {"embed", "layer", "head", "head without loss"}
    assert "d_x" in {v.name for v in shown["derivative"]["layer"].inputs} | {
        v.name for n in shown["derivative"]["layer"].nodes for v in n.outs
    }
    assert {"layer, forward, save", "layer, backward, block"} <= set(shown["split"])
    assert set(shown["fusion"]) == {f"{b.block.name}, {h.name}" for b, hs in zip(done.blocks, done.halves) for h in hs}


def test_without_training_there_is_no_derivative():
    done = run(*start(train=False))
    assert all(made.joint is None and made.plain is None for made in done.blocks)
    assert [[h.name for h in halves] for halves in done.halves] == [["forward"]] * len(done.blocks)


def test_a_budget_chooses_what_is_printed():
    stage, options = start()
    free = run(stage, options)
    assert free.chosen is not None
    tight = run(stage, replace(options, budget=free.chosen.smallest))
    assert tight.chosen is not None
    assert tight.chosen.peak <= free.chosen.smallest
    for i, made in enumerate(tight.blocks):
        assert {m.name for m in made.block.modes} == {x.mode for x in tight.chosen.layers if x.block == i}
        assert {p.mode for p in made.pairs} == set(made.block.modes)
    with pytest.raises(InfeasibleError):
        run(stage, replace(options, budget=free.chosen.smallest - 1))


def called(work: Callable[[], Any], *functions: Any) -> list[int]:
    """How often each function is called while `work` runs."""
    codes = Counter[Any]()

    def watch(frame: Any, event: str, arg: Any) -> None:
        if event == "call":
            codes[frame.f_code] += 1

    sys.setprofile(watch)
    try:
        work()
    finally:
        sys.setprofile(None)
    return [codes[f.__code__] for f in functions]


EACH = [(spec, target) for target in ("cpu", "sm_90") for spec in SHIPPED]


@pytest.mark.parametrize(("spec", "target"), some(EACH, 2))
def test_a_compile_makes_everything_once(spec: str, target: str):
    """On a CPU the plan fuses nothing: it is the kernels beside the torch path that do."""
    loaded = api.open_spec(SPECS / f"{spec}.yaml", small=True)
    planned: list[Any] = []

    def compile_() -> None:
        planned.append(api.planned(loaded, target=target))
        files_of(planned[0])

    counts = called(compile_, structure, joint_of, grouping.fuse, Kernels.apart)
    structures, joints, fusions, apart = counts
    blocks = planned[0].blocks
    assert structures == 1
    assert joints == sum(2 if b.block.bare else 1 for b in blocks)
    assert fusions - apart == sum(len(b.halves) for b in blocks)


def broken(stage: StagedProgram, options: PassOptions) -> StagedProgram:
    graph = stage.program.graph
    return replace(stage, program=replace(stage.program, graph=replace(graph, nodes=graph.nodes[1:])))


def test_a_pass_that_breaks_a_graph_is_named_with_the_graphs_before_it():
    good = Pass("good", lambda s, o: s)
    with pytest.raises(PassError) as e:
        run(*start(), (good, Pass("bad", broken)))
    assert e.value.name == "bad"
    assert e.value.done == ("good",)
    assert "# model" in str(e.value)
    assert "not bound before use" in str(e.value)


def test_a_pass_that_raises_is_named_too():
    def raising(stage: StagedProgram, options: PassOptions) -> StagedProgram:
        raise KeyError("lost")

    with pytest.raises(PassError, match=r"pass oops failed: KeyError: 'lost'"):
        run(*start(), (Pass("oops", raising),))


def test_what_is_refused_on_purpose_goes_through():
    def refusing(stage: StagedProgram, options: PassOptions) -> StagedProgram:
        raise InfeasibleError("no plan fits", 7)

    with pytest.raises(InfeasibleError):
        run(*start(), (Pass("budget", refusing),))
