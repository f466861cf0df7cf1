"""Rows of several documents, and padded ones: each document gives what it gives alone, whatever mixes its tokens."""

from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import weft
from tests.campaign import SOAK

CELL = {"kind": "recurrence", "inputs": ["u", "g"], "state": {"h": 0.5, "n": 0.0}}
CELL |= {"update": {"h": "sigmoid(g)*h + u", "n": "n + 1"}, "output": "next(h) + h/(1 + n)"}
BLOCKS = {
    "rotary": {"kind": "attention", "pattern": "causal", "rotary": True},
    "window": {"kind": "attention", "pattern": "window(3)", "kv_heads": 1, "score": "s*(1 + h) - (q - k)/8"},
    "relative": {"kind": "attention", "pattern": "causal", "relative": {}},
    "both ways": {"kind": "attention", "pattern": "all"},
    "cell": CELL,
    "attending cell": {**CELL, "projection": {"rank": 4, "alpha": 1.0}},
    "convolution": {"kind": "convolution", "layers": [{"taps": 3, "channels": 6, "gated": True}, {"taps": 2}]},
    "gated linear": {
        "kind": "tensor_recurrence",
        "state": {"s": ["heads", "head", "inner"]},
        "chunk": 4,
        "inputs": {"q": ["heads", "head"], "k": ["heads", "head"], "v": ["heads", "inner"], "g": ["heads"]},
        "update": {"s": "sigmoid(g)*s + k*v"},
        "output": "sum(head, q*next(s))",
    },
    "experts": {"kind": "moe", "capacity": "none", "top_k": 2, "aux_loss": 0.5},
    "sigmoid experts": {"kind": "moe", "capacity": "none", "top_k": 2, "router": "sigmoid", "choice_bias": True},
}
MIXTURES = {"mixture": ("rotary", "convolution", "attending cell", "gated linear", "sigmoid experts")} | {
    n: (n,) for n in BLOCKS if SOAK
}
DIMS = {"batch": 3, "seq": 12, "width": 8, "heads": 2, "head": 4, "inner": 6, "experts": 4, "layers": 2, "vocab": 13}
SEGMENTS = torch.tensor([[5, 5, 5, 2, 7, 7, 7, 7, 2, 2, 2, 2], [1] * 12, [0, 1, 0, 1, 1, 1, 2, 2, 2, 2, 2, 3]])
VALID = torch.tensor([[0] * 3 + [1] * 9, [1] * 7 + [0] * 5, [0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 0]]).bool()
AROUND = VALID | torch.arange(12).gt(0).logical_and(torch.arange(12).lt(11)) & torch.tensor([[0], [0], [1]]).bool()
"""The same without padding between tokens of one row, along which a window and a convolution count."""


@cache
def made(name: str, documents: bool, padding: bool) -> nn.Module:
    spec = {"weft": 1, "name": "rows", "dims": DIMS, "rows": {"documents": documents, "padding": padding}}
    spec |= {"embed": {"positions": [{"learned": "seq"}]}, "norm": "layer_norm"}
    spec |= {"stack": [{"repeat": "layers", "layer": [{"block": BLOCKS[n]} for n in MIXTURES[name]]}]}
    module = weft.compile(spec).double()
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.4 * torch.randn(p.shape, generator=draw, dtype=p.dtype))
    return module


def inputs(documents: bool, padding: bool) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    found = {"tokens": torch.randint(0, 13, (3, 12), generator=draw)}
    found |= {"segments": SEGMENTS} if documents else {}
    found |= {"valid": VALID if documents else AROUND} if padding else {}
    return found | {"targets": torch.randint(0, 13, (3, 12), generator=draw).index_fill(1, torch.tensor([6]), -100)}


