"""Parameters that are not what was registered: parametrizations, pruning, adapters, wrappers, calls, dtypes."""

from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

from tests.module.models import SPECS, grads, inputs, model, targets

UP = "layers.0.feedforward.up"


def close(got: Tensor, want: Tensor) -> bool:
    return torch.allclose(got, want, rtol=1e-10, atol=1e-10)


def loss(module: nn.Module, name: str = "gpt") -> Tensor:
    return module(**inputs(name), **targets(name)).loss


def parent(module: nn.Module, name: str) -> tuple[Any, str]:
    """Where a module hangs, and under which name."""
    *path, leaf = name.split(".")
    return module.get_submodule(".".join(path)), leaf


def replaced(changes: dict[str, Tensor], name: str = "gpt") -> nn.Module:
    """The plain model with other values of some parameters."""
    plain = model(name)
    plain.load_state_dict(changes, strict=False)
    return plain


class LowRank(nn.Module):
    """W + A B."""

    def __init__(self, shape: torch.Size, rank: int = 2):
        super().__init__()
        draw = torch.Generator().manual_seed(5)
        self.a = nn.Parameter(torch.randn(shape[0], rank, generator=draw, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(rank, shape[1], generator=draw, dtype=torch.float64))

    def forward(self, w: Tensor) -> Tensor:
        return w + self.a @ self.b


def by_parametrization(module: nn.Module) -> nn.Module:
    at = module.get_submodule(UP)
    adapter = LowRank(at.weight.shape)
    parametrize.register_parametrization(at, "weight", adapter)
    return adapter


def by_property(module: nn.Module) -> nn.Module:
    """What wraps a group and has the parameter as a property."""

    class Wrapper(nn.Module):
        def __init__(self, wrapped: nn.Module):
            super().__init__()
            self.wrapped, self.adapter = wrapped, LowRank(wrapped.weight.shape)

        @property
        def weight(self) -> Tensor:
            return self.adapter(self.wrapped.weight)

        @property
        def bias(self) -> Tensor:
            return self.wrapped.bias

    home, leaf = parent(module, UP)
    setattr(home, leaf, Wrapper(getattr(home, leaf)))
    return getattr(home, leaf).adapter


def by_call(module: nn.Module) -> nn.Module:
    """As PEFT adapts a parameter: a wrapper parametrizes what it wraps for as long as that runs."""

    class Wrapper(nn.Module):
        def __init__(self, base: nn.Module):
            super().__init__()
            self.base_layer, self.adapter = base, LowRank(base.weight.shape)

        @property
        def weight(self) -> Tensor:
            return self.base_layer.weight

        @contextmanager
        def adapted(self):
            parametrize.register_parametrization(self.base_layer, "weight", self.adapter)
            yield
            parametrize.remove_parametrizations(self.base_layer, "weight", leave_parametrized=False)

        def forward(self, *args: Any, **named: Any) -> Any:
            with self.adapted():
                return self.base_layer(*args, **named)

    home, leaf = parent(module, UP)
    setattr(home, leaf, Wrapper(getattr(home, leaf)))
    return getattr(home, leaf).adapter


@pytest.mark.parametrize("adapt", [by_parametrization, by_property, by_call])
def test_low_rank_adapters_train_and_cost_what_they_should(adapt):
    module = model("gpt")
    module.requires_grad_(False)
    adapter = adapt(module)
    adapter.requires_grad_(True)
    with torch.no_grad():
        merged = replaced({f"{UP}.weight": adapter(model("gpt").get_parameter(f"{UP}.weight"))})
    whole = grads(merged, loss(merged))[f"{UP}.weight"]

    total = loss(module)
    assert close(total, loss(merged))
    with FlopCounterMode(display=False) as adapted:
        total.backward()
    assert close(adapter.a.grad, whole @ adapter.b.T)
    assert close(adapter.b.grad, adapter.a.T @ whole)
    assert {n for n, p in module.named_parameters() if p.grad is not None and "adapter" not in n} <= {
        f"{UP}.parametrizations.weight.0.a", f"{UP}.parametrizations.weight.0.b"
    }  # fmt: skip
    whole_loss = loss(model("gpt"))
    with FlopCounterMode(display=False) as everything:
        whole_loss.backward()
    assert adapted.get_total_flops() < 0.6 * everything.get_total_flops()
    prompt = inputs("gpt")["tokens"]
    assert close(module.eval().prefill(prompt)[0].logits, merged.eval()(prompt).logits)


@pytest.mark.parametrize("name", ["embed", "norm", UP, "layers.1.attention.query"])
@pytest.mark.parametrize("how", ["parametrization", "hook"])
def test_weight_norm(name, how):
    module = model("gpt")
    at, leaf = module.get_submodule(name), "tokens" if name == "embed" else "weight"
    plain = at.get_parameter(leaf).detach().clone()
    with pytest.warns(FutureWarning) if how == "hook" else nullcontext():
        (nn.utils.parametrizations.weight_norm if how == "parametrization" else nn.utils.weight_norm)(at, leaf)
    length, direction = (
        (getattr(at, f"{leaf}_g"), getattr(at, f"{leaf}_v"))
        if how == "hook"
        else (getattr(at.parametrizations, leaf).original0, getattr(at.parametrizations, leaf).original1)
    )
    assert close(loss(module), loss(model("gpt")))
    for step in range(2):
        with torch.no_grad():
            length.mul_(1.5)
        want = replaced({f"{name}.{leaf}": plain * 1.5 ** (step + 1)})
        module.zero_grad()
        total = loss(module)
        total.backward()
        assert close(total, loss(want))
        assert length.grad.any()
        assert direction.grad.isfinite().all()


def test_pruning():
    module = model("gpt")
    prune.l1_unstructured(module.get_submodule(UP), "weight", amount=0.5)
    prune.random_structured(module.embed, "tokens", amount=2, dim=0)
    masked = {f"{UP}.weight": module.get_submodule(UP).weight, "embed.tokens": module.embed.tokens}
    want = replaced({n: x.detach() for n, x in masked.items()})

    assert close(loss(module), loss(want))
    loss(module).backward()
    expected = grads(want, loss(want))
    mask = module.get_submodule(UP).weight_mask
    assert close(module.get_submodule(UP).weight_orig.grad, expected[f"{UP}.weight"] * mask)
    with torch.no_grad():
        module.get_submodule(UP).weight_orig.mul_(2)
    prompt = inputs("gpt")["tokens"]
    again = replaced(
        {f"{UP}.weight": 2 * masked[f"{UP}.weight"].detach(), "embed.tokens": masked["embed.tokens"].detach()}
    )
    assert close(module.eval().prefill(prompt)[0].logits, again.eval()(prompt).logits)
    for at, leaf in ((module.get_submodule(UP), "weight"), (module.embed, "tokens")):
        prune.remove(at, leaf)
    assert module.state_dict().keys() == model("gpt").state_dict().keys()


@pytest.mark.parametrize("name", SPECS)
def test_every_parameter_may_be_parametrized(name):
    """A parametrization that doubles, over halved values, is the same model; its gradients are twice as large."""

    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

        def right_inverse(self, x: Tensor) -> Tensor:
            return x / 2

    module, plain = model(name), model(name)
    names = list(dict(plain.named_parameters()))
    for full in names:
        home, leaf = parent(module, full)
        parametrize.register_parametrization(home, leaf, Twice())
    want = grads(plain, loss(plain, name))

    assert close(loss(module, name), loss(plain, name))
    loss(module, name).backward()
    for full in names:
        home, leaf = parent(module, full)
        assert close(getattr(home.parametrizations, leaf).original.grad, 2 * want[full]), full
    drawn = type(module)(generator=3).double()
    module.reset_parameters(3)
    for full in names:
        home, leaf = parent(module, full)
        assert close(getattr(home, leaf), drawn.get_parameter(full))
        parametrize.remove_parametrizations(home, leaf)
    assert module.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("name", SPECS)
def test_functional_calls(name):
    module = model(name)
    want = grads(module, loss(module, name))
    held = {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()

    out = torch.func.functional_call(module, held, (), inputs(name) | targets(name))
    got = torch.autograd.grad(out.loss, list(held.values()), allow_unused=True, materialize_grads=True)

    assert all(close(g, want[n]) for n, g in zip(held, got))


def test_a_wrapped_layer_runs_in_its_place():
    class Adapter(nn.Module):
        def __init__(self, base: nn.Module):
            super().__init__()
            self.base, self.scale = base, nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.scale * x

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("base"), name)

    module = model("gpt")
    plain = loss(module)
    module.layers[0], module.embed = Adapter(module.layers[0]), torch.nn.Sequential(module.embed)[0]
    loss(module).backward()

    assert not close(loss(module), plain)
    assert module.layers[0].scale.grad.any()
    assert module.layers[0].get_parameter("base.feedforward.up.weight").grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["gpt", "routed", "recurrent"])
def test_a_model_moved_to_half_precision_runs_and_decodes(name, dtype):
    """No constant in it is too large for the dtype it meets, and no row becomes nan."""
    module, whole = model(name, dtype).eval(), model(name, torch.float32).eval()
    whole.load_state_dict(module.state_dict())
    prompt = inputs(name)["tokens"]
    want = whole(prompt).logits

    def near(got: Tensor, want: Tensor) -> bool:
        return bool((got.float() - want).norm() <= (0.02 if dtype == torch.float16 else 0.15) * want.norm())

    assert near(module(prompt).logits, want)
    first, state = module.prefill(prompt[:, :4])
    assert near(first.logits, want[:, :4])
    for t in range(4, 6):
        out, state = module.step(prompt[:, t], state)
        assert near(out.logits, want[:, t])
    loss(module, name).backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())
