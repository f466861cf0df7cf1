"""Relative positions: the package against Transformer-XL written plainly, every gradient; decoding; what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import weft
from tests.codegen import xl_oracle as xl
from weft import api
from weft.codegen import onnx as weft_onnx
from weft.codegen.build import files_of, module_of
from weft.codegen.check import verify
from weft.codegen.package.disk import write
from weft.errors import SpecError
from weft.frontends.load import load_mapping
from weft.frontends.lower.program import lower
from weft.ir.ops.primitives import Einsum
from weft.ir.reference_model import initial, reference
from weft.passes.inference import inference

DIMS = {"batch": 2, "seq": 9, "width": 12, "heads": 3, "head": 4, "inner": 10, "layers": 2, "vocab": 7}


def spec(pattern: str = "causal", relative: Any = None, residual: str = "post", **more: Any) -> dict[str, Any]:
    attention = {"kind": "attention", "pattern": pattern, "relative": relative or {}, "bias": False, **more}
    return {
        "name": "relative", "dims": DIMS, "blocks": {
            "attention": attention, "feedforward": {"kind": "mlp", "activation": "relu"},
        },
        "sublayer": {"residual": residual}, "head": {"tied": True},
        "init": {"weight": {"normal": 0.3}, "bias": {"normal": 0.2}},
        "stack": [{"repeat": "layers", "layer": ["attention", "feedforward"]}],
    }  # fmt: skip


modules: dict[str, Any] = {}


def compiled(spec: dict[str, Any]) -> Any:
    """A module of a spec, one for all tests."""
    key = json.dumps(spec)
    if key not in modules:
        modules[key] = weft.compile(spec).double()
    return modules[key]


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        (spec(), {}),
        (spec("0 <= q - k <= 3"), {"back": 3}),
        (spec(relative={"shared": True}), {"shared": True}),
        (spec("window(5)", {"biases": ["v"]}), {"back": 4, "biases": "v"}),
        (spec(relative={"biases": [], "kind": "sinusoid"}), {"biases": ""}),
        (spec(residual="pre"), {"pre": True}),
    ],
)
@pytest.mark.parametrize("n", [1, 6, 9])
def test_it_is_transformer_xl(given: Any, shape: dict[str, Any], n: int):
    module, shape_ = compiled(given), xl.Shape(12, 3, 2, **shape)
    weights = dict(module.named_parameters())
    tokens = torch.randint(0, 7, (2, n), generator=torch.Generator().manual_seed(n))
    seed = torch.randn(2, n, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits, (want, _) = module(tokens).logits, xl.segment(weights, shape_, tokens)
    torch.testing.assert_close(logits, want, rtol=1e-10, atol=1e-10)
    grads = [torch.autograd.grad((y * seed).sum(), [*weights.values()], allow_unused=True) for y in (logits, want)]
    for (name, w), got, truth in zip(weights.items(), *grads, strict=True):
        truth = torch.zeros_like(w) if truth is None else truth
        torch.testing.assert_close(got, truth, rtol=1e-10, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(
    ("pattern", "more"),
    [
        ("causal", {"kv_heads": 1}),
        ("all", {"score": "3*tanh(s/3) - 0.1*h", "value": 5}),
        ("band(2, 3)", {}),
        ("causal and same_segment", {"score": "3*tanh(s/3) - 0.1*h"}),
        ("causal and window(2)", {"score": "0"}),
        ("k <= q + 2 and valid", {"kv_heads": 1, "bias": True}),
    ],
)
def test_it_keeps_to_the_reference(pattern: str, more: dict[str, Any], tmp_path: Path):
    """Outputs, gradients, decoding and leaks; later keys have distances below 0."""
    planned = api.planned(load_mapping(spec(pattern, **more)), True, "cpu")
    found = verify.verify(planned.program, lambda: module_of(write(files_of(planned), tmp_path / "package")))
    assert found.ok, found.text()
    assert ("decode = parallel" in {row.check for row in found.rows}) == pattern.startswith("causal")


def test_a_table_is_as_long_as_the_pattern_reaches():
    assert lowered("0 <= q - k <= 3").resolve()["distance"] == 4
    assert lowered("0 <= q - k <= 3").resolve(seq=2)["distance"] == 2
    assert lowered("causal").resolve(seq=7)["distance"] == 7
    assert lowered("all").resolve(seq=7)["distance"] == 13
    assert lowered("false").resolve(seq=7)["distance"] == 1


def lowered(pattern: str):
    loaded = load_mapping(spec(pattern))
    return lower(loaded.model, loaded.dims)


def test_a_step_meets_the_weight_before_the_distances():
    """No product in a step is over distances, width and heads at once, as that of the projection is."""
    found = api.planned(load_mapping(spec()), True, "cpu")
    (step,) = (s for s in found.decoding.steps.values() if "position" in str(s.step))
    spaces = [{*n.space} for n in step.step.nodes if isinstance(n.op, Einsum)]
    assert {"distance", "width"} <= set().union(*spaces)
    assert not [s for s in spaces if {"distance", "width", "head"} <= s]
    assert [n for n in step.prefill.nodes if isinstance(n.op, Einsum) and {"distance", "width", "head"} <= {*n.space}]


def test_the_plan_says_why_it_is_no_kernel():
    found = api.plan(spec(), target="sm_90")
    (layer,) = (b for b in found["blocks"] if b["name"] == "layer")
    (region,) = (r for r in layer["forward"]["regions"] if "attended" in r["nodes"])
    assert region["kernel"] == "torch"
    assert region["why"] == "its scores read a table by distance, or its keys begin before its queries"


@pytest.mark.parametrize(("kind", "pattern"), [("portable", "k <= q + 1"), ("semantic", "window(3)")])
def test_onnx_is_the_reference(pattern: str, kind: str, tmp_path: Path):
    program = inference(lowered(pattern))
    weights = initial(program, torch)
    tokens = torch.randint(0, 7, (2, 6), generator=torch.Generator().manual_seed(0))
    want = reference(program, torch, weights, {"tokens": tokens}, dtype=torch.float64)["logits"]
    arrays = {"tokens": tokens.numpy()} | {name: w.numpy() for name, w in weights.items()}
    got = weft_onnx.run(program, weft_onnx.export(program, tmp_path)[kind], arrays)["logits"]
    torch.testing.assert_close(torch.tensor(got).double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rotary": True}, "kind `sinusoid` goes without `rotary`"),
        ({"globals": {"tokens": 1}}, "without `globals` and `context`"),
        ({"pattern": None, "plan": {"block": 3}}, "goes with a `pattern`"),
    ],
)
def test_what_does_not_go_together(wrong: dict[str, Any], said: str):
    with pytest.raises(SpecError, match=said):
        load_mapping(spec(**{"pattern": "all", **wrong}))


def test_an_odd_width_has_no_cosine_for_every_sine():
    loaded = load_mapping({**spec(), "dims": {**DIMS, "width": 15}})
    with pytest.raises(SpecError, match="a width of 15 has no last pair"):
        lower(loaded.model, loaded.dims)
