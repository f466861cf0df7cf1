"""An emitted module among PyTorch's tools: meta and fake tensors, defaults, copies, state dicts, hooks, counters."""

import copy
import importlib
import io
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from tests.module.models import EVERY, emitted, inputs, model, numbers, targets

GPT = "gpt"


def called(name: str) -> dict[str, torch.Tensor]:
    return {**inputs(name), **targets(name)}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_shapes_alone_go_forward_and_backward(name, kind):
    """What has no numbers has the sizes, dtypes and strides of what has."""
    real = emitted(name).Model()
    want = real(**called(name))
    want.loss.backward()
    with FakeTensorMode() if kind == "fake" else torch.device("meta"):
        module = emitted(name).Model()
        given = {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in called(name).items()}
        out = module(**given)
        out.loss.backward()

    for a, b in zip(out, want):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
    for (n, p), q in zip(module.named_parameters(), real.parameters()):
        assert (p.grad.shape, p.grad.dtype) == (q.grad.shape, q.grad.dtype), n


@contextmanager
def default(dtype: torch.dtype | None = None, device: str | None = None) -> Iterator[None]:
    torch.set_default_dtype(dtype or torch.float32)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def deferred(make: Callable[..., Any]) -> Any:
    with torch.device("meta"):
        module = make()
        assert all(p.is_meta for p in module.parameters())
    module.to_empty(device="cpu")
    with torch.device("meta"), default(torch.float64):
        module.reset_parameters()
    return module


def within(context: Any, **options: Any) -> Callable[..., Any]:
    def made(make: Callable[..., Any]) -> Any:
        with context():
            return make(**options)

    return made


@pytest.mark.parametrize(
    "made",
    [
        within(lambda: default(torch.float64)),
        within(lambda: default(torch.bfloat16)),
        within(lambda: default(device="meta"), device="cpu"),
        within(lambda: torch.device("meta"), device="cpu"),
        within(torch.inference_mode),
        within(lambda: torch.random.fork_rng([])),
        deferred,
    ],
    ids=["float64", "bfloat16", "default device", "device", "inference", "another seed", "deferred"],
)
def test_seed_and_name_alone_decide_the_weights(made):
    want = emitted("both").Model().state_dict()
    got = made(emitted("both").Model).state_dict()

    assert all(got[n].dtype == want[n].dtype and torch.equal(got[n], want[n]) for n in want)


def test_defaults_change_no_call():
    module, given = model(GPT, torch.float32), called(GPT)
    want = module(**given)
    with default(torch.float64, "meta"):
        got = module(**given)
        step = module.step(given["tokens"][:, 0], module.state(3))[0]

    assert all(torch.equal(a, b) for a, b in zip(got, want))
    assert step.logits.dtype == torch.float32
    assert torch.allclose(step.logits, want.logits[:, 0], atol=1e-6)


@pytest.mark.parametrize("call", ["forward", "prefill", "step"])
def test_autocast_is_refused_in_every_call(call):
    module, tokens = model(GPT), inputs(GPT)["tokens"]
    given = {"forward": (tokens,), "prefill": (tokens,), "step": (tokens[:, 0], module.state(3))}[call]
    with torch.autocast("cpu"), pytest.raises(RuntimeError, match=r"outside torch\.autocast"):
        getattr(module, call)(*given)
    with torch.autocast("cpu", enabled=False):
        getattr(module, call)(*given)


