"""Scores with a number for each distance: T5's buckets and ALiBi's slopes, against torch written plainly; decoding."""

import math
from typing import Any

import pytest
import torch

import weft
from tests.campaign import SOAK
from weft.errors import SpecError
from weft.frontends.blocks.relative import bounds
from weft.frontends.load import load_mapping

HEADS = 6
DIMS = {"batch": 2, "seq": 24, "width": 12, "heads": HEADS, "head": 4, "layers": 2, "vocab": 7}


def compiled(pattern: str, relative: dict[str, Any]) -> Any:
    """Layers of nothing but an attention, without norms."""
    torch.manual_seed(0)
    attention = {"kind": "attention", "pattern": pattern, "relative": relative, "bias": False, "scale": 1}
    return weft.compile({
        "name": "biased", "dims": DIMS,
        "blocks": {"attention": attention},
        "sublayer": {"norm": "none", "residual": "none"}, "norm": "none",
        "stack": [{"repeat": "layers", "layer": ["attention"]}],
        "init": {"weight": {"normal": 0.4}},
    }).double()  # fmt: skip


def bucket(d: int, many: int, most: int, both: bool) -> int:
    """Raffel et al. 2020, as their code has it, of q - k = d."""
    many, later = (many // 2, many // 2 * (d < 0)) if both else (many, 0)
    n, exact = abs(d) if both else max(d, 0), many // 2
    if n < exact:
        return later + n
    far = exact + int(math.log(n / exact) / math.log(most / exact) * (many - exact) + 1e-9)
    return later + min(far, many - 1)


def slopes(n: int) -> list[float]:
    """Press et al. 2021, as their code has it."""
    if math.log2(n).is_integer():
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]
    near = 2 ** math.floor(math.log2(n))
    return slopes(near) + slopes(2 * near)[0::2][: n - near]


def biases(relative: dict[str, Any], weights: dict[str, torch.Tensor], layer: int, n: int, both: bool) -> torch.Tensor:
    """What is added to the scores of a layer: [heads query key]."""
    kind, at = relative["kind"], "" if relative.get("shared") else f"layers.{layer}."
    if kind == "slopes":
        own = torch.tensor(slopes(HEADS), dtype=torch.float64)
        own = own * weights[f"{at}attention.slopes"] if relative.get("learned") else own
        return -own[:, None, None] * (torch.arange(n)[:, None] - torch.arange(n)).abs()
    many, most = relative.get("buckets", 32), relative.get("max_distance", 128)
    index = torch.tensor([[bucket(q - k, many, most, both) for k in range(n)] for q in range(n)])
    return weights[f"{at}attention.buckets"][index].permute(2, 0, 1)


def by_hand(
    weights: dict[str, torch.Tensor], tokens: torch.Tensor, relative: dict[str, Any], pattern: str
) -> torch.Tensor:
    x, n = weights["embed.tokens"][tokens], tokens.shape[1]
    seen = torch.ones(n, n, dtype=torch.bool)
    seen = seen if pattern == "all" else seen.tril() & seen.triu(-4) if "window" in pattern else seen.tril()
    for layer in range(2):
        w = {k: weights[f"layers.{layer}.attention.{k}.weight"] for k in ("query", "key", "value", "output")}
        q, k, v = (torch.einsum("btw,whe->bhte", x, w[name]) for name in ("query", "key", "value"))
        s = q @ k.mT + biases(relative, weights, layer, n, pattern == "all")
        out = s.masked_fill(~seen, -torch.inf).softmax(-1) @ v
        x = torch.einsum("bhte,hew->btw", out, w["output"])
    return x @ weights["head.weight"]


RELATIVE: list[dict[str, Any]] = [
    {"kind": "buckets"},
    {"kind": "slopes"},
    {"kind": "slopes", "learned": True},
    {"kind": "buckets", "buckets": 8, "max_distance": 11, "shared": True},
]
CASES = [(pattern, relative) for relative in RELATIVE for pattern in ("all", "causal", "window(5)")]


@pytest.mark.parametrize(("pattern", "relative"), CASES if SOAK else CASES[::4], ids=str)
def test_a_number_for_each_distance(pattern: str, relative: dict[str, Any]):
    """Logits, every gradient, and steps."""
    module = compiled(pattern, relative)
    weights = dict(module.named_parameters())
    for name, w in weights.items():
        if name.endswith(".slopes"):
            w.data.uniform_(0.5, 1.5)
    tokens = torch.randint(0, 7, (2, 24), generator=torch.Generator().manual_seed(1))
    got, want = module(tokens).logits, by_hand(weights, tokens, relative, pattern)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    seed = torch.randn(want.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    grads = [torch.autograd.grad((y * seed).sum(), [*weights.values()]) for y in (got, want)]
    for name, a, b in zip(weights, *grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")
    if pattern == "all":
        return
    out, state = module.prefill(tokens[:, :20])
    for t in range(20, 24):
        torch.testing.assert_close(out.logits[:, -1] if t == 20 else out.logits, got[:, t - 1], rtol=1e-9, atol=1e-9)
        out, state = module.step(tokens[:, t], state)


def test_where_buckets_begin():
    """Without rounding, as transformers has it with: 32 buckets to 128, of one way and of both."""
    assert bounds(16, 128) == [12, 16, 23, 32, 46, 64, 91]
    assert bounds(32, 128)[:3] + bounds(32, 128)[-1:] == [19, 21, 24, 113]
    assert bounds(2, 2) == []


@pytest.mark.parametrize(
    ("relative", "pattern", "words"),
    [
        ({"kind": "buckets", "buckets": 6, "max_distance": 2}, "causal", "6 buckets do not hold the distances up to 2"),
        ({"kind": "buckets", "buckets": 9}, "all", "9 buckets for both ways do not hold"),
    ],
)
def test_buckets_that_hold_nothing(relative: dict[str, Any], pattern: str, words: str):
    with pytest.raises(SpecError, match=words):
        compiled(pattern, relative)


def test_keys_of_another_kind():
    block = {"kind": "attention", "pattern": "causal", "relative": {"kind": "slopes", "buckets": 8}}
    with pytest.raises(SpecError, match="`buckets` goes with buckets, not with slopes"):
        load_mapping({"name": "a", "dims": {}, "blocks": {"attention": block}, "stack": [{"layer": ["attention"]}]})