def parts(given: dict[str, Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Row and tokens of every document, without its padding."""
    for row in range(3):
        numbers = given["segments"][row].tolist() if "segments" in given else [0] * 12
        cuts = [0, *(i for i in range(1, 12) if numbers[i] != numbers[i - 1]), 12]
        for start, stop in pairwise(cuts):
            own = [i for i in range(start, stop) if "valid" not in given or given["valid"][row, i]]
            if own:
                yield row, torch.tensor(own)


CASES = [(n, *kind) for n in MIXTURES for kind in ((True, False), (False, True), (True, True))]
CASES = CASES if SOAK else CASES[-1:]


@pytest.mark.parametrize(("name", "documents", "padding"), CASES)
def test_a_document_is_what_it_is_alone(name, documents, padding):
    """Logits, gradients and losses; the load-balancing loss is the mean of the documents' own."""
    module, given = made(name, documents, padding), inputs(documents, padding)
    parameters = list(module.parameters())
    weights = torch.randn(3, 12, 13, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    out = module(**given)
    logits, objective, balance, total, count = torch.zeros_like(out.logits), 0, [], 0, 0
    for row, own in parts(given):
        alone = module(**{k: x[row : row + 1, own] for k, x in given.items()})
        logits[row, own] = alone.logits[0]
        objective = objective + (alone.logits[0] * weights[row, own]).sum()
        counts = int((given["targets"][row, own] != -100).sum())
        aux = getattr(alone, "aux_loss", torch.zeros(()))
        balance.append(aux)
        total, count = total + nn.functional.cross_entropy(
            alone.logits[0], given["targets"][row, own], reduction="sum"
        ), count + counts  # fmt: skip
    there = given.get("valid", torch.ones_like(VALID))
    got = torch.autograd.grad((out.logits * weights)[there].sum(), parameters, retain_graph=True, allow_unused=True)
    want = torch.autograd.grad(objective, parameters, retain_graph=True, allow_unused=True)
    assert torch.allclose(out.logits[there], logits[there], rtol=0, atol=1e-10)
    assert all(a is b or torch.allclose(a, b, rtol=0, atol=1e-10) for a, b in zip(got, want))
    aux = getattr(out, "aux_loss", torch.zeros(()))
    weight = 0.5 if name == "experts" else 0.01
    assert torch.allclose(out.loss, total / count + weight * aux, rtol=0, atol=1e-10)
    if documents:
        assert torch.allclose(aux, torch.stack(balance).mean(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_document_changes_nothing_in_another(name):
    """Another token in one document, or in padding, leaves the others as they were, bit for bit."""
    module, given = made(name, True, True), inputs(True, True)
    before = module(**given).logits.detach()
    owner = torch.full((3, 12), -1)
    for number, (row, own) in enumerate(parts(given)):
        owner[row, own] = number
    for row, at in ((0, 1), (0, 4), (0, 11), (1, 9), (2, 1), (2, 6)):
        tokens = given["tokens"].clone()
        tokens[row, at] = (tokens[row, at] + 3) % 13
        after = module(**{**given, "tokens": tokens}).logits
        changed = (after != before).any(-1) & VALID
        mine = owner == owner[row, at] if owner[row, at] >= 0 else torch.zeros_like(VALID)
        assert not bool((changed & ~mine).any())
        assert bool(changed[row, at]) == bool(VALID[row, at])


@torch.no_grad()
def test_a_prompt_of_documents_goes_on():
    """A packed prompt, then single tokens: of the last document and of the next ones."""
    module, given = made("mixture", True, True).eval(), {k: x for k, x in inputs(True, True).items() if k != "targets"}
    whole = module(**given).logits
    out, state = module.prefill(**{k: x[:, :6] for k, x in given.items()}, lengths=[6, 3, 5])
    rest = torch.tensor([6, 3, 5])[:, None] + torch.arange(6)
    late, state = module.prefill(**{k: x.gather(1, rest) for k, x in given.items()}, state=state)
    for row, first in enumerate((6, 3, 5)):
        found = torch.cat([out.logits[row, :first], late.logits[row]])
        assert torch.allclose(found, whole[row, : first + 6], rtol=0, atol=1e-10)
