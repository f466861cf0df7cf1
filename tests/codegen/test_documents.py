"""Several documents packed in one row: each gives what it gives alone, and nothing of one reaches another."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from tests.codegen.attention_model import Case
from tests.kernels.dual import interpreting

LENGTHS = (3, 1, 4)
TOKENS = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1, 0]])  # no token in two documents of a row
SEGMENTS = torch.tensor([[5, 5, 5, -2, 7, 7, 7, 7]]).repeat(2, 1)
# Patterns in q - k alone, so a document means the same wherever it stands; and one that counts from the row's start.
RELATIVE = {
    "causal": {"pattern": "causal and same_segment", "rotary": True},
    "window": {"pattern": "window(3) and same_segment", "kv_heads": 1, "score": "s*(1 + h) - (q - k)/8"},
    "strided": {"pattern": "heads(causal, causal and strided(2)) and same_segment", "rotary": {"interleaved": True}},
    "both ways": {"pattern": "band(2, 1) and same_segment"},
}
COUNTED = {"blocks": {"pattern": "blocks(3, [[0], [0, 1], all]) and same_segment"}}
CASES = {name: Case(block, lambda *_: 1) for name, block in (RELATIVE | COUNTED).items()}


def run(module: nn.Module, tokens: Tensor, segments: Tensor) -> Tensor:
    return module(tokens=tokens, segments=segments, targets=tokens).logits


def gradients(module: nn.Module, logits: Tensor, weights: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad((logits * weights).sum(), list(module.parameters()), materialize_grads=True))


def parts(x: Tensor) -> list[Tensor]:
    return list(x.split(LENGTHS, 1))


@pytest.mark.parametrize(("name", "kernels"), [*((name, False) for name in RELATIVE), ("window", True)])
def test_a_document_is_what_it_is_alone(name, kernels):
    module = CASES[name].module
    weights = torch.randn(2, 8, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alone = [run(module, t, torch.zeros_like(t)) for t in parts(TOKENS)]
    want = [sum(g) for g in zip(*(gradients(module, y, w) for y, w in zip(alone, parts(weights))))]
    with interpreting() if kernels else nullcontext():
        packed = run(module, TOKENS, SEGMENTS)
        got = gradients(module, packed, weights)
    assert torch.allclose(packed, torch.cat(alone, 1), rtol=0, atol=1e-10)
    assert max(float((a - b).abs().max()) for a, b in zip(got, want)) <= 1e-10


def changed(run_: Callable[[Tensor], Tensor], name: str) -> None:
    """Another second document, or third, leaves the others as they were, bit for bit."""
    before = run_(TOKENS)
    for at, (first, n) in enumerate(((0, 3), (3, 1), (4, 4))):
        tokens = TOKENS.clone()
        tokens[:, first : first + n] = (tokens[:, first : first + n] + 3) % 11
        after = run_(tokens)
        same = [torch.equal(a, b) for a, b in zip(parts(before), parts(after))]
        assert same == [i != at for i in range(3)], name


@pytest.mark.parametrize("name", CASES)
def test_a_document_changes_nothing_in_another(name):
    module = CASES[name].module
    changed(lambda t: run(module, t, SEGMENTS).detach(), name)
    if name in ("causal", "blocks"):
        with interpreting():
            changed(lambda t: run(module, t, SEGMENTS).detach(), name)


@pytest.mark.parametrize("name", CASES)
def test_no_gradient_crosses_documents(name):
    """The logits of one document have no slope in the embeddings of another's tokens."""
    module = CASES[name].module
    table = dict(module.named_parameters())["embed.tokens"]
    for at in range(3):
        out = parts(run(module, TOKENS[:1], SEGMENTS[:1]))[at]
        (slope,) = torch.autograd.grad(out.square().sum(), [table])
        own = set(parts(TOKENS[:1])[at].flatten().tolist())
        assert {i for i in range(11) if slope[i].any()} == own
