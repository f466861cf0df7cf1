"""Every family through config.json and safetensors on disk: logits, gradients, greedy text, and the way back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.campaign import SOAK
from tests.hf.models import DECODING, MODELS, doubled, inputs, logits_of, oracle, saved
from weft import api
from weft.api_hf import tensors_of
from weft.frontends.hf.families import FAMILIES
from weft.frontends.hf.imported import import_config, import_values
from weft.frontends.hf.tensors.checkpoint import Checkpoint
from weft.frontends.hf.tensors.matching import match
from weft.frontends.hf.tensors.moving import fill

SAMPLE = ["gpt2", "deepseek_v3"]
"""Fused columns and tied tables; turned matrices, rows of several by heads, layers of two kinds, experts, a buffer."""
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-5}
FLOORS = {torch.float64: 1e-3, torch.float32: 1e-2}
"""Of the middle gradient: the bias of a key has none, and what comes out for it is rounding."""


def loss_of(found: dict[str, torch.Tensor]) -> torch.Tensor:
    """A number that every logit has a part in, each another."""
    total = torch.zeros((), dtype=next(iter(found.values())).dtype)
    for x in found.values():
        weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(x.dtype)
        total = total + (x * weights).sum() / x.numel() ** 0.5
    return total


def gradients(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """The oracle's gradients by our names: saved as if they were its weights, and read back."""
    for p in model.parameters():
        p.data = p.data * 0 if p.grad is None else p.grad
    checkpoint = Checkpoint.open(saved(model, folder))
    imported = import_config(folder)
    wanted = tensors_of(imported)
    found: dict[str, torch.Tensor] = {}
    for tensor in wanted.values():
        for part in tensor.parts:
            many = 1 + max((p.expert or 0 for t in wanted.values() for p in t.parts if p.name == part.name), default=0)
            shape = part.shape if part.expert is None else (many, *part.shape)
            found.setdefault(part.name, torch.zeros(shape, dtype=torch.float64))
    fill(found, checkpoint, match(checkpoint, imported.family, imported.architecture, wanted))
    return found


def worst(got: torch.Tensor, want: torch.Tensor, floor: float = 0.0) -> float:
    """‖a - b‖ / max(‖b‖, floor)."""
    got, want = got.detach().double().flatten(), want.detach().double().flatten()
    return float((got - want).norm() / max(float(want.norm()), floor, 1e-300))


def compared(module: Any, model: Any, family: str, dtype: torch.dtype, folder: Path) -> dict[str, float]:
    """Worst relative errors of outputs and gradients; leaves the oracle with its gradients for weights."""
    module.to(dtype).zero_grad()
    given = inputs(family)
    with doubled(family, dtype):
        want = logits_of(model, family, given)
        loss_of(want).backward()
    out = module(**given)
    got = {name: getattr(out, name) for name in want}
    loss_of(got).backward()
    errors = {name: worst(got[name], want[name]) for name in want}
    theirs = gradients(model.double(), folder)
    own = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    theirs = {n: g for n, g in theirs.items() if n not in dict(module.named_buffers())}
    assert own.keys() == theirs.keys()
    floor = FLOORS[dtype] * sorted(float(g.norm()) for g in theirs.values())[len(theirs) // 2]
    return errors | {f"d {n}": worst(own[n], g, floor) for n, g in theirs.items()}


def generated(module: Any, prompt: list[torch.Tensor], steps: int) -> torch.Tensor:
    """Greedy text, by prefill and steps."""
    out, state = module.prefill(*prompt)
    chosen = [out.logits[:, -1].argmax(-1)]
    for _ in range(steps - 1):
        out, state = module.step(chosen[-1], state)
        chosen.append(out.logits.argmax(-1))
    return torch.stack(chosen, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_transformers(family):
    """A config that says nothing is that which says everything."""
    said = transformers.AutoConfig.for_model(family).to_dict()

    assert import_values({"model_type": family}).spec == import_values(said).spec


@pytest.mark.parametrize("family", [*MODELS] if SOAK else SAMPLE)
def test_a_folder_gives_the_function_it_was_saved_as(family, tmp_path):
    folder = saved(oracle(family), tmp_path / "saved")
    module = api.load_hf(folder)
    assert {p.dtype for p in module.parameters()} == {torch.float64}

    if family in DECODING:
        *source, prompt = inputs(family).values()
        prompt, model = [*source, prompt[:, :9]], oracle(family)
        named = {"input_ids": prompt[0]} | ({"decoder_input_ids": prompt[1]} if source else {})
        with doubled(family):
            want = model.generate(**named, max_new_tokens=64, do_sample=False, pad_token_id=0)[:, 9:]
        assert torch.equal(generated(module, prompt, 64), want)
    again = api.save_hf(module, tmp_path / "again", max_shard_size="40KB")
    assert_equal_checkpoints(folder, tmp_path / "again", missing=("pooler",) if family == "big_bird" else ())
    assert len(again) > 3
    read = type(oracle(family)).from_pretrained(tmp_path / "again").state_dict()
    own = {n: x for n, x in oracle(family).state_dict().items() if family != "big_bird" or "pooler" not in n}
    assert all(torch.equal(read[n], x) for n, x in own.items())

    for dtype, bound in BOUNDS.items():
        errors = compared(module, oracle(family, dtype), family, dtype, tmp_path / f"{bound}")
        assert {n: e for n, e in errors.items() if not e <= bound} == {}


def assert_equal_checkpoints(one: Path, other: Path, missing: tuple[str, ...] = ()) -> None:
    """The same tensors, bit for bit, and the same config."""
    a, b = Checkpoint.open(one), Checkpoint.open(other)
    assert {n for n in a.tensors if not any(m in n for m in missing)} == set(b.tensors)
    for name in b.tensors:
        many = a.tensors[name].shape[0]
        with a.reading(name) as first, b.reading(name) as second:
            x, y = first(0, many), second(0, many)
            assert x.dtype == y.dtype
            assert torch.equal(x.view(torch.uint8), y.view(torch.uint8)), name
    configs = [json.loads((folder / "config.json").read_text()) for folder in (one, other)]
    assert configs[0] == configs[1]
