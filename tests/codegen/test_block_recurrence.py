"""Block recurrence: the package against the paper written plainly, with gradients, in segments and as a whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import weft
from tests.campaign import some
from tests.codegen import block_recurrent_oracle as br
from weft import api
from weft.codegen import onnx as weft_onnx
from weft.frontends.load import load_mapping
from weft.frontends.lower.program import lower
from weft.ir.cost import flops
from weft.ir.reference_model import initial, reference
from weft.passes.inference import inference

DIMS = {"batch": 2, "seq": 12, "width": 12, "heads": 3, "head": 4, "inner": 10, "states": 3, "vocab": 7, "window": 4}


def spec(through: int = 0, seq: int = 12, **more: Any) -> dict[str, Any]:
    mixer = {
        "kind": "block_recurrence",
        "window": "window",
        "states": "states",
        "buckets": 4,
        "max_distance": 4,
        **more,
    }
    return {
        "name": "recurrent", "dims": {**DIMS, "seq": seq}, "runtime": {"seq": {"align": 4}},
        "memory": {"keep": "window", "through": through}, "sublayer": {"norm": "rms_norm"},
        "stack": [{"repeat": 1, "layer": [{"block": mixer}]}], "head": {"tied": True},
        "init": {"weight": {"normal": 0.3}, "bias": {"normal": 0.2}},
    }  # fmt: skip


CASES: dict[tuple[str, str], dict[str, Any]] = {
    (gate, cell): {"gate": gate, "cell": cell} for gate in ("fixed", "lstm") for cell in ("skip", "dual", "single")
}


def theirs(w: dict[str, Tensor], shape: br.Shape, parts: Any, through: int) -> Tensor:
    past: list[Any] = [None, None]
    out = list[Tensor]()
    for i, part in enumerate(parts):
        if i and i % (through + 1) == 0:
            past = [x.detach() for x in past]
        x = w["embed.tokens"][part]
        y = br.rms(x, w["layers.0.block_recurrence_norm.weight"])
        y, *past = br.layer(w, "layers.0.block_recurrence.", shape, y, *past)
        out.append((x + y) @ w["embed.tokens"].T)
    return torch.cat(out, 1)


def ours(module: Any, parts: Any) -> Tensor:
    memory, out = None, list[Tensor]()
    for part in parts:
        found = module(part, memory=memory)
        memory = found.memory
        out.append(found.logits)
    return torch.cat(out, 1)


@pytest.mark.parametrize("case", some(CASES, 3))
def test_windows_are_those_of_the_paper(case: tuple[str, str]):
    """Segments of one, two and three windows, a gradient through one border of each two."""
    module = weft.compile(spec(through=1, **CASES[case])).double()
    weights, draw = dict(module.named_parameters()), torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 7, (2, 24), generator=draw)
    seed = torch.randn(2, 24, 7, generator=draw, dtype=torch.float64)
    parts, shape = tokens.split([8, 4, 12], 1), br.Shape(4, *case, 4, 4)
    got, want = ours(module, parts), theirs(weights, shape, parts, 1)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    grads = [torch.autograd.grad((y * seed).sum(), [*weights.values()], allow_unused=True) for y in (got, want)]
    for key, a, b in zip(weights, *grads, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-9, atol=1e-11, msg=key)
    # A window at a time, as decoding goes from border to border, is the whole run.
    with torch.no_grad():
        whole = ours(module, tokens[:, :12].split(12, 1))
        torch.testing.assert_close(ours(module, tokens[:, :12].split(4, 1)), whole, rtol=1e-10, atol=1e-12)
        changed = tokens[:, :12].clone()
        changed[:, 9:] = (changed[:, 9:] + 1) % 7
        assert torch.equal(ours(module, [changed])[:, :9], whole[:, :9])


def test_it_costs_as_much_a_token_at_any_length():
    """FLOPs of a run, from 16 windows to 64."""
    program = api.program(load_mapping(spec(seq=256)), False)
    formula, every = flops(program.graph), list[float]()
    for n in (64, 128, 256):
        sizes = program.resolve(batch=2, seq=n, memory=4, past_states=3)
        every.append(float(formula.subs({s: sizes[str(s)[2:]] for s in formula.free_symbols})))
    assert abs(every[2] / every[1] / 2 - 1) < 0.02
    assert abs(every[1] / every[0] / 2 - 1) < 0.02


def test_verified_and_exported(tmp_path: Path):
    given = spec(cell="dual", gate="lstm")
    assert api.verify(given, kernels=False).ok
    loaded = load_mapping(given)
    program = inference(lower(loaded.model, loaded.dims))
    draw, weights = torch.Generator().manual_seed(1), initial(program, torch, 0)
    inputs = {name: torch.randn(1, 2, 4 if "state" not in name else 3, 12, generator=draw) for name in program.carried}
    inputs = {name: x for name, x in inputs.items() if name in program.inputs}
    inputs["tokens"] = torch.randint(0, 7, (2, 8), generator=draw)
    want = reference(program, torch, weights, inputs, dtype=torch.float64)
    arrays = {name: x.numpy() for name, x in {**inputs, **weights}.items()}
    for kind in ("portable", "semantic"):
        got = weft_onnx.run(program, weft_onnx.export(program, tmp_path / kind)[kind], arrays)
        for name, y in got.items():
            torch.testing.assert_close(torch.tensor(y).double(), want[name], rtol=1e-4, atol=1e-5)
