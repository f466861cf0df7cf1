"""The emitted Model: logical parameters, initialisation, inputs checked by name, dropout, loadable weights."""

import copy
from functools import lru_cache
from types import ModuleType

import pytest
import torch

from tests.campaign import some
from tests.codegen.emission import SPECS, package, planned, spec_path
from weft import api
from weft.codegen.build import temporary
from weft.codegen.package.disk import load
from weft.ir.reference_model import initial


@lru_cache(maxsize=16)
def emitted(name: str, train: bool = True, memory: int | None = None) -> ModuleType:
    return load(temporary(package(name, train, memory)))


def tokens(batch: int = 2, seq: int = 16, below: int = 40) -> torch.Tensor:
    return torch.randint(0, below, (batch, seq), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", some(SPECS, 2))
def test_state_dict_has_the_logical_names_and_shapes(name):
    program = planned(name).program
    want = {n: tuple(program.resolve()[d] for d in p.dims) for n, (p, _) in program.logical_names().items()}

    got = emitted(name).Model(device="meta").state_dict()

    assert {n: tuple(p.shape) for n, p in got.items()} == want


@pytest.mark.parametrize("name", ["gpt2_345m", "switch_base", "sru_pp_enwik8"])
def test_initialisation_is_the_spec_s(name):
    program = planned(name).program
    model = emitted(name).Model(generator=3)

    for key, value in initial(program, torch, 3).items():
        assert torch.equal(model.state_dict()[key], value), key
    model.reset_parameters(torch.Generator().manual_seed(3))
    assert torch.equal(model.state_dict()[key], value)


def test_meta_construction_allocates_nothing():
    model = emitted("gpt2_345m").Model(device="meta")

    assert all(p.device.type == "meta" for p in model.parameters())
    model.to_empty(device="cpu").reset_parameters(0)
    assert torch.isfinite(model(tokens(), tokens()).loss)


def test_training_weights_load_into_any_compilation():
    model = emitted("switch_base").Model(generator=5)
    other = emitted("switch_base", False).Model(generator=6)

    other.load_state_dict(model.state_dict())

    assert torch.equal(model.eval()(tokens(), tokens()).logits, other(tokens()).logits)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((tokens(seq=33), tokens(seq=33)), "tokens: dim seq is 33, over its declared maximum 32"),
        ((tokens(), tokens(seq=8)), "targets: dim seq is 8, but 16 in another input"),
        ((tokens()[0], tokens()), r"tokens must be \[batch seq\], got shape \[16\]"),
        ((tokens().float(), tokens()), "tokens must be torch.int64, got torch.float32"),
        ((None, tokens()), r"tokens must be a tensor \[batch seq\]"),
    ],
)
def test_wrong_inputs_are_named(given, message):
    model = emitted("gpt2_345m").Model()
    with pytest.raises((TypeError, ValueError, AttributeError), match=message):
        model(*given)


def test_tokens_past_the_vocabulary_are_refused():
    with pytest.raises(IndexError, match=r"tokens: \d+ is outside dim vocab, 0 to 95"):
        emitted("gpt2_345m").Model()(tokens() + 10_000, tokens())


def test_autocast_is_refused():
    model = emitted("gpt2_345m").Model()
    with torch.autocast("cpu"), pytest.raises(RuntimeError, match=r"outside torch\.autocast"):
        model(tokens(), tokens())


def test_dropout_follows_the_seed_and_training():
    model = emitted("gpt2_345m").Model()

    def loss(**options) -> float:
        return model(tokens(), tokens(), **options).loss.item()

    assert loss(seed=1) == loss(seed=1) != loss(seed=2)
    torch.manual_seed(0)
    first = loss()
    torch.manual_seed(0)
    assert loss() == first
    model.eval()
    assert loss(seed=1) == loss(seed=2) == loss()


def test_checkpointing_replays_the_same_dropout():
    model = emitted("gpt2_345m").Model()
    layer, x = model.layers[0], torch.randn(2, 16, 32, requires_grad=True)
    seed = torch.tensor(7)
    plain = torch.autograd.grad(layer(x, seed, 0).sum(), x)[0]
    again = torch.utils.checkpoint.checkpoint(layer, x, seed, 0, use_reentrant=False)

    assert torch.equal(torch.autograd.grad(again.sum(), x)[0], plain)


def test_recomputation_changes_no_bit():
    """The same gradients, bit for bit, in whatever mode each layer runs."""
    grads = []
    for memory in (None, planned("gpt2_345m").smallest):
        model = emitted("gpt2_345m", True, memory).Model(generator=1)
        model(tokens(), tokens(), seed=3).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})

    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


DROPPING = {
    "name": "dropping",
    "dims": {"batch": 2, "seq": 64, "width": 8, "heads": 4, "head": 4, "layers": 3, "vocab": 5},
    "blocks": {"attention": {"kind": "attention", "pattern": "causal and (window(5) or strided(8))", "dropout": 0.4}},
    "stack": [{"repeat": "layers", "layer": ["attention"]}],
    "norm": "rms_norm",
}


def test_recomputation_drops_the_same_weights():
    """Attention that drops, kept or computed again: no bit of the gradients changes."""
    x, found = torch.arange(128).view(2, 64) % 5, api.planned(api.open_spec(DROPPING), target="cpu")
    modes, grads = set[str](), list[dict[str, torch.Tensor | None]]()
    for memory in (None, found.peak - 20_000, found.smallest):
        module = api.compile(DROPPING, target="cpu", memory=memory).double()
        module.reset_parameters(1)
        module(x, x, seed=3).loss.backward()
        modes |= {layer["mode"] for layer in module.plan["layers"]}
        grads.append({name: p.grad for name, p in module.named_parameters()})

    assert modes >= {"save", "pointwise", "attention", "block"}
    assert all(torch.equal(grads[0][name], g) for each in grads for name, g in each.items())


def test_second_derivatives_are_refused():
    model = emitted("gpt2_345m").Model()
    grad = torch.autograd.grad(model(tokens(), tokens()).loss, list(model.parameters()), create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated once more"):
        grad[0].sum().backward()


def test_the_module_copies_and_moves():
    model = emitted("sru_pp_enwik8").Model().eval()
    twin = copy.deepcopy(model)
    twin.reset_parameters(9)

    with torch.no_grad():
        a, b = model(tokens(), tokens()).logits, twin(tokens(), tokens()).logits
    assert not torch.equal(a, b)
    assert twin.double()(tokens(), tokens()).logits.dtype == torch.float64


def test_compile_gives_a_module_with_its_plan(tmp_path):
    module = api.compile(spec_path("mistral_7b"), target="cpu", small=True, out=tmp_path / "out", set={"seq": 16})

    assert module.plan["dims"]["seq"] == 16
    again = api.load(tmp_path / "out")
    assert again.state_dict().keys() == module.state_dict().keys()
    with pytest.raises(ValueError, match="over its declared maximum 16"):
        again(tokens(seq=17), tokens(seq=17))


def test_without_training_there_is_no_backward():
    files = package("gpt2_345m", False)

    assert "autograd" not in "".join(text for name, text in files.items() if name.startswith("blocks/"))
    out = emitted("gpt2_345m", False).Model()(tokens())
    assert out._fields == ("logits",)
