"""The recurrent layer of the Block-Recurrent Transformer in plain torch (Hutchins et al. 2022), window by window: zeros
stand before the first window, no token sees itself, gates as published; no compiler."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.codegen.test_score_bias import bucket

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Shape:
    window: int
    gate: str = "fixed"
    cell: str = "skip"
    buckets: int = 32
    most: int = 128


def unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def rms(x: Tensor, w: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w


def attend(
    q: Tensor, k: Tensor, v: Tensor, scale: Tensor, bias: Tensor | float = 0.0, hidden: Tensor | None = None
) -> Tensor:
    """q [b i h e], k and v [b j h e] -> [b i h e]."""
    s = (torch.einsum("bihe,bjhe->bhij", q, k) + bias) * scale.abs()[:, None, None]
    s = s if hidden is None else s.masked_fill(hidden, -torch.inf)
    return torch.einsum("bhij,bjhe->bihe", s.softmax(-1), v)


def gated(w: Weights, p: str, shape: Shape, s: Tensor, y: Tensor, of: Mapping[str, Tensor]) -> Tensor:
    if shape.gate == "fixed":
        g = w[f"{p}.bias"].sigmoid()
        return g * s + (1 - g) * y

    def product(part: str) -> Tensor:
        every = [torch.tensordot(x, w[f"{p}.{part}_{n}.weight"], dims=x.dim() - 2) for n, x in of.items()]
        return torch.stack(every).sum(0) + w[f"{p}.{part}.bias"]

    return s * (product("forget") + 1).sigmoid() + y * (product("enter") - 1).sigmoid()


def layer(
    w: Weights, p: str, shape: Shape, x: Tensor, before: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What is added to the stream for x [b n width]; the last window of x, and the state after it."""
    n = shape.window
    before = x.new_zeros(len(x), 0, x.shape[-1]) if before is None else before
    state = w[f"{p}state.first"].expand(len(x), -1, -1) if state is None else state
    far = n + torch.arange(n)[:, None] - torch.arange(2 * n)
    index = torch.tensor([[bucket(max(d, 0), shape.buckets, shape.most, False) for d in row] for row in far.tolist()])
    bias = w[f"{p}buckets"][index].permute(2, 0, 1)
    hidden = (far < 1) | (far > n)

    def made(x: Tensor, *names: str) -> list[Tensor]:
        every = [torch.einsum("bnw,whe->bnhe", x, w[f"{p}{name}.weight"]) for name in names]
        return [y if name.endswith("value") else unit(y) for name, y in zip(names, every)]

    def scale(name: str) -> Tensor:
        return w[f"{p}state.scale_{name}"]

    q, q2 = made(x, "query", "query_state")
    k, v = (torch.cat([y.new_zeros(len(x), n - before.shape[1], *y.shape[2:]), y], 1)
            for y in made(torch.cat([before, x], 1), "key", "value"))  # fmt: skip
    out = list[Tensor]()
    for at in range(0, x.shape[1], n):
        here, span = slice(at, at + n), slice(at, at + 2 * n)
        names = ("state.key", "state.value", "state.query", "state.query_token")
        ks, vs, qs, qs2 = made(rms(state, w[f"{p}state.norm.weight"]) + w[f"{p}state.place"], *names)
        token = attend(q[:, here], k[:, span], v[:, span], scale("tokens"), bias, hidden)
        cross = attend(q2[:, here], ks, vs, scale("to_states"))
        parts = {"output": token, "output_state": cross}
        every = [torch.einsum("bnhe,hew->bnw", y, w[f"{p}{name}.weight"]) for name, y in parts.items()]
        out.append(every[0] + every[1])
        of = {
            "own": attend(qs, ks, vs, scale("states")),
            "seen": attend(qs2, k[:, span], v[:, span], scale("to_tokens")),
        }
        every = [torch.einsum("bnhe,hew->bnw", z, w[f"{p}state.{name}.weight"]) for name, z in of.items()]
        y = every[0] + every[1]
        if shape.cell != "single":
            state = gated(w, f"{p}state.gate", shape, state, y, of)
            y = state if shape.cell == "skip" else rms(state, w[f"{p}state.last_norm.weight"])
        if shape.cell != "skip":
            h = torch.relu(y @ w[f"{p}state.up.weight"])
            y = h @ w[f"{p}state.down.weight"]
            y = y.tanh() if shape.cell == "single" else y
            state = gated(w, f"{p}state.last_gate", shape, state, y, {"hidden": h})
    return torch.cat(out, 1), torch.cat([before, x], 1)[:, -n:], state
