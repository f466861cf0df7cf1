"""The module under torch's autograd: frozen parameters, second derivatives, checkpoints, hooks, gradient scalers."""

import importlib.util
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from tests.module.models import SPECS, emitted, grads, inputs, model, targets
from weft import api
from weft.codegen.build import temporary
from weft.codegen.runtime.gradients import part


def close(got: Tensor, want: Tensor) -> bool:
    return torch.allclose(got, want, rtol=1e-10, atol=1e-10)


def loss(module: nn.Module, name: str) -> Tensor:
    return module(**inputs(name), **targets(name)).loss


def reference(name: str, like: nn.Module) -> Any:
    """The model in torch's own operations, with the same parameters."""
    truth = api.reference(temporary({"spec.yaml": SPECS[name]}) / "spec.yaml").double()
    truth.load_state_dict(like.state_dict())
    return truth


def only(module: nn.Module, *trained: str) -> None:
    """Freeze all parameters but those that contain one of these words."""
    for name, p in module.named_parameters():
        p.requires_grad_(any(word in name for word in trained))


TRAINED = {
    "nothing of the embedding": ("layers", "norm", "head"),
    "last layer": ("layers.1",),
    "first layer": ("layers.0",),
    "biases and norms": ("bias", "norm"),
    "one matrix in the middle": ("layers.0.feedforward.up.weight", "layers.0.experts", "layers.0.cell.weight"),
    "embedding": ("embed",),
    "query and value": ("query", "value"),
}


@pytest.mark.parametrize("what", TRAINED)
@pytest.mark.parametrize("name", SPECS)
def test_frozen_parameters_leave_the_other_gradients_as_they_are(name, what):
    module = model(name)
    want = grads(module, loss(module, name))
    only(module, *TRAINED[what])
    left = {n: p for n, p in module.named_parameters() if p.requires_grad}
    if not left:
        pytest.skip("the model has no such parameter")
    loss(module, name).backward()

    assert all(close(p.grad, want[n]) for n, p in left.items())
    assert all(p.grad is None for n, p in module.named_parameters() if n not in left)


@pytest.mark.parametrize("what", [*TRAINED, "everything"])
@pytest.mark.parametrize("name", ["gpt", "routed", "both"])
def test_backward_costs_no_more_products_than_torch_takes(name, what):
    """Floating-point operations of the backward beside those of torch's own autograd, which skips what is frozen."""
    module = model(name)
    truth = reference(name, module)
    words = TRAINED.get(what, ("",))
    if not any(word in n for word in words for n, _ in module.named_parameters()):
        pytest.skip("the model has no such parameter")
    taken = []
    for m in (module, truth):
        only(m, *words)
        total = loss(m, name)
        with FlopCounterMode(display=False) as count:
            total.backward()
        taken.append(count.get_total_flops())

    assert 0 < taken[0] <= taken[1]


def saved_bytes(module: nn.Module, name: str) -> int:
    """What a forward keeps for its backward, parameters and inputs apart."""
    known = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in known:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = module(**inputs(name), **targets(name))
    return sum(kept.values()) if out.loss.requires_grad else -1


@pytest.mark.parametrize("name", SPECS)
def test_nothing_is_kept_for_what_is_frozen(name):
    module = model(name)
    everything = saved_bytes(module, name)
    only(module, "bias")
    biases = saved_bytes(module, name)
    module.requires_grad_(False).norm.weight.requires_grad_(True)
    last = saved_bytes(module, name)
    only(module)

    assert saved_bytes(module, name) == -1
    assert 0 < last < biases < everything or not any("bias" in n for n, _ in module.named_parameters())


def test_a_frozen_layer_between_trained_ones_keeps_no_input_of_its_products():
    module = model("gpt")
    layer = module.layers[1]
    x = torch.randn(2, 6, 8, dtype=torch.float64, requires_grad=True)

    def kept() -> list[tuple[int, ...]]:
        out: list[tuple[int, ...]] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (out.append(tuple(t.shape)), t)[1], lambda t: t):
            layer(x)
        return out

    every = kept()
    only(layer)
    frozen = kept()

    wide = (2, 6, 16)  # the hidden layer: before the activation for its derivative, after it for the next matrix
    assert (every.count(wide), frozen.count(wide)) == (2, 1)
    assert every.count((2, 6, 8)) - frozen.count((2, 6, 8)) == 2  # the normed inputs of both sub-layers
    with torch.no_grad():
        assert kept() == []


