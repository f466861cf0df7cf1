"""Specs that no other package implements, against dense models of our own, their masks written from the papers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.parity.oracle import TOLERANCE, integers, shipped
from weft.ir.program import Program
from weft.ir.reference_model import initial, reference

Weights = dict[str, torch.Tensor]
Mask = torch.Tensor
"""bool [heads, queries, keys]"""


def random_weights(program: Program) -> Weights:
    generator = torch.Generator().manual_seed(3)
    names = initial(program, torch)
    return {n: (torch.randn(v.shape, generator=generator).double() * 0.3).requires_grad_() for n, v in names.items()}


def attention(w: Callable[[str], torch.Tensor], x: torch.Tensor, mask: Mask) -> torch.Tensor:
    q, k, v = (
        torch.einsum("bnd,dhe->bhne", x, w(f"{n}.weight")) + w(f"{n}.bias")[:, None] for n in ("query", "key", "value")
    )
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~mask, -torch.inf)
    out = torch.softmax(scores, -1) @ v
    return torch.einsum("bhne,hed->bnd", out, w("output.weight")) + w("output.bias")


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def sparse_transformer(
    p: Weights, tokens: torch.Tensor, rows: list[torch.Tensor], masks: list[Mask], blocks: list[str]
) -> torch.Tensor:
    """H_0 = emb; H_k = H_{k-1} + a(H) + b(H) with a, b on normalised inputs (Child et al. 2019, equations 8 to 12)."""
    norm = lambda x, name: F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], 1e-5)  # noqa: E731
    h = p["embed.tokens"][tokens] + sum(p[f"embed.positions.{i}"][row] for i, row in enumerate(rows))
    for i, (mask, block) in enumerate(zip(masks, blocks)):
        own = f"layers.{i}"
        a = attention(lambda n, at=f"{own}.{block}": p[f"{at}.{n}"], norm(h, f"{own}.{block}_norm"), mask)
        y = norm(h + a, f"{own}.feedforward_norm")
        y = gelu(y @ p[f"{own}.feedforward.up.weight"] + p[f"{own}.feedforward.up.bias"])
        h = h + a + y @ p[f"{own}.feedforward.down.weight"] + p[f"{own}.feedforward.down.bias"]
    return norm(h, "norm") @ p["head.weight"]


def sets(n: int, stride: int, summary: int = 0) -> dict[str, torch.Tensor]:
    """The paper's attention sets as bool [n, n]: section 4, equations 5 and 6; the local one without its printed +1."""
    i, j = torch.arange(n)[:, None], torch.arange(n)[None]
    seen = j <= i
    return {
        "local": seen & (i - j < stride),
        "strided": seen & ((i - j) % stride == 0),
        "same_line": seen & (i.div(stride, rounding_mode="floor") == j.div(stride, rounding_mode="floor")),
        "summary": seen & (j % stride >= stride - summary),
    }


