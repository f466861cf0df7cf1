"""Comparing a program with an independent implementation: fp64, random weights, outputs and every gradient."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.parity.mapping import Row, carry
from weft.frontends.extends import read_document
from weft.frontends.load import load_spec
from weft.frontends.lower.program import lower
from weft.frontends.resolve import resolve
from weft.frontends.schema import Model
from weft.ir.program import Program
from weft.ir.reference_model import reference

SPECS = "examples/specs"
TOLERANCE = 1e-10


def without_dropout(model: Model) -> Model:
    """The same model, nothing dropped."""

    def off(part: Any) -> Any:
        if isinstance(part, dict):
            return {k: 0.0 if k == "dropout" else off(v) for k, v in part.items()}
        return [off(x) for x in part] if isinstance(part, list) else part

    return Model.model_validate(off(model.model_dump(exclude_unset=True)))


def shipped(name: str, *sets: str) -> Program:
    """A shipped spec at its small dims, for training, without dropout."""
    return built(load_spec(f"{SPECS}/{name}.yaml", sets, small=True).model)


def built(model: Model) -> Program:
    model = without_dropout(model)
    return lower(model, resolve(model))


def randomise(module: torch.nn.Module, seed: int = 0, scale: float = 0.3) -> dict[str, torch.Tensor]:
    """Every parameter drawn anew, biases and norms included; gives them by name."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        fresh = torch.randn(p.shape, generator=generator, dtype=torch.float64) * scale
        p.data = fresh + (1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0)
    return dict(module.named_parameters())


def integers(seed: int, below: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))


def agree(
    program: Program,
    table: tuple[Row, ...],
    theirs: Mapping[str, torch.Tensor],
    inputs: Mapping[str, torch.Tensor],
    want: Mapping[str, torch.Tensor],
) -> dict[str, float]:
    """Assert equal outputs, and equal gradients of `loss` for every parameter; gives the worst relative errors."""
    grads = torch.autograd.grad(want["loss"], list(theirs.values()), allow_unused=True)
    return compare(program, table, theirs, inputs, want, {
        n: torch.zeros_like(theirs[n]) if g is None else g for n, g in zip(theirs, grads)
    })  # fmt: skip


def compare(
    program: Program,
    table: tuple[Row, ...],
    theirs: Mapping[str, torch.Tensor],
    inputs: Mapping[str, torch.Tensor],
    want: Mapping[str, torch.Tensor],
    grads: Mapping[str, torch.Tensor],
) -> dict[str, float]:
    """The same, their gradients given."""
    mine = {n: v.detach().clone().requires_grad_() for n, v in carry(table, program, theirs, torch).items()}
    got = reference(program, torch, mine, inputs, dtype=torch.float64)
    errors = {name: _error(got[name], value) for name, value in want.items()}
    ours = torch.autograd.grad(got["loss"], list(mine.values()), allow_unused=True, materialize_grads=True)
    own = dict(zip(mine, ours))
    expected = carry(table, program, grads, torch)
    scale = sorted(float(g.norm()) for g in expected.values())[len(expected) // 2]
    errors |= {f"d {n}": _error(own[n], g, 1e-3 * scale) for n, g in expected.items()}
    bad = {n: e for n, e in errors.items() if not e <= TOLERANCE}
    assert not bad, bad
    return errors


def _error(a: torch.Tensor, b: torch.Tensor, floor: float = 0.0) -> float:
    """‖a - b‖ / max(‖b‖, floor); a key's bias has no gradient at all, so the floor matters."""
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).detach().norm() / max(float(b.detach().norm()), floor, 1e-300))


class _Double:
    """The torch module as a modelling file sees it, with single precision meaning double."""

    float32 = float = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def in_double(module: Any) -> Iterator[None]:
    """transformers computes softmax, RMS and rotary angles in fp32 whatever the model's dtype: here in fp64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "torch", _Double())
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)  # a quotient of integers has it
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def spec_of(name: str) -> dict[str, Any]:
    """A shipped spec as plain values, to be changed."""
    return read_document(f"{SPECS}/{name}.yaml").data
