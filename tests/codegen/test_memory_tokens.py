"""Memory tokens: the package against the papers written plainly, segment by segment, with gradients that go through so
many borders; what is predicted, refused, and exported."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import weft
from tests.campaign import some
from tests.codegen import rmt_oracle as rmt
from tests.codegen import xl_oracle as xl
from tests.codegen.test_relative import DIMS, spec
from weft import api
from weft.codegen import onnx as weft_onnx
from weft.codegen.build import files_of, module_of, temporary
from weft.codegen.measure.profile import LiveBytes
from weft.codegen.package.disk import write
from weft.codegen.package.saved import read
from weft.frontends.load import load_mapping
from weft.frontends.lower.program import lower
from weft.ir.reference_model import initial, reference
from weft.passes.inference import inference


def remembering(memory: dict[str, Any], pattern: str = "causal", **more: Any) -> dict[str, Any]:
    found = spec(pattern, residual="pre", **more)
    found["blocks"]["attention"].pop("relative") if not more else None
    return {**found, "norm": "layer_norm", "memory": {"of": "tokens", "keep": 2, **memory}}


SINES: dict[str, Any] = {"relative": {"kind": "sinusoid"}}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "stopped at each border": (remembering({}), {}),
    "through one border": (remembering({"through": 1}), {}),
    "through two, relative": (remembering({"through": 2}, **SINES), {"sinusoid": True}),
    "a memory that is the same": (remembering({"written": False}), {"written": False}),
    "an encoder": (
        remembering({"written": False, "sees": "all"}, "all"), {"written": False, "sees_all": True, "causal": False},
    ),
    "an encoder, relative": (
        remembering({"sees": "all"}, "all", **SINES), {"sees_all": True, "causal": False, "sinusoid": True},
    ),
}  # fmt: skip
modules: dict[str, Any] = {}


def compiled(name: str) -> tuple[Any, rmt.Shape, int]:
    given, shape = CASES[name]
    if name not in modules:
        modules[name] = weft.compile(given).double()
    return modules[name], rmt.Shape(12, 2, **shape), given["memory"].get("through", 0)


def run(module: Any, parts: Any, memory: Any = None) -> tuple[Tensor, Any]:
    out = list[Tensor]()
    for part in parts:
        found = module(part, **({} if memory is None else {"memory": memory}))
        memory = getattr(found, "memory", None)
        out.append(found.logits)
    return torch.cat(out, 1), memory


@pytest.mark.parametrize("name", some(CASES, 4))
def test_segments_are_those_of_the_papers(name: str):
    module, shape, through = compiled(name)
    weights, draw = dict(module.named_parameters()), torch.Generator().manual_seed(0)
    parts = torch.randint(0, 7, (2, 13), generator=draw).split([4, 3, 1, 5], 1)
    seed = torch.randn(2, 13, 7, generator=draw, dtype=torch.float64)
    (got, left), (want, memory) = run(module, parts), rmt.segments(weights, shape, parts, through)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    if shape.written:
        torch.testing.assert_close(left.memory_tokens, memory, rtol=1e-10, atol=1e-12)
    grads = [torch.autograd.grad((y * seed).sum(), [*weights.values()], allow_unused=True) for y in (got, want)]
    for key, a, b in zip(weights, *grads, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-9, atol=1e-11, msg=key)


def test_a_gradient_goes_through_so_many_borders_and_then_stops():
    module, _, _ = compiled("through two, relative")
    parts = torch.randint(0, 7, (2, 16), generator=torch.Generator().manual_seed(1)).split(2, 1)
    memory, gone = None, list[int]()
    for part in parts:
        memory = module(part, memory=memory).memory
        gone.append(memory.borders)
    assert gone == [0, 1, 2, 0, 1, 2, 0, 1]


def test_hidden_rows_pass_a_gradient_too():
    """Transformer-XL whose memory is not stopped: segments of one window are the whole sequence, gradients too."""
    given = spec("0 <= q - k <= 5") | {"memory": {"keep": 5, "through": 3}}
    module, shape = weft.compile(given).double(), xl.Shape(12, 3, 2, back=5, keep=5)
    weights, draw = dict(module.named_parameters()), torch.Generator().manual_seed(2)
    tokens, seed = torch.randint(0, 7, (2, 9), generator=draw), torch.randn(2, 9, 7, generator=draw).double()
    got, want = run(module, tokens.split([3, 2, 4], 1))[0], xl.whole(weights, shape, tokens, [9])
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    grads = [torch.autograd.grad((y * seed).sum(), [*weights.values()]) for y in (got, want)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-11)


def test_no_token_knows_a_later_one_and_no_memory_is_known_before_it_is_written():
    module, _, _ = compiled("stopped at each border")
    tokens = torch.randint(0, 7, (2, 6), generator=torch.Generator().manual_seed(3))
    changed = tokens.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 7
    a, b = module(tokens), module(changed)
    assert torch.equal(a.logits[:, :4], b.logits[:, :4])
    assert not torch.allclose(a.memory.memory_tokens, b.memory.memory_tokens)
    with pytest.raises(NotImplementedError, match="call forward, segment after segment"):
        module.step(tokens[:, 0], None)


@pytest.mark.parametrize("through", [0, 2])
def test_the_predicted_peak_holds_all_segments_of_a_window(through: int):
    given = remembering({"through": through, "keep": 6})
    given["dims"] = {**DIMS, "seq": 40, "width": 32, "heads": 2, "head": 16, "inner": 64, "layers": 4}
    free = api.planned(load_mapping(given), True, "cpu")
    for planned in (free, api.planned(load_mapping(given), True, "cpu", free.smallest)):
        module = module_of(temporary(files_of(planned)))
        parts = torch.zeros(2 * (through + 1), 40, dtype=torch.int64).split(2)
        with LiveBytes([*module.parameters(), *parts], threads=torch.get_num_threads()) as live:
            memory, loss = (torch.zeros(2, 6, 32),), torch.zeros(())
            for part in parts:
                out = module(part, part, memory)
                loss, memory = loss + out.loss, out.memory
            loss.backward()
        real = live.most + sum(x.untyped_storage().nbytes() for x in [*module.parameters(), *parts])
        assert 0.8 * planned.peak <= real <= planned.peak, (real, planned.peak)
    assert planned.peak == free.smallest


@pytest.mark.parametrize("kind", ["portable", "semantic"])
def test_onnx_takes_and_gives_the_memory(kind: str, tmp_path: Path):
    loaded = load_mapping(CASES["through one border"][0])
    program = inference(lower(loaded.model, loaded.dims))
    draw = torch.Generator().manual_seed(4)
    weights = initial(program, torch, 0)
    for rows in (0, 2):
        inputs = {
            "tokens": torch.randint(0, 7, (2, 4), generator=draw),
            "past_memory_tokens": torch.randn(2, rows, 12, generator=draw),
        }
        want = reference(program, torch, weights, inputs, dtype=torch.float64)
        arrays = {name: x.numpy() for name, x in {**inputs, **weights}.items()}
        got = weft_onnx.run(program, weft_onnx.export(program, tmp_path)[kind], arrays)
        for name, y in got.items():
            torch.testing.assert_close(torch.tensor(y).double(), want[name], rtol=1e-4, atol=1e-5)


def test_a_package_keeps_its_states(tmp_path: Path):
    planned = api.planned(load_mapping(CASES["through one border"][0]), True, "cpu")
    program = read(write(files_of(planned), tmp_path / "package"))
    assert program.states == planned.program.states
    assert program.through == 1
