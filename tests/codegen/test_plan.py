"""The plan: what stands in it, that it is the same every time, its budgets, its size, and its views."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.campaign import SHIPPED, some
from tests.effort import counted
from weft import api, cli
from weft.codegen.package.disk import as_json
from weft.codegen.plan import explain
from weft.codegen.plan.as_json import WHY_TORCH, document
from weft.codegen.plan.dot import dot
from weft.errors import InfeasibleError
from weft.passes.fusion.legality import Reason
from weft.passes.memory.solver import solve
from weft.passes.pipeline import PIPELINE
from weft.passes.schedule import evaluate
from weft.targets import TARGETS

ROOT = Path(__file__).parents[2]
SPECS = ROOT / "examples" / "specs"
SPARSE = str(SPECS / "sparse_transformer_enwik8.yaml")


@cache
def tight() -> str:
    """A saved plan whose budget makes it recompute."""
    return as_json(api.plan(SPARSE, target="sm_90", memory="6GB"))


@cache
def planned(
    name: str = "sparse_transformer_enwik8", memory: int | None = None, sets: tuple[str, ...] = (), **options: Any
):
    return api.planned(api.open_spec(SPECS / f"{name}.yaml", sets), target="sm_90", memory=memory, **options)


@pytest.mark.parametrize("name", some(SHIPPED, 3))
def test_every_shipped_spec_has_a_whole_plan(name: str):
    plan = api.plan(SPECS / f"{name}.yaml", target="sm_90")
    assert plan["schema"] == "weft.plan/1"
    assert plan["spec"] == f"{name}.yaml"
    assert plan["parameters"] == api.check(SPECS / f"{name}.yaml")["parameters"]
    own = sum(b.get("parameters", 0) * b["calls"] for b in plan["blocks"])
    assert plan["parameters"] == own + plan.get("common_parameters", 0)
    assert ("common_parameters" in plan) == (name == "transformer_xl_base")
    assert len(plan["layers"]) == sum(b["calls"] for b in plan["blocks"])
    for block in plan["blocks"]:
        halves = [block["forward"], *block["backward"].values(), *block.get("further", {}).values()]
        for half in halves:
            assert half["search"] == "exact" or (name == "flash_base" and block["name"] == "layer")  # past the guard
            nodes = [n for r in half["regions"] for n in r["nodes"]]
            assert len(nodes) == len(set(nodes))
            pairs = [(p["producer"], p["consumer"]) for p in half["pairs"]]
            assert len(pairs) == len(set(pairs))
            assert {p["verdict"] for p in half["pairs"]} <= {"fused", *map(str, Reason)}
            assert {r.get("why", WHY_TORCH[0]) for r in half["regions"]} <= set(WHY_TORCH)
            traced = [r for r in half["regions"] if re.fullmatch(rf"{name}\.yaml:\d+", r.get("src", ""))]
            assert len(traced) == len(half["regions"])


def test_totals_count_what_a_step_runs_once():
    """A block's further functions (a backward of the loss alone, halves without a loss) count in no total."""
    plan = api.plan(SPECS / "switch_base.yaml", small=True, target="sm_90")
    blocks = {b["name"]: b for b in plan["blocks"]}
    backward = [blocks[x["block"]]["backward"][x["mode"]] for x in plan["layers"]]
    assert any(b.get("further") for b in blocks.values())
    for side, halves in {
        "forward": [blocks[x["block"]]["forward"] for x in plan["layers"]],
        "backward": backward,
    }.items():
        regions = [r for half in halves for r in half["regions"]]
        assert plan["totals"][side]["kernels"] == len(regions)
        assert plan["totals"][side]["bytes"] == sum(r["bytes"] for r in regions)


def test_decisions_are_labelled_and_every_rejection_has_a_reason():
    plan = document(planned(memory=8 * 10**9))
    reasons = {*map(str, Reason), "over budget", "more bytes", "dearer"}
    for d in plan["decisions"]:
        assert d["kind"] in ("exact", "numerics", "function", "cost")
        assert {r["reason"] for r in d.get("rejected", ())} <= reasons
    assert {d["pass"] for d in plan["decisions"]} == {"pattern", "recompute", "fusion"}
    (pattern,) = (d for d in plan["decisions"] if d["pass"] == "pattern")
    assert pattern["kind"] == "numerics"
    assert pattern["src"] == "sparse_transformer_enwik8.yaml:19"


def test_the_same_plan_is_the_same_bytes_in_another_process():
    command = "import sys; from weft import api; from weft.codegen.package.disk import as_json\n"
    command += f"print(as_json(api.plan({SPARSE!r}, target='sm_90', memory='6GB')), end='')"
    env = {"PYTHONHASHSEED": "1"}
    run = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True, env=env)
    assert run.stdout == tight()
    assert str(SPECS.parent) not in run.stdout


@pytest.mark.parametrize("name", some(["sparse_transformer_enwik8", "gpt2_345m", "bert_base"], 2))
def test_budgets_are_kept_and_monotone(name: str):
    free = planned(name)
    last = None
    for k in range(21):
        budget = free.smallest + (free.peak - free.smallest) * k // 20
        got = solve(free.schedule, budget)
        assert got.peak <= budget
        assert evaluate(free.schedule, got.modes).peak == got.peak
        assert last is None or (got.peak >= last.peak and got.time <= last.time)
        last = got
    assert last is not None
    assert free.choice is not None
    assert last.time == free.choice.time
    with pytest.raises(InfeasibleError) as e:
        planned(name, free.smallest - 1)
    assert e.value.smallest == free.smallest


