"""Opaque blocks: wrapped modules run inside the emitted model, with its parameters and its gradients."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import weft
from weft import api
from weft.codegen.build import temporary
from weft.codegen.package.disk import load


def wrapping(module: nn.Module) -> weft.Model:
    return weft.Model(
        name="wrapped",
        dims={"batch": 2, "seq": 8, "width": 8, "heads": 2, "head": 4, "layers": 2, "vocab": 11},
        blocks={"attention": weft.Attention(pattern="causal"), "own": weft.Opaque(module)},
        stack=[{"repeat": "layers", "layer": ["attention", "own"]}],
        norm="layer_norm",
        head={"tied": True},
        sublayer={"norm": "layer_norm", "residual": "pre"},
        embed={},
    )


def mlp(rate: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(rate), nn.Linear(16, 8))


def tokens() -> torch.Tensor:
    return torch.randint(0, 11, (2, 8), generator=torch.Generator().manual_seed(1))


def test_a_wrapped_module_verifies():
    found = api.verify(wrapping(mlp()), target="cpu")

    assert found.ok, found.text()


@pytest.mark.parametrize("target", ["cpu", "sm_90"])
def test_a_wrapped_module_is_planned_around(target: str):
    assert api.plan(wrapping(mlp()), target=target)["totals"]["backward"]["launches"] > 10


def test_its_parameters_are_the_model_s():
    model = api.compile(wrapping(mlp()), target="cpu")

    assert tuple(model.state_dict()["layers.1.own.3.weight"].shape) == (8, 16)
    model(tokens(), tokens()).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_its_random_numbers_are_replayed():
    """With dropout inside: the gradient is that of the very function the forward was."""
    model = api.compile(wrapping(mlp(0.5)), target="cpu").double()

    def loss() -> torch.Tensor:
        torch.manual_seed(4)
        return model(tokens(), tokens()).loss

    weight = model.state_dict(keep_vars=True)["layers.0.own.0.weight"]
    (grad,) = torch.autograd.grad(loss(), weight)
    step = torch.zeros_like(weight)
    step[2, 3] = 1e-6
    with torch.no_grad():
        weight += step
        up = loss()
        weight -= 2 * step
        down = loss()
    assert float(up - down) / 2e-6 == pytest.approx(float(grad[2, 3]), rel=1e-4, abs=1e-7)


def test_a_package_without_its_module_says_so():
    model = load(temporary(api.package(wrapping(mlp()), target="cpu"))).Model()
    with pytest.raises(RuntimeError, match=r"'module_0' is missing: call install"):
        model(tokens(), tokens())


def test_it_cannot_be_stepped():
    model = api.compile(wrapping(mlp()), target="cpu")
    with pytest.raises(NotImplementedError, match="cannot decode"):
        model.state(1)


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._schema.name in ("aten::mm", "aten::addmm", "aten::bmm")
        return func(*args, **(kwargs or {}))


def test_frozen_parameters_of_a_wrapped_module_cost_no_products():
    model = api.compile(wrapping(mlp()), target="cpu").double()
    counts, grads = [], []
    for frozen in (False, True):
        model.zero_grad()
        for name, p in model.named_parameters():
            p.requires_grad_(not (frozen and ".own." in name))
        total = model(tokens(), tokens()).loss
        with Products() as products:
            total.backward()
        counts.append(products.count)
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})

    assert counts[1] == counts[0] - 2 * 2  # two layers of two matrices
    assert not any(".own." in name for name in grads[1])
    assert all(torch.allclose(g, grads[0][name]) for name, g in grads[1].items())
