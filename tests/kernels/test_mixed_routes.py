"""What a forward keeps has one layout and one dtype, whichever route made it: the other route's backward reads it."""

import importlib
import json
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.kernels.dual import interpreting
from weft import api
from weft.codegen.build import files_of, temporary
from weft.codegen.check import verify
from weft.codegen.package.disk import load
from weft.codegen.plan.planner import Planned
from weft.frontends.load import load_text
from weft.ir.types import torch_dtype

SPEC = {
    "weft": 1,
    "name": "every_family",
    "dims": {"batch": 2, "seq": 6, "width": 8, "heads": 2, "head": 4, "inner": 6, "experts": 4, "vocab": 11},
    "blocks": {
        "attention": {"kind": "attention", "pattern": "causal", "rotary": True},
        "cell": {
            "kind": "recurrence", "inputs": ["u", "f"], "state": {"c": 0}, "parameters": {"b": "zeros"},
            "update": {"c": "sigmoid(f + b)*c + sigmoid(-f)*u"}, "output": "tanh(c)*x",
        },
        "moe": {"kind": "moe", "top_k": 1, "capacity": 2, "normalize": True},
        "two": {"kind": "moe", "top_k": 2, "capacity": 3, "gated": True, "bias": True},
        "feedforward": {"kind": "mlp", "gated": True},
    },
    "stack": [
        {
            "layer": [
                {"block": "attention", "norm": "layer_norm"},
                {"block": "cell", "norm": "rms_norm"},
                {"block": "moe", "norm": "rms_norm", "residual": "post"},
                {"block": "two", "norm": {"kind": "layer_norm", "bias": False}},
                {"block": "feedforward", "dropout": 0.25},
            ]
        }
    ],
    "norm": "layer_norm",
}  # fmt: skip


@pytest.fixture(scope="module")
def planned() -> Planned:
    return api.planned(load_text(json.dumps(SPEC)), True, "sm_90")


@pytest.fixture(scope="module")
def package(planned: Planned) -> ModuleType:
    return load(temporary(files_of(planned)))


def kept(planned: Planned, package: ModuleType) -> Iterator[tuple[str, Any, torch.Tensor]]:
    """Every value that a block's torch forward gives, run on shapes alone, and what it is called and should be."""
    for b in planned.blocks:
        module = importlib.import_module(f"{package.__name__}.blocks.{b.name}")
        for pair in b.made.pairs[:1]:
            given = [
                torch.empty([planned.sizes[d] for d in v.dims], dtype=torch_dtype(torch, v.dtype), device="meta")
                for v in pair.forward.inputs
            ]
            got = module.forward(*given)
            for v, x in zip(pair.forward.outputs, got if isinstance(got, tuple) else (got,), strict=True):
                yield f"{b.name}.{v.name}", v, x


def test_the_torch_path_keeps_what_the_graph_says(planned, package):
    seen = dict[str, Any]()
    for name, v, x in kept(planned, package):
        assert tuple(x.shape) == tuple(planned.sizes[d] for d in v.dims), name
        assert x.dtype == torch_dtype(torch, v.dtype), name
        seen[name.rsplit(".")[1].split("_")[0]] = v
    assert {"mean", "rstd", "lse"} <= set(seen)
    assert any(v.dtype == "i64" for v in seen.values())


@pytest.mark.parametrize("forward", [True, False])
def test_a_backward_reads_what_the_other_route_kept(forward, planned, package, monkeypatch):
    """Gradients with kernels in one half alone, in float64, against the reference."""
    sizes, params, inputs, _ = verify.case(planned.program, 0)
    truth = verify.Truth(planned.program, params, inputs, sizes)
    module, kernels = verify.loaded(package.Model(), params, torch.float64), forward
    ops = importlib.import_module(f"{package.__name__}.kernels.common.ops")

    def wanted(x: torch.Tensor) -> bool:
        if kernels:
            ops.load()
        return kernels

    for name, own in list(sys.modules.items()):
        if name.startswith(f"{package.__name__}.blocks.") and hasattr(own, "wanted"):
            monkeypatch.setattr(own, "wanted", wanted)
    with interpreting():
        out = dict(zip(planned.program.outputs, module(**truth.inputs)))
        kernels = not forward
        names = dict(module.named_parameters())
        total = truth.objective(out, list(truth.weights))
        got = torch.autograd.grad(total, list(names.values()), allow_unused=True, materialize_grads=True)
    assert ops._loaded
    row = verify.compare("gradients", "f64", dict(zip(names, got)), truth.grads["gradients"])
    assert row.ok, row