def test_what_emission_needs():
    free = planned()
    got = planned(memory=(free.peak + free.smallest) // 2)
    assert [m.name for m in got.modes["layer"]] == ["pointwise", "block"]
    assert got.choices["layer"] == sorted(got.choices["layer"], key=["block", "pointwise"].index)
    assert len(got.choices["layer"]) == 30
    assert got.choices["head"] == ["save"]


def test_without_training_nothing_is_kept():
    plan = document(planned(train=False))
    assert "backward" not in plan["totals"]
    assert all("recompute" not in b for b in plan["blocks"])
    assert plan["memory"]["peak"] < document(planned())["memory"]["smallest"]


def test_a_million_tokens_plan_with_little_work_and_memory():
    code = "from tests.effort import counted; from weft import api; import resource\n"
    code += f"print(counted(api.plan, {SPARSE!r}, ['seq=1048576'], target='sm_90')[1])\n"
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    calls, kib = map(int, run.stdout.split())
    assert calls <= 20_000_000
    assert kib <= 1.5 * 2**20


def test_many_layers_cost_nothing_more():
    sets = ("width=512", "vocab=256")
    _, few = counted(planned, "gpt2_345m", 10**9, ("layers=12", *sets))
    got, many = counted(planned, "gpt2_345m", 5 * 10**9, ("layers=128", *sets))
    assert len(got.layers) == 130
    assert (many - few) / 116 <= 0.01 * few / len(got.blocks)  # a layer more costs a hundredth of a block


def test_planning_itself_imports_no_torch():
    code = f"import sys; from weft import api; s = api.open_spec({SPARSE!r}); p = api.program(s)\n"
    code += "from weft.codegen.plan import as_json, planner; from weft.targets import find\n"
    code += "as_json.document(planner.plan(p, p.resolve(seq=12288), find('cpu'))); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tables_and_drawing_read_the_saved_document():
    plan = json.loads(tight())
    table = explain.table(plan)
    assert "12.9 %" in table
    assert "94,949,376 parameters" in table
    assert "fused, saves" in explain.verdicts(plan)
    assert "over budget" in explain.layers(plan)
    assert "peak" in explain.memory(plan)
    text = dot(plan)
    assert text.count("{") == text.count("}")
    assert text.count("subgraph cluster_b") == sum(1 + len(b["forward"]["regions"]) for b in plan["blocks"])
    assert "12.9 % visible" in text


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.run(arguments)
    out = capsys.readouterr()
    return code, out.out, out.err


def test_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    spec = str(SPECS / "gpt2_345m.yaml")
    out = tmp_path / "plan.json"
    code, text, _ = run("plan", spec, "--small", "--target", "sm_90", "--verdicts", "-o", str(out), capsys=capsys)
    assert code == 0
    assert re.search(r"peak: .* \(predicted\)", text)  # of the machine it is for, which need not be this one
    assert json.loads(out.read_text())["schema"] == "weft.plan/1"
    code, text, _ = run("plan", spec, "--small", "--json", capsys=capsys)
    assert json.loads(text)["schema"] == "weft.plan/1"
    code, text, err = run("plan", spec, "--small", "--memory", "1KB", "--json", capsys=capsys)
    assert code == 4
    assert json.loads(text)["error"]["smallest_bytes"] > 1000
    assert f"--memory {json.loads(text)['error']['smallest_bytes']}B" in err
    assert run("plan", spec, "--target", "sm_1", capsys=capsys)[0] == 2
    assert run("plan", spec, "--print-after", "nothing", capsys=capsys)[0] == 2
    code, text, _ = run("explain", spec, "--small", capsys=capsys)
    assert code == 0
    assert "layer x2" in text
    code, text, _ = run("explain", spec, "--resolved", capsys=capsys)
    assert "default" in text
    code, text, _ = run("explain", spec, "--small", "--json", capsys=capsys)
    assert json.loads(text)["rows"]
    drawing = tmp_path / "plan.dot"
    assert run("export", spec, "--small", "--format", "dot", "-o", str(drawing), capsys=capsys)[0] == 0
    assert drawing.read_text().startswith("digraph")
    assert run("export", spec, "--small", "--format", "dot", "-o", str(drawing), capsys=capsys)[0] == 2
    assert run("export", str(tmp_path), "--format", "dot", "-o", str(tmp_path / "x.dot"), capsys=capsys)[0] == 0


def test_graphs_between_passes_can_be_written_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("WEFT_DUMP", str(tmp_path / "dump"))
    passes = [p.name for p in PIPELINE]
    api.plan(SPECS / "gpt2_345m.yaml", small=True, print_after=passes)
    names = sorted(p.name for p in (tmp_path / "dump").iterdir())
    assert names == [f"{i:02d}_{name}.txt" for i, name in enumerate(passes, 1)]
    said = capsys.readouterr().err
    assert 'layout="causal"' in said
    assert [said.count(f"# after pass {name}\n") for name in passes] == [1] * len(passes)
    assert "# layer, backward, block" in said.split("# after pass split\n")[1]


@pytest.mark.parametrize("target", some([t.name for t in TARGETS], 3))
def test_every_target_plans(target: str):
    plan = api.plan(SPECS / "switch_base.yaml", small=True, target=target)
    assert plan["target"]["name"] == target


def test_a_layer_s_own_loss_has_a_gradient_until_the_layer_s_backward():
    """The losses of routed layers are stacked behind the last layer, and so is what comes back to them."""
    schedule = planned("switch_base").schedule
    losses = [v for v in schedule.values if v.size == 4 and v.made < len(schedule.runs) - 2]

    assert losses
    assert all(v.made < v.born < len(schedule.runs) for v in losses)
