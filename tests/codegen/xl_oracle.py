"""Transformer-XL (Dai et al. 2019) in plain torch, from the paper's equations and its relative shift; no compiler."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """Its sizes. back: how far a token sees, None: all before it. keep: rows of memory; biases: of u and v those there
    are; shared: the same in every layer; pre: norms come before their blocks."""

    width: int
    heads: int
    layers: int
    back: int | None = None
    keep: int = 0
    biases: str = "uv"
    shared: bool = False
    pre: bool = False


def shift(x: Tensor) -> Tensor:
    """The paper's relative shift (appendix B): x [b h i j] over queries and keys' rows of r -> over keys."""
    b, h, i, j = x.shape
    x = torch.cat([x.new_zeros(b, h, i, 1), x], -1)
    return x.view(b, h, j + 1, i)[:, :, 1:].reshape(b, h, i, j)


def sines(length: int, width: int) -> Tensor:
    """R of the distances length - 1 .. 0: sines, then cosines."""
    at = torch.arange(length - 1, -1, -1, dtype=torch.float64)
    angle = at[:, None] / 10000 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.cat([angle.sin(), angle.cos()], -1)


def bias(w: Weights, layer: int, name: str, shape: Shape) -> Tensor | float:
    if name not in shape.biases:
        return 0.0
    return w[f"attention.{name}" if shape.shared else f"layers.{layer}.attention.{name}"]


def attention(w: Weights, layer: int, shape: Shape, rows: Tensor, n: int, hidden: Tensor, cut: Tensor | None) -> Tensor:
    """The last n of rows [b m width] attend to all of them. hidden [n m]: pairs that are not seen; cut [n m]: pairs
    whose key and value are constants."""
    p = f"layers.{layer}.attention."
    q = torch.einsum("bnw,whe->bhne", rows[:, -n:], w[f"{p}query.weight"])

    def score(rows: Tensor) -> Tensor:
        return (q + _by_head(bias(w, layer, "u", shape))) @ torch.einsum("bmw,whe->bhem", rows, w[f"{p}key.weight"])

    r = torch.einsum("mw,whe->hem", sines(rows.shape[1], shape.width), w[f"{p}position.weight"])
    s = score(rows) if cut is None else torch.where(cut, score(rows.detach()), score(rows))
    s = (s + shift((q + _by_head(bias(w, layer, "v", shape))) @ r)) / q.shape[-1] ** 0.5
    weight = s.masked_fill(hidden, -torch.inf).softmax(-1)
    v, constant = (torch.einsum("bmw,whe->bhme", x, w[f"{p}value.weight"]) for x in (rows, rows.detach()))
    seen = weight @ v if cut is None else (weight * ~cut) @ v + (weight * cut) @ constant
    return torch.einsum("bhne,hew->bnw", seen, w[f"{p}output.weight"])


def _by_head(x: Tensor | float) -> Tensor | float:
    return x[:, None] if isinstance(x, Tensor) else x


def run(
    w: Weights, shape: Shape, tokens: Tensor, past: Sequence[Tensor] | None, hidden: Tensor, cut: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Logits [b n vocab] of a segment, and the memory after it, a [b rows width] of every layer."""
    x, left = w["embed.tokens"][tokens], list[Tensor]()

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (shape.width,), w[f"{name}.weight"], w[f"{name}.bias"])

    for i in range(shape.layers):
        p = f"layers.{i}."
        y = norm(x, f"{p}attention_norm") if shape.pre else x
        rows = y if past is None else torch.cat([past[i], y], 1)
        left.append(rows[:, rows.shape[1] - min(shape.keep, rows.shape[1]) :].detach())
        x = x + attention(w, i, shape, rows, tokens.shape[1], hidden, cut)
        x = x if shape.pre else norm(x, f"{p}attention_norm")
        y = norm(x, f"{p}feedforward_norm") if shape.pre else x
        y = torch.relu(y @ w[f"{p}feedforward.up.weight"] + w[f"{p}feedforward.up.bias"])
        x = x + y @ w[f"{p}feedforward.down.weight"] + w[f"{p}feedforward.down.bias"]
        x = x if shape.pre else norm(x, f"{p}feedforward_norm")
    return x @ w["embed.tokens"].T, left


def segment(w: Weights, shape: Shape, tokens: Tensor, past: Sequence[Tensor] | None = None):
    """A segment behind its memory: a token sees itself and what is before it, `back` positions at most."""
    n, m = tokens.shape[1], 0 if past is None else past[0].shape[1]
    gap = torch.arange(n)[:, None] + m - torch.arange(m + n)
    return run(w, shape, tokens, past, (gap < 0) | (gap > (m + n if shape.back is None else shape.back)))


def whole(w: Weights, shape: Shape, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
    """Logits of segments of these lengths as one: a key of another segment is a constant, and at most `keep` rows
    before one's own are seen."""
    start = torch.cat([torch.full((n,), sum(lengths[:i])) for i, n in enumerate(lengths)])
    i, j = torch.arange(len(start))[:, None], torch.arange(len(start))
    hidden = (j > i) | (j < start[:, None] - shape.keep) | (i - j > (len(start) if shape.back is None else shape.back))
    return run(w, shape, tokens, None, hidden, j < start[:, None])[0]
