"""Gated attention units and FLASH against plain torch written by hand (Hua et al. 2022), in fp64: logits and gradients
of whole sequences, and a prompt with a token at a time after it."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

import weft

SEQ, WIDTH, VOCAB = 11, 8, 7
UNIT = {"kind": "attention", "heads": 1, "head": 4, "value": "2*width", "shared_qk": True, "activation": "silu",
        "gate": "silu", "weights": "relu2"}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "unit": {**UNIT, "pattern": "causal", "scale": "1/seq"},
    "flash": {**UNIT, "pattern": "causal", "scale": "1/size", "mixed_chunk": {"size": "size"}},
    "by tokens": {
        **UNIT, "pattern": "causal", "scale": 1.0, "weights": "relu2(s)/size", "rotary": True,
        "mixed_chunk": {"size": 3, "divisor": "tokens"},
    },
    "heads": {
        "kind": "attention", "heads": 4, "kv_heads": 2, "head": 2, "pattern": "causal", "bias": False,
        "mixed_chunk": {"size": 5, "divisor": "chunks"},
    },
    "both ways": {**UNIT, "pattern": "all", "mixed_chunk": {"size": 4, "divisor": "tokens"}},
    "longest": {**UNIT, "pattern": "window(3)", "mixed_chunk": {"size": 4, "divisor": "longest"}},
}  # fmt: skip


class Truth:
    """A model of one such block on tokens [batch n], written out. p: its parameters."""

    def __init__(self, block: dict[str, Any], w: dict[str, Tensor], tokens: Tensor) -> None:
        self.block, self.w, self.x = block, w, w["embed.tokens"][tokens]
        self.p = {k.removeprefix("layers.0.attention."): v for k, v in w.items()}
        self.act = silu if "activation" in block else lambda y: y
        self.n = n = tokens.shape[1]
        self.i, self.j = torch.arange(n)[:, None], torch.arange(n).expand(n, -1)
        size = block.get("mixed_chunk", {}).get("size")
        self.size = 4 if size == "size" else size

    def made(self, name: str) -> Tensor:
        y = torch.einsum("bnw,w...->bn...", self.x, self.p[f"{name}.weight"])
        return y + self.p[f"{name}.bias"] if f"{name}.bias" in self.p else y

    def sides(self, suffix: str = "") -> list[Tensor]:
        """Queries and keys [batch n heads head]."""
        p, heads, head = self.p, self.block["heads"], self.block["head"]
        if self.block.get("shared_qk"):
            z = self.act(self.made("shared"))[:, :, None]
            both = [z * p[f"{m}{suffix}_scale"] + p[f"{m}{suffix}_offset"] for m in ("query", "key")]
        else:
            both = [self.act(self.made(f"{m}{suffix}")) for m in ("query", "key")]
        if self.block.get("rotary"):
            angle = self.i * 10000.0 ** -(torch.arange(head // 2) / (head // 2)).double()
            turn = torch.polar(torch.ones_like(angle), angle)[:, None]
            parts = [torch.complex(*y.chunk(2, -1)) * turn for y in both]
            both = [torch.cat([y.real, y.imag], -1) for y in parts]
        return [y.flatten(2, -2).repeat_interleave(heads // y.flatten(2, -2).shape[2], 2) for y in both]

    def seen(self) -> Tensor:
        i, j = self.i, self.j
        return {"causal": j <= i, "all": j == j, "window(3)": (j <= i) & (i - j < 3)}[self.block["pattern"]]

    def near(self) -> Tensor:
        """The weights of what a query's own chunk shows, or all there is."""
        seen = self.seen() & (self.i // self.size == self.j // self.size) if self.size else self.seen()
        scales = {"1/seq": 1 / SEQ, "1/size": 1 / 4, 1.0: 1.0, "": self.block["head"] ** -0.5}
        s = torch.einsum("bihd,bjhd->bhij", *self.sides()) * scales[self.block.get("scale", "")]
        if "weights" in self.block:
            return torch.where(seen, s.relu() ** 2, 0) / (4 if "/" in self.block["weights"] else 1)
        return torch.where(seen, s, -torch.inf).softmax(-1)

    def far(self) -> Tensor:
        """The weights of linear attention."""
        n, size, causal = self.n, self.size, self.block["pattern"] != "all"
        far = self.j // size < self.i // size if causal else self.seen()
        count = far.sum(-1).double()
        chunks = count / size if causal else torch.full((n,), -(-n // size))
        by = {"size": torch.full((n,), size), "chunks": chunks, "tokens": count, "longest": torch.full((n,), SEQ)}
        divisor = by[self.block["mixed_chunk"].get("divisor", "size")].clamp(min=1)
        return torch.einsum("bihd,bjhd->bhij", *self.sides("_linear")) * far / divisor[:, None]

    def logits(self) -> Tensor:
        v = self.act(self.made("value"))
        v = v.repeat_interleave(self.block["heads"] // v.shape[2], 2)
        out = torch.einsum("bhij,bjhe->bihe", self.near() + self.far() if self.size else self.near(), v)
        out = out * silu(self.made("gate")) if "gate" in self.block else out
        y = torch.einsum("bihe,hew->biw", out, self.p["output.weight"].flatten(0, -3))
        return (self.x + (y + self.p["output.bias"] if "output.bias" in self.p else y)) @ self.w["head.weight"]


def truth(block: dict[str, Any], w: dict[str, Tensor], tokens: Tensor) -> Tensor:
    return Truth(block, w, tokens).logits()


def compiled(block: dict[str, Any]) -> Any:
    dims = {"batch": 2, "seq": SEQ, "width": WIDTH, "heads": 1, "head": 4, "vocab": VOCAB, "size": 4}
    init = {"weight": {"normal": 0.6}, "bias": {"normal": 0.3}, "embedding": {"normal": 1.0}}
    stack = [{"layer": [{"block": block, "norm": "none"}]}]
    return weft.compile(weft.Model(name="unit", dims=dims, stack=stack, init=init)).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES)
def test_as_written_by_hand(case: str) -> None:
    block, draw = CASES[case], torch.Generator().manual_seed(1)
    module = compiled(block)
    params = dict(module.named_parameters())
    for n in (SEQ, 5):
        tokens, targets = torch.randint(0, VOCAB, (2, 2, n), generator=draw)
        out, want = module(tokens, targets), truth(block, params, tokens)
        loss = torch.nn.functional.cross_entropy(want.flatten(0, 1), targets.flatten())
        got, by_hand = (torch.autograd.grad(x, list(params.values())) for x in (out.loss, loss))
        for a, b in zip((out.logits, *got), (want, *by_hand), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    if block["pattern"] == "all":
        return
    tokens = torch.randint(0, VOCAB, (2, SEQ), generator=draw)
    whole = truth(block, params, tokens)
    for prompt in (0, 5, 8):
        out, state = module.prefill(tokens[:, :prompt]) if prompt else (None, module.state(2))
        rows = [] if out is None else [*out.logits.unbind(1)]
        for t in range(prompt, SEQ):
            out, state = module.step(tokens[:, t], state)
            rows.append(out.logits)
        torch.testing.assert_close(torch.stack(rows, 1), whole, rtol=1e-10, atol=1e-10)
