"""Verification: every shipped spec passes; what is broken on purpose does not; the tolerance is normwise."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.specs import LIKE, STANDS_FOR
from tests.campaign import some
from tests.codegen.emission import package, spec_path
from weft import api
from weft.cli import run
from weft.codegen.check import verify
from weft.codegen.check.comparing import compare
from weft.codegen.check.verify import Truth, case
from weft.codegen.package.disk import write
from weft.errors import UsageError
from weft.frontends.schema import Model
from weft.ir.indices import index_range

DECODING = {
    "bart_base", "gpt2_345m", "megatron_8b", "mistral_7b", "sparse_transformer_cifar10", "sparse_transformer_enwik8",
    "sparse_transformer_imagenet64", "sru_pp_enwik8", "switch_base", "transformer_xl_base",
}  # fmt: skip


@pytest.mark.parametrize("name", [*some(STANDS_FOR, 1), *some(LIKE, 1)])
def test_shipped_specs_verify(name):
    found = api.verify(spec_path(name), small=True, target="cpu", kernels=False)

    assert found.ok, found.text()
    checks = {r.check for r in found.rows}
    assert {"outputs", "gradients"} <= checks
    assert ("decode = parallel" in checks and "no leak from later" in checks) == (name in LIKE or name in DECODING)
    assert {r.dtype for r in found.rows} == {"f32", "f64"}


def broken(tmp_path: Path, file: str, old: str, new: str) -> Path:
    files = package("gpt2_345m")
    assert old in files[file], old
    return write(files | {file: files[file].replace(old, new)}, tmp_path / "out")


def test_a_wrong_forward_is_found(tmp_path):
    out = broken(tmp_path, "blocks/layer.py", "attention.Causal()", "attention.Dense()")
    found = api.verify(out, kernels=False)

    assert not found.ok
    assert {r.check for r in found.rows if not r.ok} >= {"outputs", "gradients", "no leak from later"}


def test_a_wrong_backward_is_found(tmp_path):
    files = package("gpt2_345m")
    line = next(x for x in files["blocks/layer.py"].split("\n") if "gelu_backward(" in x)
    out = broken(tmp_path, "blocks/layer.py", line, line.replace('approximate="tanh"', 'approximate="none"'))
    found = api.verify(out, kernels=False)

    assert {r.check for r in found.rows if not r.ok} == {"gradients", "gradients of loss", "gradients, no targets"}


def test_a_wrong_step_is_found(tmp_path):
    out = broken(tmp_path, "model.py", "fed.shown(logits)), fed.after(left)", "fed.shown(logits)), state")
    found = api.verify(out, kernels=False)

    assert {r.check for r in found.rows if not r.ok} == {"decode = parallel"}


def test_a_package_is_checked_against_its_own_graph(tmp_path):
    out = write(package("mistral_7b"), tmp_path / "out")
    (tmp_path / "other").mkdir()

    assert api.verify(out, kernels=False).ok
    with pytest.raises(UsageError, match="holds no package"):
        api.verify(tmp_path / "other")
    (out / "program.json").write_text("{}")
    with pytest.raises(UsageError, match="not what weft wrote"):
        api.verify(out)


def test_the_verb_says_it_in_its_exit_code(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WEFT_KERNELS", "torch")  # kernels have tests of their own
    out = broken(tmp_path, "blocks/layer.py", "attention.Causal()", "attention.Dense()")

    assert run(["verify", str(out), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "weft.verify/1"
    assert data["ok"] is False
    assert run(["compile", spec_path("sru_pp_enwik8"), "--small", "-o", str(tmp_path / "new"), "--verify"]) == 0
    assert run(["compile", spec_path("sru_pp_enwik8"), "--small", "-o", str(tmp_path / "new"), "--memory", "1kB"]) == 4


@pytest.mark.parametrize("policy", ["{params: f32, compute: bf16}", "{params: bf16, compute: bf16}"])
def test_mixed_dtypes_verify(policy, tmp_path):
    text = Path(spec_path("mistral_7b")).read_text()
    spec = tmp_path / "mixed.yaml"
    lines = [line for line in text.split("\n") if not line.startswith("dtype:")]
    spec.write_text("\n".join([*lines, f"dtype: {policy}", ""]))

    found = api.verify(str(spec), small=True, target="cpu", kernels=False)

    assert found.ok, found.text()
    assert {r.dtype for r in found.rows} == {"f32", "f64", "bf16"}


def test_a_small_fault_in_a_narrow_package_is_found(tmp_path):
    """The text that ships is what runs in float64, not one like it; in its own dtype the fault is within rounding."""
    dims = {"batch": 2, "seq": 6, "width": 8, "heads": 2, "head": 4, "inner": 16, "vocab": 7}
    narrow, stack = {"params": "bf16", "compute": "bf16"}, [{"layer": [{"block": {"kind": "mlp"}}]}]
    model = Model.model_validate({"name": "narrow", "dims": dims, "dtype": narrow, "stack": stack})
    out = write(api.package(model, target="cpu"), tmp_path / "out")
    assert api.verify(out, kernels=False).ok
    path = out / "blocks" / "layer.py"
    text = path.read_text()
    assert "    return x_1, " in text
    path.write_text(text.replace("    return x_1, ", "    return x_1 * 1.001, ", 1))

    found = api.verify(out, kernels=False)

    assert {r.dtype for r in found.rows if not r.ok} == {"f32", "f64"}


def test_near_ties_are_counted_in_every_layer(monkeypatch):
    dims = {"batch": 2, "seq": 6, "width": 8, "heads": 2, "head": 4, "inner": 4, "vocab": 7}
    stack = [{"repeat": 3, "layer": [{"block": {"kind": "moe", "experts": 4, "capacity": "seq"}}]}]
    program = api.program(api.open_spec(Model.model_validate({"name": "ties", "dims": dims, "stack": stack})))
    assert verify.case(program, 0)[3] == 0
    monkeypatch.setattr(verify, "NEAR_TIE", 2.0)  # every choice is one

    assert verify.case(program, 0)[3] == 3 * dims["batch"] * dims["seq"]


def test_the_tolerance_is_normwise_with_a_floor():
    want = {
        "a": torch.ones(100, dtype=torch.float64),
        "b": torch.zeros(4, dtype=torch.float64),
        "c": torch.ones(9, dtype=torch.float64),
    }
    got = {k: v.clone() for k, v in want.items()}
    got["b"] += 1e-6
    row = compare("x", "f64", got, want)

    assert row.worst == "b"
    assert row.error == pytest.approx(1e-3)  # 1e-6 * sqrt(4) over 1e-3 * median RMS 1 * sqrt(4)
    got["b"] = torch.full((4,), float("nan"), dtype=torch.float64)
    assert not compare("x", "f64", got, want).ok


def test_tensors_that_should_be_zero_have_a_scale_where_most_are():
    """A head that reads the first position alone leaves most gradients zero, up to the truth's own rounding."""
    want = {"a": torch.ones(4), "b": torch.zeros(4), "c": torch.full((4,), 1e-22), "d": torch.zeros(4)}
    want = {k: v.double() for k, v in want.items()}

    assert compare("gradients", "f64", {**want, "b": torch.full((4,), 1e-22)}, want).ok
    assert not compare("gradients", "f64", {**want, "b": torch.full((4,), 1e-12)}, want).ok


