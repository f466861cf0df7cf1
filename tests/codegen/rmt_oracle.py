"""A transformer with memory tokens in plain torch (Bulatov et al. 2022; Burtsev et al. 2020): a mask from a table, and
segments whose memory is stopped where a number says; no compiler."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.codegen.xl_oracle import sines

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """Its sizes. each: memory tokens; written: they stand behind the tokens too; sees_all: those that are read see the
    tokens; causal: tokens see no later ones; sinusoid: relative positions of the row, with u and v."""

    width: int
    layers: int
    each: int = 2
    written: bool = True
    sees_all: bool = False
    causal: bool = True
    sinusoid: bool = False


def mask(shape: Shape, n: int) -> Tensor:
    """Who sees whom, [rows rows]: the table of the paper's memory, tokens and memory (1: seen).

    query \\ key   read   tokens             write
    read          1      0 (1: sees_all)    0
    tokens        1      causal, or 1       0
    write         1      1                  1"""
    m, w = shape.each, shape.each if shape.written else 0
    own = torch.ones(n, n).tril() if shape.causal else torch.ones(n, n)
    rows = [
        [torch.ones(m, m), torch.full((m, n), float(shape.sees_all)), torch.zeros(m, w)],
        [torch.ones(n, m), own, torch.zeros(n, w)],
        [torch.ones(w, m), torch.ones(w, n), torch.ones(w, w)],
    ]
    return torch.cat([torch.cat(row, 1) for row in rows]).bool()


def attention(w: Weights, p: str, shape: Shape, x: Tensor, seen: Tensor) -> Tensor:
    q, k, v = (torch.einsum("bnw,whe->bhne", x, w[f"{p}{name}.weight"]) for name in ("query", "key", "value"))
    s = q @ k.mT
    if shape.sinusoid:
        n = x.shape[1]
        gap = torch.arange(n)[:, None] - torch.arange(n)
        table = sines(2 * n - 1, shape.width).flip(0)  # of the distances 0 ..
        signs = torch.cat([torch.full((shape.width // 2,), -1.0), torch.ones(shape.width // 2)]).double()
        r = torch.where(gap[..., None] < 0, signs, 1.0) * table[gap.abs()]  # a sine is odd, a cosine even
        r = torch.einsum("nmw,whe->hnme", r, w[f"{p}position.weight"])
        s = (q + w[f"{p}u"][:, None]) @ k.mT + torch.einsum("bhne,hnme->bhnm", q + w[f"{p}v"][:, None], r)
    weight = (s / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("bhne,hew->bnw", weight @ v, w[f"{p}output.weight"])


def segment(w: Weights, shape: Shape, tokens: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits [b n vocab], and the memory [b m width] that the segment writes."""
    first = w["embed.memory"].expand(len(tokens), -1, -1) if memory is None else memory
    x = torch.cat([first, w["embed.tokens"][tokens], *([first] if shape.written else [])], 1)
    seen, m, n = mask(shape, tokens.shape[1]), shape.each, tokens.shape[1]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (shape.width,), w[f"{name}.weight"], w[f"{name}.bias"])

    for i in range(shape.layers):
        p = f"layers.{i}."
        x = x + attention(w, f"{p}attention.", shape, norm(x, f"{p}attention_norm"), seen)
        y = norm(x, f"{p}feedforward_norm")
        y = torch.relu(y @ w[f"{p}feedforward.up.weight"] + w[f"{p}feedforward.up.bias"])
        x = x + y @ w[f"{p}feedforward.down.weight"] + w[f"{p}feedforward.down.bias"]
    x = norm(x, "norm")
    return x[:, m : m + n] @ w["embed.tokens"].T, x[:, m + n :]


def segments(w: Weights, shape: Shape, parts: Sequence[Tensor], through: int) -> tuple[Tensor, Any]:
    """Logits of segments one after the other: every (through + 1)-th memory is a constant."""
    memory, out = None, list[Tensor]()
    for i, part in enumerate(parts):
        if memory is not None and i % (through + 1) == 0:
            memory = memory.detach()
        logits, left = segment(w, shape, part, memory)
        memory = left if shape.written else None
        out.append(logits)
    return torch.cat(out, 1), memory
