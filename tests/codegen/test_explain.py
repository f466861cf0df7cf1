"""`weft explain` with the kernels: what the compiler says of them, with no GPU, or one line why it is not asked."""

import importlib.util
import json
from pathlib import Path

import pytest

from weft import api, cli
from weft.autotune import inspection
from weft.codegen.plan import explain

SPEC = str(Path(__file__).parents[2] / "examples" / "specs" / "mistral_7b.yaml")
ROW = {
    "kernel": "k00_rowwise_norm", "function": "rowwise.rowwise", "reason": "", "fits": True, "grid": [1024, 4, 1],
    "threads": 128, "regs": 40, "stack": 0, "shared": 2048, "occupancy": 12, "busy": 0.75, "wgmma": 0, "mma": 0,
}  # fmt: skip


def run(capsys, *given: str) -> tuple[int, str, str]:
    code = cli.run(["explain", SPEC, "--small", "--no-train", *given])
    out, err = capsys.readouterr()
    return code, out, err


def test_kernels_of_a_target(capsys):
    code, out, err = run(capsys, "--target", "sm_90", "--json")
    found = json.loads(out)
    named = {k for r in found["rows"] for k in r["kernel"].split(" + ")} - {"torch"}

    assert code == 0
    assert {r["kernel"] for r in found["kernels"]} == named
    for r in found["kernels"]:
        assert (r["target"], r["dtype"], r["reason"], r["fits"]) == ("sm_90", "bf16", "", True)
        assert 0 < r["regs"] <= 255
        assert r["shared"] <= 232_448
        assert r["occupancy"] >= 1
        assert 0 < r["busy"] <= 1
    products = [r for r in found["kernels"] if r["dots"]]
    assert any(r["function"].startswith("attention") for r in products)
    assert all(r["wgmma"] + r["mma"] > 0 for r in products)
    for word in ("registers", "shared", "occupancy", products[0]["kernel"], f"{products[0]['shared']:,}"):
        assert word in err


def test_what_is_shown_of_a_kernel():
    more = {"kernel": "k01", "function": "pointwise.pointwise"}
    shown = explain.kernels(
        [ROW, {**ROW, "function": "rowwise.more", "grid": [1, 1, 1], "stack": 72, "wgmma": 16},
         {**ROW, **more, "fits": False}, {**ROW, **more, "reason": "ptxas refuses it", "fits": False}]
    ).splitlines()  # fmt: skip

    assert " ".join(shown[2].split()) == "k00_rowwise_norm rowwise.rowwise 1,024 x 4 128 40 2,048 12 (75 %)"
    assert " ".join(shown[3].split()) == "rowwise.more 1 128 40 72 2,048 12 (75 %) 16 wgmma"
    assert shown[4].endswith("no: does not fit")
    assert shown[5].endswith("no: ptxas refuses it")


def test_a_kernel_that_does_not_compile_is_an_error(capsys, monkeypatch):
    row = inspection.Inspected("k00_scan", "scan", "scan.scan", "sm_90", "bf16", "Triton refuses it: no such thing")
    monkeypatch.setattr(inspection, "inspect", lambda *_, **__: [row])
    code, out, err = run(capsys, "--target", "sm_90", "--json")

    assert code == 1
    assert json.loads(out)["kernels"][0]["reason"] == row.reason
    assert "on sm_90 k00_scan scan.scan does not compile: Triton refuses it: no such thing" in err


@pytest.mark.parametrize("given", [("--target", "sm_90", "--no-kernels"), ("--target", "cpu"), ("--target", "gfx942")])
def test_nothing_is_compiled(capsys, given):
    code, out, _ = run(capsys, *given, "--json")
    found = json.loads(out)

    assert code == 0
    assert "kernels" not in found
    assert ("kernels_note" in found) == ("--no-kernels" not in given)
    assert "\n" not in found.get("kernels_note", "")
    assert found.get("kernels_note", "") in run(capsys, *given)[1]


def test_without_triton(capsys, monkeypatch):
    own = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "triton" else own(name, *a))
    code, out, _ = run(capsys, "--target", "sm_90")

    assert code == 0
    assert "triton is not installed" in out.splitlines()[-1]


def test_the_function_asks_for_it():
    assert "kernels" not in api.explain(SPEC, small=True, train=False, target="sm_90")