@pytest.mark.parametrize(("dtype", "eps"), [("f64", 1e-16), ("f32", 1e-8)])
def test_what_is_within_the_rounding_of_the_largest_is_told_against_it(dtype, eps):
    """A router of all experts, behind outputs that begin at zero: its gradient is what terms that cancel leave. So is
    that of a bias on the keys of attention."""
    want = {"large": torch.ones(4), "a": torch.full((4,), 1e-9), "b": torch.full((4,), 1e-9)}
    want = {k: v.double() for k, v in want.items()}
    row = compare("gradients", dtype, {**want, "a": want["a"] + eps}, want)

    assert row.ok, row
    assert row.error == pytest.approx(eps)
    assert not compare("gradients", dtype, {**want, "a": want["a"] + 1000 * eps}, want).ok


def test_gradients_that_all_cancel_are_told_against_those_of_other_results():
    """A loss of labels that do not count leaves what balances a router, which is the same whatever the router does."""
    want = {k: torch.full((4,), size, dtype=torch.float64) for k, size in (("a", 1e-18), ("b", 3e-18))}
    got = {k: x + 2e-18 for k, x in want.items()}

    assert not compare("gradients of loss", "f64", got, want).ok
    assert compare("gradients of loss", "f64", got, want, terms=1.0).ok
    assert not compare("gradients of loss", "f64", {**got, "a": got["a"] + 1e-12}, want, terms=1.0).ok


def test_the_terms_of_a_truth_are_those_of_its_largest_gradient():
    program = api.program(api.open_spec(spec_path("bert_base"), small=True))
    sizes, params, inputs, _ = case(program, 0)
    truth = Truth(program, params, inputs, sizes)

    assert truth.terms == max(float(g.square().mean().sqrt()) for of in truth.grads.values() for g in of.values())


def test_index_inputs_stay_in_their_tables():
    program = api.program(api.open_spec(spec_path("bert_base"), small=True))
    sizes = program.resolve()
    ranges = {n: index_range(program.graph, program.input(n), sizes) for n in ("tokens", "types", "labels")}

    assert ranges == {"tokens": sizes["vocab"], "types": 2, "labels": 2}


DIMS = {"batch": 2, "seq": 8, "width": 8, "heads": 2, "head": 4, "inner": 6, "experts": 4, "vocab": 11}
MOE = {"kind": "moe", "capacity_factor": 1.25}
CAUSAL = {"kind": "attention", "pattern": "causal"}


def verified(*blocks, **keys):
    """A model of these blocks, one layer, verified without its kernels."""
    parts = {f"b{i}": b for i, b in enumerate(blocks)}
    model = Model.model_validate(
        {"name": "tiny", "dims": DIMS, "blocks": parts, "stack": [{"layer": [*parts]}], **keys}
    )
    return api.verify(model, target="cpu", kernels=False)


@pytest.mark.parametrize(
    "keys",
    [{"embed": {"types": 2}}, {"dims": {**DIMS, "vocab": 1}}, {"embed": {"types": 2}, "head": {"tied": True}}],
    ids=["an input beside the tokens", "one token only", "tied"],
)
def test_what_decodes_is_verified_whatever_its_inputs(keys):
    found = verified(CAUSAL, MOE, **keys)

    assert found.ok, found.text()
    assert {"decode = parallel", "no leak from later"} <= {r.check for r in found.rows}


def wrapped():
    torch.manual_seed(0)
    return {"kind": "opaque", "module": torch.nn.Linear(8, 8)}


@pytest.mark.parametrize("blocks", [("moe", "opaque"), ("opaque", "moe"), ("opaque", "opaque")])
def test_a_wrapped_module_is_verified_beside_any_block(blocks):
    found = verified(*(wrapped() if b == "opaque" else MOE for b in blocks))

    assert found.ok, found.text()


@pytest.mark.parametrize("policy", [{"compute": "bf16"}, {"params": "f16", "compute": "f32"}, {"accumulate": "f64"}])
def test_a_wrapped_module_is_verified_under_any_policy(policy):
    found = verified(wrapped(), MOE, dtype=policy)

    assert found.ok, found.text()
