"""`weft verify` runs the kernels: a planted fault is found and its kernel named; what is not run is said in a line."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from tests.campaign import SOAK, some
from tests.codegen.emission import SPECS, spec_path
from weft import api
from weft.cli import run
from weft.codegen.check import kernels as verify_kernels
from weft.codegen.check.verify import compare
from weft.codegen.package.disk import write

TINY = """weft: 1
name: tiny
dims: {batch: 2, seq: 6, width: 8, heads: 2, head: width // heads, inner: 2*width, layers: 1, vocab: 7}
blocks:
  attention: {kind: attention, pattern: causal}
  feedforward: {kind: mlp, activation: gelu}
embed: {positions: [{learned: seq}]}
stack:
  - {repeat: layers, layer: [attention, feedforward]}
norm: layer_norm
head: {tied: true}
"""


def compiled(folder: Path, text: str = TINY) -> Path:
    (folder / "tiny.yaml").write_text(text)
    return write(api.package(folder / "tiny.yaml", target="sm_90"), folder / "out")


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def first(out: Path) -> Path:
    """A kernel's file: of the embedding, in the forward."""
    return min((out / "kernels").glob("k[0-9]*.py"))


def test_a_wrong_kernel_is_named(tmp_path, capsys):
    out = compiled(tmp_path)
    path = first(out)
    edited(path, "return (", "return (1.0001 * ")

    assert run(["verify", str(out), "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["rows"]
    whole = {"outputs, kernels", "gradients, kernels", "gradients of loss, kernels"}
    assert {r["check"] for r in rows if not r["ok"]} == {path.stem, *whole}
    assert {p.stem for p in (out / "kernels").glob("k[0-9]*.py")} <= {r["check"] for r in rows}
    assert {r["dtype"] for r in rows if r["check"] == "outputs, kernels"} == {"f32", "f64"}
    (own,) = (r for r in rows if r["check"] == path.stem and r["dtype"] == "f64")
    assert 5e-5 < own["error"] < 2e-4


@pytest.mark.parametrize("new", some(["return (1e400 * ", "return (nothing + "], 1))
def test_a_kernel_that_spoils_everything_behind_it_is_named_alone(new, tmp_path, capsys):
    """Infinite results, and none: all that runs behind it gets what the reference gives."""
    out = compiled(tmp_path)
    path = first(out)
    edited(path, "return (", new)

    assert run(["verify", str(out), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    kernels = {p.stem for p in (out / "kernels").glob("k[0-9]*.py")}
    assert {r["check"] for r in found["rows"] if not r["ok"]} & kernels == {path.stem}
    assert len({r["check"] for r in found["rows"]} & kernels) > len(kernels) // 2
    assert f"wrong by itself: kernels/{path.name}" in found["notes"]
    assert f"changed since weft wrote them: kernels/{path.name}" in found["notes"]
    assert any(f"kernels/{path.name}:" in note for note in found["notes"]) == ("nothing" in new)


@pytest.mark.skipif(not SOAK, reason="the soak runs it")
@pytest.mark.parametrize(("old", "new"), [("NAME = ", "NAME == "), ("return (", "return (nothing + ")])
def test_a_kernel_that_does_not_run_is_named(old, new, tmp_path, capsys):
    out = compiled(tmp_path)
    path = first(out)
    edited(path, old, new)

    assert run(["verify", str(out)]) == 1
    said = capsys.readouterr().out
    assert f"{path.stem}: " in said
    assert "NameError" in said


@pytest.mark.skipif(not SOAK, reason="the soak runs it")
@pytest.mark.parametrize("policy", ["{params: f32, compute: bf16}", "{params: bf16, compute: bf16}"])
def test_kernels_of_several_dtypes(policy, tmp_path):
    out = compiled(tmp_path, f"{TINY}dtype: {policy}\n")
    found = api.verify(out)

    assert found.ok, found.text()
    assert {r.dtype for r in found.rows if r.check.endswith("kernels")} == {"f64"}
    edited(first(out), "return (", "return (1.0001 * ")
    assert not api.verify(out).ok


@pytest.mark.skipif(not SOAK, reason="the soak runs it")
@pytest.mark.parametrize("name", SPECS)
def test_shipped_specs_with_their_kernels(name, record_property):
    found = api.verify(spec_path(name), small=True, target="cpu")

    assert found.ok, found.text()
    kernels = [r for r in found.rows if r.check[0] == "k"]
    record_property("kernels", len(kernels))
    record_property("worst_kernel_f64", max(r.error for r in kernels))
    for r in found.rows:
        if r.check.endswith("kernels"):
            record_property(f"{r.check}, {r.dtype}", r.error)


def refused(out: Path) -> str:
    found = api.verify(out)
    assert found.ok, found.text()
    assert not any("kernels" in r.check for r in found.rows)
    return found.notes[-1]


def test_what_is_not_run_is_said(tmp_path, monkeypatch):
    out = compiled(tmp_path)
    with monkeypatch.context() as patch:
        patch.setenv("WEFT_KERNELS", "torch")
        assert refused(out) == "kernels were not run: WEFT_KERNELS is torch"
    with monkeypatch.context() as patch:
        patch.setattr(verify_kernels, "MOST_PARAMETERS", 10)
        assert "too slow for 720 parameters; `weft verify SPEC --small`" in refused(out)
    with monkeypatch.context() as patch:
        patch.setattr(verify_kernels, "SECONDS", 0.0)
        assert "not done after 0 s" in refused(out)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refused(out) == "kernels were not run: triton is not installed"


def test_infinities_are_compared_as_such():
    want = {"lse": torch.tensor([1.0, float("inf")], dtype=torch.float64)}

    assert compare("x", "f64", {"lse": want["lse"].clone()}, want).error == 0
    assert not compare("x", "f64", {"lse": torch.tensor([1.0, 2.0])}, want).ok
    assert not compare("x", "f64", {"lse": torch.tensor([float("nan"), float("inf")])}, want).ok
    assert not compare("x", "f64", {"lse": torch.tensor([1.1, float("inf")])}, want).ok