def restored(module: Any) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("again", [copy.deepcopy, restored, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("name", ["both", "recurrent"])
def test_a_copy_is_a_module_of_its_own(name, again):
    module = model(name)
    twin = again(module)
    out = module(**called(name)).logits
    assert torch.equal(twin(**called(name)).logits, out)

    twin.reset_parameters(9)
    assert torch.equal(module(**called(name)).logits, out)
    assert not torch.equal(twin(**called(name)).logits, out)


def test_a_plain_import_is_pickled_by_its_own_name(tmp_path, monkeypatch):
    (tmp_path / "plainly_imported").symlink_to(Path(emitted(GPT).__file__).parent)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("plainly_imported").Model()
    text = pickle.dumps(module)

    assert b"plainly_imported.model" in text
    assert torch.equal(pickle.loads(text)(**called(GPT)).loss, module(**called(GPT)).loss)
    for name in [n for n in sys.modules if n.startswith("plainly_imported")]:
        del sys.modules[name]


def test_a_state_is_pickled():
    module = model(GPT)
    _, state = module.prefill(inputs(GPT)["tokens"])
    again = pickle.loads(pickle.dumps(state))

    assert torch.equal(module.step(numbers(3), again)[0].logits, module.step(numbers(3), state)[0].logits)


def test_state_dicts_are_strict_and_move_between_dtypes_and_devices():
    module = model(GPT)
    half = emitted(GPT).Model().to(torch.bfloat16)
    half.load_state_dict(module.state_dict())
    assert all(torch.equal(half.state_dict()[n], p.to(torch.bfloat16)) for n, p in module.state_dict().items())

    empty = emitted(GPT).Model(device="meta")
    empty.load_state_dict(module.state_dict(), assign=True)
    assert torch.equal(empty(**called(GPT)).loss, module(**called(GPT)).loss)

    short = {n: p for n, p in module.state_dict().items() if n != "norm.bias"}
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "norm.bias"'):
        module.load_state_dict(short)
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "more"'):
        module.load_state_dict({**module.state_dict(), "more": torch.zeros(1)})
    assert module.load_state_dict(short, strict=False).missing_keys == ["norm.bias"]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_moved_model_trains_in_its_dtype(name, dtype):
    module = emitted(name).Model().to(dtype)
    out = module(**called(name))
    out.loss.backward()

    assert out.logits.dtype == dtype
    assert all(p.grad.dtype == dtype for p in module.parameters())


def test_names_are_those_of_the_spec_however_often_asked():
    module = model(GPT)
    names = [n for n, _ in module.named_parameters()]

    assert names == [n for n, _ in module.to(torch.float32).train().eval().named_parameters()] == [*module.state_dict()]
    assert {"embed.tokens", "layers.1.attention.query.weight", "layers.0.feedforward.up.bias"} <= {*names}
    assert not list(module.named_buffers())


def test_groups_of_an_optimizer():
    """Weight decay for what has two dims or more; one step changes every parameter."""
    module = model(GPT)
    before = copy.deepcopy(module.state_dict())
    decay = [p for p in module.parameters() if p.dim() > 1]
    rest = [p for p in module.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": decay}, {"params": rest, "weight_decay": 0.0}], lr=0.1)
    module(**called(GPT)).loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()

    assert len(decay) + len(rest) == len(before)
    assert all(not torch.equal(p, before[n]) for n, p in module.state_dict().items())


def test_functional_call_takes_other_weights():
    module, other = model(GPT), emitted(GPT).Model(generator=7).double()
    given = called(GPT)
    weights = {n: p.detach().clone().requires_grad_() for n, p in other.named_parameters()}
    functional_call(module, weights, kwargs=given).loss.backward()
    other(**given).loss.backward()

    assert all(torch.allclose(weights[n].grad, p.grad) for n, p in other.named_parameters())


def test_transforms_of_functions_are_refused():
    module, given = model(GPT), called(GPT)
    weights = dict(module.named_parameters())
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(lambda w: functional_call(module, w, kwargs=given).loss)(weights)
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(lambda row: module(row[None]).logits)(given["tokens"])


def test_hooks_of_modules_are_heard():
    module, seen = model(GPT), []
    for i, layer in enumerate(module.layers):
        layer.register_forward_pre_hook(lambda *_, i=i: seen.append(f"pre {i}"))
        layer.register_forward_hook(lambda _, given, out, i=i: seen.append(f"{i} {list(out.shape)}"))
        layer.register_full_backward_hook(lambda _, into, out, i=i: seen.append(f"back {i} {list(out[0].shape)}"))
    module(**called(GPT)).loss.backward()

    said = ["pre 0", "0 [3, 6, 8]", "pre 1", "1 [3, 6, 8]", "back 1 [3, 6, 8]", "back 0 [3, 6, 8]"]
    assert seen == said


def test_a_hook_changes_what_goes_on():
    module = model(GPT)
    module.layers[0].register_forward_hook(lambda _, given, out: torch.zeros_like(out))
    out = module(**called(GPT)).logits

    assert torch.allclose(out[:, 0], out[:1, 0].expand_as(out[:, 0]))


def test_products_are_counted():
    """Each weight's product once forward; in backward once more for the input and once for the weight."""
    module = model(GPT)
    with FlopCounterMode(display=False) as forward:
        loss = module(**called(GPT)).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    names = {n: p for n, p in module.named_parameters() if n.endswith(".weight") and "norm" not in n}
    weights = sum(p.numel() for p in [*names.values(), module.embed.get_parameter("tokens")])  # tied with the head

    assert forward.get_total_flops() == 2 * 3 * 6 * weights
    assert backward.get_total_flops() == 2 * forward.get_total_flops()


def test_printed_it_says_what_it_holds():
    text = repr(model(GPT))

    assert "(query): Group(weight [8, 2, 4], bias [2, 4])" in text
    assert "(0-1): 2 x Layer(" in text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_jit_is_refused_by_torch():
    with pytest.raises(RuntimeError, match="getattr's second argument must be a string literal"):
        torch.jit.script(model(GPT))
