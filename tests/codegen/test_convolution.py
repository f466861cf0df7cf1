"""Convolution blocks against torch's own convolutions; what decoding keeps; lengths that torch leaves open."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import weft
from weft import api
from weft.errors import SpecError

DIMS = {"batch": 2, "seq": 9, "width": 6, "inner": 4, "vocab": 7}
WHOLE = [
    {"taps": 1, "channels": "inner", "gated": True},
    {"taps": 3, "channels": "inner", "dilation": 2, "gated": True, "weight_norm": {"normal": 1.0}},
    {"taps": 1, "bias": False},
]
EACH = [{"taps": 4, "depthwise": True, "activation": "silu", "weight_norm": "ones"}, {"taps": 2}]


def spec(layers: Any, **more: Any) -> dict[str, Any]:
    block = {"kind": "convolution", "layers": layers}
    init = {"weight": {"normal": 0.4}, "bias": {"normal": 0.2}}
    return {"name": "convolved", "dims": DIMS, "init": init, "stack": [{"layer": [{"block": block}]}], **more}


modules: dict[str, Any] = {}


def compiled(layers: Any) -> Any:
    key = str(layers)
    if key not in modules:
        modules[key] = weft.compile(spec(layers, sublayer={"norm": "none"})).double()
    return modules[key]


def plainly(x: Tensor, layers: list[dict[str, Any]], weights: dict[str, Tensor]) -> Tensor:
    """The block by conv1d on [batch channels seq]: x [batch seq width] -> the same."""
    for i, layer in enumerate(layers):
        parts = [_conv1d(x, layer, weights, f"layers.0.convolution.{i}")]
        if layer.get("gated"):
            parts.append(_conv1d(x, layer, weights, f"layers.0.convolution.{i}.gate").sigmoid())
        x = torch.stack(parts).prod(0)
        x = F.silu(x) if layer.get("activation") else x
    return x


def _conv1d(x: Tensor, layer: dict[str, Any], weights: dict[str, Tensor], stem: str) -> Tensor:
    w = weights[f"{stem}.weight"]
    if "weight_norm" in layer:
        w = w / w.flatten(0, -2).norm(dim=0) * weights[f"{stem}.gain"]
    groups = w.shape[-1] if w.dim() == 2 else 1
    kernel = w.T[:, None] if w.dim() == 2 else w.permute(2, 1, 0)
    step = layer.get("dilation", 1)
    padded = F.pad(x.mT, (step * (layer["taps"] - 1), 0))
    return F.conv1d(padded, kernel, weights.get(f"{stem}.bias"), dilation=step, groups=groups).mT


@pytest.mark.parametrize("n", [1, 4, 9])
@pytest.mark.parametrize("layers", [WHOLE, EACH])
def test_it_is_conv1d(layers: list[dict[str, Any]], n: int):
    module = compiled(layers)
    weights = dict(module.named_parameters())
    tokens = torch.randint(0, 7, (2, n), generator=torch.Generator().manual_seed(n))
    x = weights["embed.tokens"][tokens]
    want = (x + plainly(x, layers, weights)) @ weights["head.weight"]
    seed = torch.randn(want.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits = module(tokens).logits
    torch.testing.assert_close(logits, want, rtol=1e-10, atol=1e-10)
    got, truth = (torch.autograd.grad((y * seed).sum(), [*weights.values()]) for y in (logits, want))
    for name, a, b in zip(weights, got, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


def test_a_step_keeps_what_later_positions_read():
    """4 taps keep 3 rows, 2 keep 1, however many positions there were."""
    module, tokens = compiled(EACH).eval(), torch.arange(9)[None] % 7
    _, state = module.prefill(tokens)
    shapes = [tuple(x.shape) for block in state.blocks for x in block.rows]
    assert shapes == [(1, 3, 6), (1, 1, 6)]
    whole = module(tokens).logits
    logits, state = module.prefill(tokens[:, :5])
    torch.testing.assert_close(logits.logits, whole[:, :5], rtol=1e-10, atol=1e-10)
    for t in range(5, 9):
        out, state = module.step(tokens[:, t], state)
        torch.testing.assert_close(out.logits, whole[:, t], rtol=1e-10, atol=1e-10)


def test_torch_leaves_the_length_open():
    module, tokens = compiled(EACH).eval(), torch.arange(8).view(2, 4) % 7
    length = torch.export.Dim("n", min=1, max=9)
    made = torch.export.export(module, (tokens,), dynamic_shapes=({1: length},)).module()
    for n in (2, 9):
        given = torch.arange(2 * n).view(2, n) % 7
        torch.testing.assert_close(made(given).logits, module(given).logits)


def test_channels_are_split_over_devices():
    """Each device has some channels of a convolution, and results are reduced once."""
    wide = [{"taps": 3, "channels": "inner"}, {"taps": 2, "depthwise": True, "gated": True}, {"taps": 1}]
    plan = api.plan(spec(wide), target="sm_90", mesh="tp=2")
    rows = [c for c in plan["mesh"]["collectives"] if c["side"].startswith("forward") and c["block"] == "layer"]
    assert [(c["kind"], c["dims"][-1]) for c in rows] == [("all_reduce", "width")]


@pytest.mark.parametrize(
    ("layers", "what"),
    [
        ([{"taps": 3, "depthwise": True, "channels": "inner"}, {"taps": 1}], "a depthwise convolution of 6 channels"),
        ([{"taps": 3, "channels": "inner"}], "the last convolution has 4 channels, and the width is 6"),
        ([{"taps": 0}], "0 must be at least 1"),
        ([], "at least 1"),
    ],
)
def test_what_is_refused(layers: Any, what: str):
    with pytest.raises(SpecError, match=what):
        api.check(spec(layers))
