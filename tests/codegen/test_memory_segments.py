"""A memory across segments: the package against Transformer-XL written plainly, segment by segment and as a whole with
stopped gradients; decoding; what a call says of a wrong memory; what a spec may not say."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import weft
from tests.campaign import some
from tests.codegen import xl_oracle as xl
from tests.codegen.test_relative import DIMS, spec
from weft import api
from weft.codegen import onnx as weft_onnx
from weft.codegen.build import files_of, module_of, temporary
from weft.codegen.measure.profile import LiveBytes
from weft.codegen.package.disk import write
from weft.codegen.package.saved import read
from weft.codegen.plan.as_json import document
from weft.frontends.load import load_mapping
from weft.frontends.lower.program import lower
from weft.ir.reference_model import initial, reference
from weft.passes.inference import inference

LENGTHS = ((4, 4, 1), (3, 2, 4), (1, 1, 1, 6), (9,), (7, 2))


def remembering(pattern: str = "0 <= q - k <= 5", keep: int = 5, **more: Any) -> dict[str, Any]:
    return {**spec(pattern, **more), "memory": {"keep": keep}}


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as published": (remembering(), {"back": 5, "keep": 5}),
    "back to the segment's start": (remembering("causal"), {"keep": 5}),
    "a short reach": (remembering("window(3)", relative={"biases": ["u"]}), {"back": 2, "keep": 5, "biases": "u"}),
    "shared": (remembering("causal", 3, relative={"shared": True}), {"keep": 3, "shared": True}),
    "norms before": (remembering(residual="pre", keep=6), {"back": 5, "keep": 6, "pre": True}),
}
modules: dict[str, Any] = {}


def compiled(name: str) -> tuple[Any, xl.Shape]:
    if name not in modules:
        modules[name] = weft.compile(CASES[name][0]).double()
    return modules[name], xl.Shape(12, 3, 2, **CASES[name][1])


def numbers(module: Any) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Parameters, tokens, and what the logits are weighed by."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 7, (2, 9), generator=draw)
    return dict(module.named_parameters()), tokens, torch.randn(2, 9, 7, generator=draw, dtype=torch.float64)


def in_segments(run: Callable[[Tensor, Any], tuple[Tensor, Any]], tokens: Tensor, lengths: Sequence[int]) -> Tensor:
    memory, parts = None, list[Tensor]()
    for part in tokens.split(list(lengths), 1):
        logits, memory = run(part, memory)
        parts.append(logits)
    return torch.cat(parts, 1)


def agree(weights: dict[str, Tensor], seed: Tensor, got: Tensor, want: Tensor) -> None:
    """Values and the gradient of every parameter."""
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    grads = [torch.autograd.grad((y * seed).sum(), [*weights.values()], allow_unused=True) for y in (got, want)]
    for name, a, b in zip(weights, *grads, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("name", some(CASES, 3))
def test_segments_are_those_of_the_paper(name: str, lengths: tuple[int, ...]):
    module, shape = compiled(name)
    weights, tokens, seed = numbers(module)

    def ours(part: Tensor, memory: Any) -> tuple[Tensor, Any]:
        out = module(part, memory=memory)
        return out.logits, out.memory

    got = in_segments(ours, tokens, lengths)
    agree(weights, seed, got, in_segments(lambda part, m: xl.segment(weights, shape, part, m), tokens, lengths))
    agree(weights, seed, in_segments(ours, tokens, lengths), xl.whole(weights, shape, tokens, lengths))


def test_a_memory_is_the_last_rows_of_each_layers_input():
    module, shape = compiled("as published")
    weights, tokens, _ = numbers(module)
    memory, past = None, None
    for part in tokens.split([3, 1, 5], 1):
        memory = module(part, memory=memory).memory
        past = xl.segment(weights, shape, part, past)[1]
        assert memory.layer_attention.shape == (2, 2, past[0].shape[1], 12)
        assert not memory.layer_attention.requires_grad
        torch.testing.assert_close(memory.layer_attention, torch.stack(past), rtol=1e-12, atol=1e-12)


def test_no_gradient_enters_a_memory_and_weights_learn_from_its_rows():
    module, _ = compiled("as published")
    weights, tokens, _ = numbers(module)
    memory = module(tokens[:, :4]).memory
    given = memory.layer_attention.clone().requires_grad_()
    with_rows = module(tokens[:, 4:6], memory=(given,)).logits.square().sum()
    grads = torch.autograd.grad(with_rows, [given, *weights.values()], allow_unused=True)
    assert grads[0] is None
    key = dict(zip(weights, grads[1:]))["layers.1.attention.key.weight"]
    cached = module(tokens[:, 4:6], memory=(torch.zeros_like(given),)).logits.square().sum()
    other = torch.autograd.grad(cached, weights["layers.1.attention.key.weight"])[0]
    assert (key - other).norm() > 1e-3 * key.norm()


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_a_segment_of_length_one(name: str):
    module, shape = compiled(name)
    weights, tokens, _ = numbers(module)
    with torch.no_grad():
        want = in_segments(lambda part, m: xl.segment(weights, shape, part, m), tokens, [1] * 9)
        state = module.state(2)
        for t in range(9):
            out, state = module.step(tokens[:, t], state)
            torch.testing.assert_close(out.logits, want[:, t], rtol=1e-10, atol=1e-10)
        out, state = module.prefill(tokens[:, :6])
        torch.testing.assert_close(out.logits, want[:, :6], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(module.step(tokens[:, 6:], state)[0].logits, want[:, 6:], rtol=1e-10, atol=1e-10)
    assert all(rows.shape[1] <= shape.keep for block in state.blocks for rows in block.rows)


def test_a_wrong_memory_is_told_by_name():
    module, _ = compiled("as published")
    tokens = torch.zeros(2, 4, dtype=torch.int64)
    rows = torch.zeros(2, 2, 5, 12, dtype=torch.float64)
    for wrong, kind, said in (
        (rows, TypeError, "memory is what the call before returned: layer_attention"),
        ((), TypeError, "memory is what the call before returned"),
        ((rows.long(),), TypeError, "memory.layer_attention must be torch.float64, got torch.int64"),
        ((rows[:1],), ValueError, r"memory.layer_attention must be \[2, batch, rows, 12\], got shape"),
        ((rows[:, :1],), ValueError, "dim batch is 1, but 2 in another input"),
        ((torch.cat([rows, rows], 2),), ValueError, "has 10 rows; all states have as many, at most 5"),
    ):
        with pytest.raises(kind, match=said):
            module(tokens, memory=wrong)
    assert module(tokens, memory=(rows,)).memory.layer_attention.shape == rows.shape


def test_the_predicted_peak_holds_a_memory_in_and_out():
    """A training step, everything that torch's operators take counted, is as the plan says; with a budget too."""
    given = {
        **remembering(),
        "dims": {**DIMS, "seq": 48, "width": 32, "heads": 2, "head": 16, "inner": 64, "layers": 4},
    }
    given["memory"] = {"keep": 40}
    given["blocks"] = {**given["blocks"], "attention": {**given["blocks"]["attention"], "pattern": "0 <= q - k <= 40"}}
    free = api.planned(load_mapping(given), True, "cpu")
    (state,) = document(free)["states"]
    assert state == {
        "name": "layer_attention", "of": "hidden", "start": "empty", "life": "sequence", "layers": 4, "keep": 40,
        "bytes": 4 * 2 * 40 * 32 * 4,
    }  # fmt: skip
    for planned in (free, api.planned(load_mapping(given), True, "cpu", free.smallest)):
        module = module_of(temporary(files_of(planned)))
        tokens, targets = (torch.zeros(2, 48, dtype=torch.int64) for _ in range(2))
        memory = (torch.zeros(4, 2, 40, 32),)
        held = [*module.parameters(), tokens, targets, *memory]
        with LiveBytes(held, threads=torch.get_num_threads()) as live:
            out = module(tokens, targets, memory)
            out.loss.backward()
        real = live.most + sum(x.untyped_storage().nbytes() for x in held)
        assert 0.97 * planned.peak <= real <= planned.peak
    assert planned.peak < 0.8 * free.peak


