"""Decoding: step and prefill are the whole sequence at once, windows keep only what they need, what cannot says so."""

import re
from functools import lru_cache

import pytest
import torch
from torch import nn

from tests.codegen.emission import package, spec_path
from weft import api
from weft.codegen.build import module_of, temporary

CAUSAL = [
    "gpt2_345m", "mistral_7b", "sparse_transformer_cifar10", "sparse_transformer_enwik8",
    "sparse_transformer_imagenet64", "sru_pp_enwik8", "switch_base",
]  # fmt: skip


@lru_cache(maxsize=16)
def model(name: str) -> nn.Module:
    module = module_of(temporary(package(name, False))).double()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=draw, dtype=p.dtype))
    return module.eval()


def prompt(name: str) -> torch.Tensor:
    program = api.program(api.open_spec(spec_path(name), small=True), False)
    sizes = program.resolve()
    return torch.randint(0, sizes["vocab"], (2, sizes["seq"]), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("start", [0, 1, 7])
def test_steps_are_the_whole_sequence(name, start):
    module, tokens = model(name), prompt(name)
    whole = module(tokens).logits
    state = module.state(2)
    if start:
        out, state = module.prefill(tokens[:, :start])
        torch.testing.assert_close(out.logits, whole[:, :start], rtol=1e-10, atol=1e-10)
    for t in range(start, tokens.shape[1]):
        out, state = module.step(tokens[:, t], state)
        torch.testing.assert_close(out.logits, whole[:, t], rtol=1e-10, atol=1e-10)
    assert state.length == tokens.shape[1]


def test_a_state_can_be_stepped_twice():
    """States are values: going on from one leaves it as it was."""
    module, tokens = model("mistral_7b"), prompt("mistral_7b")
    _, state = module.prefill(tokens[:, :9])
    first, _ = module.step(tokens[:, 9], state)
    module.step(tokens[:, 3], state)

    again, _ = module.step(tokens[:, 9], state)
    assert torch.equal(first.logits, again.logits)


def test_a_window_keeps_only_what_it_reads():
    module, tokens = model("mistral_7b"), prompt("mistral_7b")
    _, state = module.prefill(tokens)

    assert {x.shape[1] for block in state.blocks for x in block.rows} == {7}  # window 8, the newest apart


def test_a_cell_s_state_is_its_carry_and_its_keys():
    _, state = model("sru_pp_enwik8").prefill(prompt("sru_pp_enwik8")[:, :5])

    rows, carried, *_ = state.blocks[1]
    assert [tuple(x.shape) for x in rows] == [(2, 5, 8)]  # keys and values are products of the queries
    assert [tuple(x.shape) for x in carried] == [(2, 16)]


def test_past_the_maximum_is_refused():
    module, tokens = model("gpt2_345m"), prompt("gpt2_345m")
    _, state = module.prefill(tokens)
    for call in (lambda: module.step(tokens[:, 0], state), lambda: module.prefill(tokens[:, :3], [1, 0], state)):
        with pytest.raises(ValueError, match="dim seq would be 33, over its declared maximum 32"):
            call()


@pytest.mark.parametrize("name", ["bert_base", "bigbird_base", "longformer_base"])
def test_what_sees_later_positions_says_where(name):
    module = module_of(temporary(package(name, False)))
    for call in (module.step, module.prefill, module.state):
        with pytest.raises(
            NotImplementedError, match=rf"cannot decode: \w+ = attend at {name}.yaml:\d+ sees later positions"
        ):
            call(torch.zeros(2, dtype=torch.int64))
    why = api.check(spec_path(name), small=True)["decode"]["why"]
    assert re.fullmatch(rf"\w+ = attend at {name}.yaml:\d+ sees later positions", why)
    assert module.plan["decode"] == {"possible": False, "why": why}


def test_steps_make_no_graph():
    module, tokens = model("gpt2_345m"), prompt("gpt2_345m")
    out, state = module.prefill(tokens[:, :4])

    assert not out.logits.requires_grad
    assert not any(x.requires_grad for block in state.blocks for x in (*block.rows, *block.carried))
