"""Attention as a spec can ask for it, and its truth in plain torch: the n x n matrix, written without the compiler."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import weft

SEQ, WIDTH, HEADS, HEAD, VOCAB = 8, 8, 2, 4, 11
Formula = Callable[..., Any]

# text in a spec -> the same in torch, of s, q, k, h (and of a length of SEQ, whatever the run)
EVERYWHERE: dict[str | int, Formula] = {
    "s": lambda s, q, k, h: s,
    "0": lambda s, q, k, h: 0 * s,
    1: lambda s, q, k, h: 0 * s + 1,
    "2*s": lambda s, q, k, h: 2 * s,
    "s + 1": lambda s, q, k, h: s + 1,
    "k % 3": lambda s, q, k, h: 0 * s + k % 3,
    "cos(k)": lambda s, q, k, h: 0 * s + k.cos(),
    "sin(h - 1)": lambda s, q, k, h: 0 * s + (h - 1).sin(),
    "s - 0.1*(q - k)": lambda s, q, k, h: s - 0.1 * (q - k),
    "30*tanh(s/30)": lambda s, q, k, h: 30 * (s / 30).tanh(),
    "s - abs(q - k)/seq": lambda s, q, k, h: s - (q - k).abs() / SEQ,
    "s - (h + 1)*(q - k)/heads": lambda s, q, k, h: s - (h + 1) * (q - k) / HEADS,
    "where(q - k > 2, s - 1, s*s)": lambda s, q, k, h: torch.where(q - k > 2, s - 1, s * s),
    "where(q - k > 2, -inf, s)": lambda s, q, k, h: torch.where(q - k > 2, -torch.inf, s),
    "where(s > 0, 1, 0)": lambda s, q, k, h: (s > 0).double(),
    "max(s, -1)": lambda s, q, k, h: s.clamp(min=-1),
    "s*log(1 + seq - q)": lambda s, q, k, h: s * (1 + SEQ - q).log(),  # nan where a row, or a key, does not exist
    "s*sqrt(seq - 1 - k) + log(seq - k)": lambda s, q, k, h: s * (SEQ - 1 - k).sqrt() + (SEQ - k).log(),
    "s*cos(q - k) + h": lambda s, q, k, h: s * (q - k).cos() + h,
}
CAUSAL: dict[str | int, Formula] = {  # of a key after the query: nan, or infinite, or with such a slope
    "s*(1 + h) - log(1 + q - k)": lambda s, q, k, h: s * (1 + h) - seen(1 + q - k, k <= q).log(),
    "s - sqrt(q - k)": lambda s, q, k, h: s - seen(q - k, k <= q).sqrt(),
    "s*log(2 + q - k)": lambda s, q, k, h: s * seen(2 + q - k, k <= q).log(),
    "s/(k - q - 1)": lambda s, q, k, h: s / seen(k - q - 1, k <= q),
    "s*exp(1000*(k - q))": lambda s, q, k, h: s * seen(1000 * (k - q), k <= q).exp(),
    "tanh(s)/sqrt(1 + q - k) + 1/(k - q - 1)": lambda s, q, k, h: (
        s.tanh() / seen(1 + q - k, k <= q).sqrt() + 1 / seen(k - q - 1, k <= q)
    ),
}
SCALES: dict[str | float, float] = {
    "1/sqrt(head)": HEAD**-0.5,
    0.3: 0.3,
    "4/seq": 4 / SEQ,
    "-1/8": -1 / 8,
    0: 0.0,
    "sqrt(head)/heads": HEAD**0.5 / HEADS,
    -0.7: -0.7,
    "head - head": 0.0,
    "batch/8": 2 / 8,
}
PATTERNS: dict[str, Formula] = {
    "causal": lambda q, k, h: k <= q,
    "window(3)": lambda q, k, h: (k <= q) & (q - k < 3),
    "causal and strided(3)": lambda q, k, h: (k <= q) & ((q - k) % 3 == 0),
    "causal and fixed(3, 1)": lambda q, k, h: (k <= q) & ((q // 3 == k // 3) | (k % 3 == 2)),
    "window(seq // 2)": lambda q, k, h: (k <= q) & (q - k < SEQ // 2),
    "strict_causal": lambda q, k, h: k < q,
    "heads(causal, window(2))": lambda q, k, h: (k <= q) & ((h % 2 == 0) | (q - k < 2)),
    "causal and (window(2) or cols(2))": lambda q, k, h: (k <= q) & ((q - k < 2) | (k < 2)),
    "window(99)": lambda q, k, h: k <= q,
}
BOTH_WAYS: dict[str, Formula] = {
    "all": lambda q, k, h: (q == q) & (k == k),
    "band(2, 1)": lambda q, k, h: (k - q >= -2) & (k - q <= 1),
    "q + k < seq": lambda q, k, h: q + k < SEQ,
    "false": lambda q, k, h: (q != q) & (k != k),
    "not window(2)": lambda q, k, h: (k > q) | (q - k >= 2),
    "strided(3)": lambda q, k, h: (q - k) % 3 == 0,
    "longformer(1, 1, 2)": lambda q, k, h: ((q - k).abs() <= 1) | (q < 2) | (k < 2),
}
GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "silu": torch.nn.functional.silu,
    "none": lambda x: x,
    "2*sigmoid(x) - x/width": lambda x: 2 * torch.sigmoid(x) - x / WIDTH,
}
WEIGHTS: dict[str, Formula] = {
    "relu2": lambda s, q, k, h: s.relu() ** 2,
    "relu2(s)/seq": lambda s, q, k, h: s.relu() ** 2 / SEQ,
    "laplace": lambda s, q, k, h: (1 + torch.erf((s - 0.5**0.5) * (2 * torch.pi) ** 0.5)) / 2,
    "s": lambda s, q, k, h: s,
    "sigmoid(s - log(1 + q))": lambda s, q, k, h: (s - (1 + q).log()).sigmoid(),
    "s*h/(1 + q - k)": lambda s, q, k, h: s * h / seen(1 + q - k, k <= q),
}
"""Of the score; the last one is for a pattern that sees no later key."""
ROTARY: tuple[Any, ...] = (False, True, {"interleaved": True}, {"base": 100.0})


EVERY = torch.ones(1, 1, dtype=torch.bool)


def seen(x: Tensor, there: Tensor) -> Tensor:
    """x where a key is seen, and a harmless 1 elsewhere."""
    return torch.where(there, x, 1.0)


@dataclass(frozen=True)
class Options:
    """One attention block of a spec."""

    pattern: str = "causal"
    score: str | int = "s"
    scale: str | float = "1/sqrt(head)"
    rotary: Any = False
    globals: int = 0
    kv_heads: int = HEADS
    beside: str = ""  # conditions on metadata
    gate: str = ""
    weights: str = "softmax"

    def block(self) -> dict[str, Any]:
        found: dict[str, Any] = {"kind": "attention", "score": self.score, "scale": self.scale}
        found["pattern"] = f"{self.beside} and ({self.pattern})" if self.beside else self.pattern
        found |= {"rotary": self.rotary} if self.rotary else {}
        found |= {"globals": {"tokens": self.globals}} if self.globals else {}
        found |= {"weights": self.weights} if self.weights != "softmax" else {}
        found |= {"gate": self.gate} if self.gate else {}
        return found | ({"kv_heads": self.kv_heads} if self.kv_heads != HEADS else {})

    def mask(self, q: Tensor, k: Tensor, h: Tensor) -> Tensor:
        visible = (PATTERNS | BOTH_WAYS)[self.pattern](q, k, h)
        return (visible | (k < self.globals)) & (q >= self.globals)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor, at: tuple[Tensor, ...]) -> Tensor:
        """q [B, N, H, D], k and v [B, M, Hkv, D] -> [B, N, H, D]; visible [.., H, N, M]; at: indices q, k, h."""
        q, k = turned(q, self.rotary), turned(k, self.rotary)
        k, v = (x.repeat_interleave(HEADS // self.kv_heads, 2) for x in (k, v))
        s = torch.einsum("bnhd,bmhd->bhnm", q, k) * SCALES[self.scale]
        at = tuple(i.double() for i in at)
        s = (EVERYWHERE | CAUSAL)[self.score](s, *at)
        if self.weights == "softmax":
            p = torch.where(visible.any(-1, keepdim=True), s.masked_fill(~visible, -torch.inf), 0.0).softmax(-1)
        else:
            p = WEIGHTS[self.weights](torch.where(visible, s, 0.0), *at)
        p = torch.where(visible, p, 0.0)
        return torch.einsum("bhnm,bmhd->bnhd", p, v)

    def truth(self, x: Tensor, w: dict[str, Tensor], allowed: Tensor) -> Tensor:
        """The block on x [B, N, width]; w: its parameters; allowed: what `beside` lets through, as visible."""
        n = x.shape[1]
        q, k, h = torch.arange(n)[:, None], torch.arange(n)[None], torch.arange(HEADS)[:, None, None]

        def project(name: str, suffix: str = "") -> Tensor:
            y = torch.einsum("bnw,w...->bn...", x, w[f"{name}{suffix}.weight"]) + w[f"{name}{suffix}.bias"]
            return y.flatten(2, -2)  # key heads and the query heads that share them are one axis

        visible = self.mask(q, k, h) & allowed
        out = self.attend(project("query"), project("key"), project("value"), visible, (q, k, h))
        if self.globals:
            every = (q < self.globals) & allowed
            own = [project(name, "_global") for name in ("query", "key", "value")]
            out = out + self.attend(own[0], own[1], own[2], every, (q, k, h))
        out = out * GATES[self.gate](project("gate")) if self.gate else out
        return torch.einsum("bnhd,hdw->bnw", out, w["output.weight"].flatten(0, -3)) + w["output.bias"]


def turned(x: Tensor, rotary: Any) -> Tensor:
    """Rotary positions (Su et al. 2021) on x [B, N, H, D], by complex numbers."""
    if not rotary:
        return x
    rule = rotary if isinstance(rotary, dict) else {}
    half = x.shape[-1] // 2
    position, pair = torch.arange(x.shape[1])[:, None, None], torch.arange(half).double()
    turn = (1j * position * rule.get("base", 10000.0) ** (-pair / half)).exp()
    if rule.get("interleaved"):
        y = torch.view_as_complex(x.unflatten(-1, (half, 2)).contiguous())
        return torch.view_as_real(y * turn).flatten(-2)
    y = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat([y.real, y.imag], -1)


@dataclass
class Stack:
    """A model of some attention blocks, one after the other, and its truth."""

    blocks: list[Options]
    runtime: dict[str, Any] = field(default_factory=dict)
    seq: int = SEQ

    def model(self) -> weft.Model:
        dims = {"batch": 2, "seq": self.seq, "width": WIDTH, "heads": HEADS, "head": HEAD, "vocab": VOCAB}
        steps = [{"block": block.block(), "norm": "none"} for block in self.blocks]
        stages = [{"layer": [step], "name": f"a{i}"} for i, step in enumerate(steps)]  # a package's blocks stay small
        init = {"weight": {"normal": 0.6}, "bias": {"normal": 0.3}, "embedding": {"normal": 1.0}}
        return weft.Model(name="options", dims=dims, stack=stages, init=init, runtime=self.runtime)  # type: ignore[arg-type]

    def truth(self, w: dict[str, Tensor], tokens: Tensor) -> Tensor:
        """The logits."""
        x = w["embed.tokens"][tokens]
        for i, block in enumerate(self.blocks):
            stem = f"layers.{i}.attention."
            x = x + block.truth(x, {n.removeprefix(stem): p for n, p in w.items() if n.startswith(stem)}, EVERY)
        return x @ w["head.weight"]


def crossed() -> Iterator[Options]:
    """Every option at least once, each beside others."""
    causal, both = list(PATTERNS), list(BOTH_WAYS)
    scales, scores, gates = list(SCALES), [*EVERYWHERE, *CAUSAL], ["", *GATES]
    for i, score in enumerate(scores):
        free = score in EVERYWHERE and i % 2 == 0
        pattern = both[i // 2 % len(both)] if free else causal[i % len(causal)]
        more = (i % 3 != 0) * (1 + i % 4) if score in EVERYWHERE else 0
        kv_heads, gate = HEADS if more or i % 5 else 1, gates[i // 3 % len(gates)]
        yield Options(pattern, score, scales[i % len(scales)], ROTARY[i // 2 % 4], more, kv_heads, gate=gate)
