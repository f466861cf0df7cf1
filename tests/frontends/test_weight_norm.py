"""Weight norm of an MLP's matrices against torch's own parametrization."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from weft.codegen.check.verify import FREE, Truth, case
from weft.frontends.load import load_model
from weft.frontends.lower.program import lower
from weft.frontends.schema import Model

DIMS = {"batch": 2, "seq": 5, "width": 6, "inner": 4, "vocab": 7}


def normed(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """A linear map whose weight is g v / ||v||, as torch says it; rows are results."""
    v, g = w[f"{name}.weight"], w[f"{name}.gain"]
    layer = weight_norm(nn.Linear(v.shape[0], v.shape[1], dtype=v.dtype))
    weights = {"parametrizations.weight.original0": g[:, None], "parametrizations.weight.original1": v.T}
    return torch.func.functional_call(layer, {**weights, "bias": w[f"{name}.bias"]}, (x,))


def test_matrices_are_norms_and_directions():
    """Logits and every gradient, in float64."""
    block = {"kind": "mlp", "activation": "silu", "gated": True, "weight_norm": {"constant": 0.7}}
    spec: dict[str, Any] = {"name": "normed", "dims": DIMS, "stack": [{"layer": [{"block": block}]}]}
    loaded = load_model(Model.model_validate({**spec, "sublayer": {"norm": "none"}}))
    program = lower(loaded.model, loaded.dims, True)
    sizes, params, inputs, _ = case(program, 3)
    truth = Truth(program, params, inputs, sizes)
    w = {k: v.clone().requires_grad_() for k, v in params.items()}
    assert w["layers.0.mlp.up.gain"].shape == (4,)
    own = {k.removeprefix("layers.0.mlp."): v for k, v in w.items()}
    x = w["embed.tokens"][inputs["tokens"]]
    y = x + normed(own, "down", F.silu(normed(own, "gate", x)) * normed(own, "up", x))
    logits = y @ w["head.weight"]
    torch.testing.assert_close(truth.outputs["logits"], logits.detach(), rtol=1e-12, atol=1e-12)
    total = (logits * truth.weights["logits"]).sum()
    for name, g in zip(w, torch.autograd.grad(total, [*w.values()]), strict=True):
        torch.testing.assert_close(truth.grads[FREE][name], g, rtol=1e-10, atol=1e-12)