@pytest.mark.parametrize("name", SPECS)
def test_a_second_derivative_is_refused_and_never_zero(name):
    module = model(name)
    params = list(module.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that create_graph makes a cycle
        first = torch.autograd.grad(loss(module, name), params, create_graph=True)

    assert all(close(g, w) for g, w in zip(first, grads(module, loss(module, name)).values()))
    for penalty in (sum((g**2).sum() for g in first), first[0].sum(), first[-1].sum()):
        for wrt in (params, params[:1], params[-1:]):
            with pytest.raises(RuntimeError, match=r"cannot be differentiated once more .*weft\.reference"):
                torch.autograd.grad(loss(module, name) + penalty, wrt, retain_graph=True, allow_unused=True)
        with pytest.raises(RuntimeError, match="once more"):
            penalty.backward(retain_graph=True)


def test_the_reference_differentiates_twice_and_needs_no_targets():
    """The way out that a refused second derivative names."""
    module = model("gpt")
    truth = reference("gpt", module)
    out = truth(**inputs("gpt"))

    assert out.loss is None
    assert close(out.logits, module(**inputs("gpt")).logits)
    first = torch.autograd.grad(out.logits.square().mean(), list(truth.parameters()), create_graph=True)
    second = torch.autograd.grad(sum((g**2).sum() for g in first), truth.norm.weight)
    assert second[0].any()


def test_a_second_derivative_through_a_single_block_is_refused():
    """Also where its one cotangent is a constant, as that of a sum."""
    module = model("gpt")
    for block, x in ((module.layers[0], torch.randn(2, 6, 8).double()), (module.embed, inputs("gpt")["tokens"])):
        first = torch.autograd.grad(block(x).sum(), list(block.parameters()), create_graph=True)
        with pytest.raises(RuntimeError, match="once more"):
            sum((g**2).sum() for g in first).backward()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", SPECS)
def test_checkpointing_around_the_module_and_its_layers(name, reentrant):
    module = model(name)
    want = grads(module, loss(module, name))
    given = inputs(name) | targets(name)
    held = module.norm.weight  # reentrant checkpoints want an input that requires a gradient

    def run(_: Tensor, *values: Tensor) -> Tensor:
        return module(**dict(zip(given, values))).loss

    checkpoint(run, held, *given.values(), use_reentrant=reentrant).backward()

    assert all(close(p.grad, want[n]) for n, p in module.named_parameters())


def test_gradients_accumulate_over_calls_of_other_sizes():
    module = model("gpt")
    parts = [inputs("gpt", b, s)["tokens"] for b, s in ((1, 3), (4, 8), (2, 1))]
    want = [grads(module, module(x, x).loss) for x in parts]
    for x in parts:
        module(x, x).loss.backward()

    assert all(close(p.grad, sum(w[n] for w in want)) for n, p in module.named_parameters())


def test_gradients_of_a_subset_and_of_one_graph_twice():
    module = model("gpt")
    want = grads(module, loss(module, "gpt"))
    some = {n: p for n, p in module.named_parameters() if "query" in n or n == "norm.bias"}
    total = loss(module, "gpt")

    for _ in range(2):
        got = torch.autograd.grad(total, list(some.values()), retain_graph=True)
        assert all(close(g, want[n]) for n, g in zip(some, got))


def test_hooks_on_modules_parameters_and_values_are_heard():
    module = model("gpt")
    want = grads(module, loss(module, "gpt"))
    seen: list[str] = []

    def value(_: nn.Module, __: object, out: Tensor) -> None:
        out.register_hook(lambda g: seen.append("value"))

    module.layers[0].register_forward_hook(lambda m, args, out: seen.append("forward"))
    module.layers[0].register_full_backward_hook(lambda m, into, outof: seen.append("backward"))
    module.layers[1].register_forward_hook(value)
    module.norm.weight.register_hook(lambda g: 2 * g)
    module.norm.bias.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))
    loss(module, "gpt").backward()

    assert sorted(seen) == ["accumulated", "backward", "forward", "value"]
    assert close(module.norm.weight.grad, 2 * want["norm.weight"])


@pytest.mark.parametrize("own", [False, True])
def test_a_gradient_scaler_scales_and_unscales(own):
    module = emitted("gpt", more="dtype: {compute: f16}\n").Model(generator=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)

    def total() -> Tensor:
        out = module(**inputs("gpt"), **targets("gpt"))
        return out.logits.float().logsumexp(-1).mean() if own else out.loss

    want = grads(module, total())
    scaler.scale(total()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)

    for n, p in module.named_parameters():
        assert (p.grad.float() - want[n].float()).norm() <= 2e-2 * want[n].float().norm() + 1e-4, n


def test_a_function_s_unneeded_lines_go_and_changes_in_place_stay(tmp_path):
    """`part` on code of every form that emitted functions may take."""
    source = """
def f(a, b, c, d):
    x = a * 2
    y = b * 3
    z, w = x + y, c + 1
    out = a.new_zeros(3)
    for i in range(3):
        t = d * i
        out[i] = t.sum()
        del t
    alone = y.clone()
    alone.mul_(2)
    seen = alone.add_(1)
    del x, seen
    return z, w.sum(), out, alone
"""
    (tmp_path / "lines.py").write_text(source)
    spec = importlib.util.spec_from_file_location("lines", tmp_path / "lines.py")
    lines = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lines)
    args = [torch.tensor(float(k + 2)) for k in range(4)]
    whole = lines.f(*args)

    for mask in range(1, 16):
        wanted = tuple(bool(mask >> k & 1) for k in range(4))
        run, read = part(lines.f, wanted)
        got = run(*(x if i in read else None for i, x in enumerate(args)))
        assert [g is not None for g in got] == list(wanted)
        assert all(g is None or torch.equal(g, w) for g, w in zip(got, whole))
    assert part(lines.f, (False, True, False, False))[1] == {0, 1, 2}
    assert part(lines.f, (False, False, False, True))[1] == {1}
    assert part(lines.f, (True,) * 4)[0] is lines.f
    assert part(lines.f, (True,) * 6)[0] is lines.f