@pytest.mark.parametrize("kind", ["portable", "semantic"])
@pytest.mark.parametrize("rows", [0, 2, 5])
def test_onnx_takes_and_gives_the_memory(kind: str, rows: int, tmp_path: Path):
    loaded = load_mapping(remembering("causal"))
    program = inference(lower(loaded.model, loaded.dims))
    draw = torch.Generator().manual_seed(rows)
    weights = initial(program, torch, 0)
    inputs = {
        "tokens": torch.randint(0, 7, (2, 4), generator=draw),
        "past_layer_attention": torch.randn(2, 2, rows, 12, generator=draw),
    }
    want = reference(program, torch, weights, inputs, dtype=torch.float64)
    arrays = {name: x.numpy() for name, x in {**inputs, **weights}.items()}
    got = weft_onnx.run(program, weft_onnx.export(program, tmp_path)[kind], arrays)
    assert [*got] == ["logits", "present_layer_attention"]
    for name, y in got.items():
        torch.testing.assert_close(torch.tensor(y).double(), want[name], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_torch_takes_it_as_one_graph_of_open_lengths():
    """The attention is one op, whose gradient reaches the table of distances; no length compiles anew."""
    module, _ = compiled("as published")
    weights, tokens, _ = numbers(module)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    run = torch.compile(module, backend=counter, fullgraph=True, dynamic=True)
    memory = module(tokens[:, :4]).memory
    for first, end in ((4, 7), (4, 9), (2, 6)):
        found: list[Any] = []
        for f in (module, run):
            out = f(tokens[:, first:end].clone(), memory=memory)
            found.append((out.logits, out.memory[0], *torch.autograd.grad(out.logits.sin().sum(), [*weights.values()])))
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_a_package_keeps_its_states(tmp_path: Path):
    planned = api.planned(load_mapping(remembering()), True, "cpu")
    folder = write(files_of(planned), tmp_path / "package")
    program = read(folder)
    assert program.states == planned.program.states
    assert program.runtime["memory"].least == 0
    assert api.verify(folder, kernels=False).ok


def test_the_reference_goes_from_segment_to_segment():
    module, _ = compiled("as published")
    _, tokens, _ = numbers(module)
    truth = weft.reference(CASES["as published"][0]).double()
    truth.load_state_dict(module.state_dict())
    targets = (tokens + 1) % 7
    first, want = module(tokens[:, :4], targets[:, :4]), truth(tokens[:, :4], targets[:, :4])
    torch.testing.assert_close(first.memory[0], want.memory[0], rtol=1e-10, atol=1e-12)
    got, want = (f(tokens[:, 4:], targets[:, 4:], out.memory) for f, out in ((module, first), (truth, want)))
    torch.testing.assert_close((got.loss, got.logits), (want.loss, want.logits), rtol=1e-10, atol=1e-12)