def enwik8() -> tuple[list[torch.Tensor], list[Mask], list[str]]:
    s, i = sets(64, 8, 2), torch.arange(64)
    merged = (s["same_line"] | s["summary"]).expand(2, 64, 64)
    return [i // 8, i % 8], [merged] * 2, ["attention"] * 2


def imagenet64() -> tuple[list[torch.Tensor], list[Mask], list[str]]:
    s, i = sets(96, 8), torch.arange(96)
    per_head = torch.stack([s["local"], s["strided"]] * 2)
    return [i // 24, i // 3 % 8, i % 3], [per_head] * 2, ["attention"] * 2


def cifar10() -> tuple[list[torch.Tensor], list[Mask], list[str]]:
    s, i = sets(96, 8), torch.arange(96)
    interleaved = [s[n].expand(2, 96, 96) for n in ("local", "strided")]
    return [i // 24, i // 3 % 8, i % 3], interleaved, ["local", "strided"]


def same(
    program: Program,
    p: Weights,
    inputs: dict[str, torch.Tensor],
    logits: torch.Tensor,
    more: torch.Tensor | float = 0.0,
) -> None:
    """Equal logits, loss (cross-entropy and `more`) and gradients."""
    targets = inputs["targets"]
    loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten()) + more
    got = reference(program, torch, p, inputs, dtype=torch.float64)
    pairs: list[tuple[str, Any, Any]] = [("logits", got["logits"], logits), ("loss", got["loss"], loss)]
    values = list(p.values())
    pairs += zip(p, torch.autograd.grad(got["loss"], values), torch.autograd.grad(loss, values))
    size = lambda x: float(x.detach().norm())  # noqa: E731
    floor = 1e-3 * sorted(size(b) for *_, b in pairs)[len(pairs) // 2]
    bad = {n: size(a - b) for n, a, b in pairs if size(a - b) > TOLERANCE * max(size(b), floor)}
    assert not bad


@pytest.mark.parametrize("layout", [enwik8, imagenet64, cifar10], ids=lambda f: f.__name__)
def test_sparse_transformer(layout: Callable[[], Any]) -> None:
    """All three uses of the factors: merged in a head, one set a head, one set a layer."""
    program, (rows, masks, blocks) = shipped(f"sparse_transformer_{layout.__name__}"), layout()
    p, n = random_weights(program), masks[0].shape[-1]
    inputs = {"tokens": integers(1, 256, 2, n), "targets": integers(2, 256, 2, n)}
    same(program, p, inputs, sparse_transformer(p, inputs["tokens"], rows, masks, blocks))


def test_longformer_with_dilation() -> None:
    """As shipped at small dims: three stages of windows, the last one dilated, two global tokens."""
    program = shipped("longformer_base")
    p, n, count = random_weights(program), 48, 2
    inputs = {"tokens": integers(1, 96, 2, n), "targets": integers(2, 96, 2, n)}
    norm = lambda x, name: F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], 1e-5)  # noqa: E731
    dense = lambda x, name: x @ p[f"{name}.weight"] + p[f"{name}.bias"]  # noqa: E731
    i, j = torch.arange(n)[:, None], torch.arange(n)[None]
    bands = [(i - j).abs() <= w for w in (2, 2, 4)] + [((i - j).abs() <= 8) & ((i - j) % 2 == 0)]
    table = p["embed.positions.0"][2 : n + 2] + p["embed.positions.1"]
    h = norm(p["embed.tokens"][inputs["tokens"]] + table, "embed.norm")
    for k, band in enumerate(bands):
        at = f"layers.{k}.attention"
        local = attention(lambda s, at=at: p[f"{at}.{s}"], h, (band | (j < count)).expand(2, n, n))
        own = lambda s, at=at: p[f"{at}.{s}" if "output" in s else f"{at}.{s.replace('.', '_global.')}"]  # noqa: E731
        everywhere = attention(own, h, torch.ones(2, n, n, dtype=torch.bool))
        h = norm(h + torch.where(i < count, everywhere, local), f"{at}_norm")
        y = dense(F.gelu(dense(h, f"layers.{k}.feedforward.up")), f"layers.{k}.feedforward.down")
        h = norm(h + y, f"layers.{k}.feedforward_norm")
    y = norm(F.gelu(dense(h, "head.transform")), "head.transform.norm")
    same(program, p, inputs, y @ p["embed.tokens"].T + p["head.bias"])


def turned(x: torch.Tensor) -> torch.Tensor:
    """Rotary positions on [batch heads seq head]: pairs are half a head apart (Su et al. 2021)."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[-2]).double()[:, None] * 10000.0 ** (-torch.arange(half).double() / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def gated(p: Weights, x: torch.Tensor, at: str, expert: Any = ...) -> torch.Tensor:
    """GEGLU (Shazeer 2020), of one expert or of a block without experts."""
    gate, up, down = (p[f"{at}.{m}.weight"][expert] for m in ("gate", "up", "down"))
    return (F.gelu(x @ gate, approximate="tanh") * (x @ up)) @ down


def routed(p: Weights, y: torch.Tensor, at: str, capacity: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A token at a time: its expert while that has room, else nothing; and the balancing loss (Fedus et al. 2021)."""
    chance = torch.softmax(y @ p[f"{at}.router.weight"], -1)
    choice, count = chance.argmax(-1), chance.shape[-1]
    balance = count * (F.one_hot(choice, count).double().mean(1) * chance.mean(1)).sum(-1)
    rows: list[torch.Tensor] = []
    for b in range(len(y)):
        taken = [0] * count
        for t in range(y.shape[1]):
            e = int(choice[b, t])
            taken[e] += 1
            fits = taken[e] <= capacity
            rows.append(chance[b, t, e] * gated(p, y[b, t], at, e) if fits else torch.zeros_like(y[b, t]))
    assert not all(bool(r.any()) for r in rows), "no token was dropped"
    return torch.stack(rows).reshape(y.shape), balance.mean()


def test_switch_base() -> None:
    """The stack: dense and routed feed-forwards in turn, tokens past an expert's capacity left to the residual."""
    program, n, capacity = shipped("switch_base"), 32, 10
    p = random_weights(program)
    inputs = {"tokens": integers(1, 96, 2, n), "targets": integers(2, 96, 2, n)}
    norm = lambda x, name: x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * p[f"{name}.weight"]  # noqa: E731
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    h, balance = p["embed.tokens"][inputs["tokens"]], torch.zeros(()).double()
    for k, block in enumerate(("dense", "sparse")):
        y, at = norm(h, f"layers.{k}.attention_norm"), f"layers.{k}.attention"
        q, key, v = (torch.einsum("bnd,dhe->bhne", y, p[f"{at}.{m}.weight"]) for m in ("query", "key", "value"))
        scores = (turned(q) @ turned(key).transpose(-1, -2) / 4).masked_fill(~causal, -torch.inf)
        h = h + torch.einsum("bhne,hed->bnd", torch.softmax(scores, -1) @ v, p[f"{at}.output.weight"])
        y, at = norm(h, f"layers.{k}.{block}_norm"), f"layers.{k}.{block}"
        out, balance = routed(p, y, at, capacity) if block == "sparse" else (gated(p, y, at), balance)
        h = h + out
    logits = norm(h, "norm") @ p["embed.tokens"].T / 32**0.5
    same(program, p, inputs, logits, 0.01 * balance)
