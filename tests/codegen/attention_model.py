"""One layer of attention between an embedding and a head, emitted, and the same in plain torch from a mask of n x n.

The plain side shares nothing with weft: a mask is a Python function of query, key, head and the batch row's metadata.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from tests.kernels.dual import interpreting
from weft import api
from weft.codegen.build import files_of, module_of, temporary
from weft.codegen.plan.planner import Planned
from weft.frontends.load import load_text
from weft.ir.program import Program

Seen = Callable[[int, int, int, list[int], list[bool]], int]
"""(q, k, h, segments of the batch row, valid of it) -> how often q sees k on head h."""
DIMS = {"batch": 2, "seq": 8, "width": 8, "heads": 2, "head": 4, "vocab": 11}


def spec(block: Mapping[str, Any], **dims: int) -> dict[str, Any]:
    """A model whose only layer is this attention: no positions, no norm."""
    layer = {"block": {"kind": "attention", **block}, "norm": "none"}
    return {"weft": 1, "name": "one", "dims": DIMS | dims, "stack": [{"layer": [layer]}]}


@dataclass
class Case:
    """A spec and what it means: which keys are seen, and the score of s, q, k, h as tensors."""

    block: dict[str, Any]
    seen: Seen
    score: Callable[..., Tensor] = lambda s, q, k, h: s
    dims: dict[str, int] = field(default_factory=dict)

    @cached_property
    def planned(self) -> Planned:
        return api.planned(load_text(json.dumps(spec(self.block, **self.dims))), True, "sm_90")

    def lowered(self, train: bool) -> Program:
        return api.program(load_text(json.dumps(spec(self.block, **self.dims))), train)

    @property
    def program(self) -> Program:
        return self.planned.program

    @cached_property
    def files(self) -> dict[str, str]:
        return files_of(self.planned)

    @cached_property
    def module(self) -> nn.Module:
        module = module_of(temporary(self.files)).double()
        draw = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for p in module.parameters():
                p.add_(0.5 * torch.randn(p.shape, generator=draw, dtype=p.dtype))
        return module

    def plain(self, given: Mapping[str, Tensor]) -> Tensor:
        """Logits, from the module's own parameters."""
        p = {k.rpartition("attention.")[2]: v for k, v in self.module.named_parameters()}
        x = p["embed.tokens"][given["tokens"]]
        q, k, v = (
            torch.einsum("bnw,whd->bhnd", x, p[f"{n}.weight"].flatten(1, -2)) + p[f"{n}.bias"].flatten(0, -2)[:, None]
            for n in ("query", "key", "value")
        )
        k, v = (y.repeat_interleave(q.shape[1] // k.shape[1], 1) for y in (k, v))
        n, heads = x.shape[1], q.shape[1]
        at = torch.arange(n)
        places = at[:, None], at[None], torch.arange(heads)[:, None, None]
        s = self.score(q @ k.mT / q.shape[-1] ** 0.5, *places)
        count = self.mask(given, heads)
        s = torch.where(count > 0, s + count.clamp(min=1).double().log(), -torch.inf)
        seen = (count > 0).any(-1, keepdim=True)
        weights = torch.where(seen, torch.softmax(torch.where(seen, s, 0.0), -1), 0.0)
        out = torch.einsum("bhnd,hdw->bnw", weights @ v, p["output.weight"].flatten(0, -3)) + p["output.bias"]
        return (x + out) @ p["head.weight"]

    def mask(self, given: Mapping[str, Tensor], heads: int) -> Tensor:
        batch, n = given["tokens"].shape
        segments, valid = (given.get(m, torch.zeros(batch, n)).tolist() for m in ("segments", "valid"))
        rows = [
            int(self.seen(q, k, h, segments[b], valid[b]))
            for b, h, q, k in product(range(batch), range(heads), range(n), range(n))
        ]
        return torch.tensor(rows).view(batch, heads, n, n)

    def inputs(self, n: int, seed: int = 0, batch: int = 2) -> dict[str, Tensor]:
        """Tokens, targets and the metadata that the model reads: documents in no order, first keys hidden."""
        draw = torch.Generator().manual_seed(seed + n)
        given = {k: torch.randint(0, DIMS["vocab"], (batch, n), generator=draw) for k in ("tokens", "targets")}
        given["segments"] = torch.randint(-1, 2, (batch, n), generator=draw)
        given["valid"] = torch.rand(batch, n, generator=draw) > 0.3
        given["valid"][0, :2] = False
        return {k: given[k] for k in self.program.inputs}

    def error(self, given: Mapping[str, Tensor], kernels: bool = False) -> float:
        """The largest difference of logits and of every parameter's gradient."""
        parameters = list(self.module.parameters())
        with interpreting() if kernels else nullcontext():
            got = self.gradients(self.module(**given).logits, parameters)
        want = self.gradients(self.plain(given), parameters)
        return max(float((a - b).abs().max()) for a, b in zip(got, want, strict=True))

    @staticmethod
    def gradients(logits: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3), dtype=logits.dtype)
        return [logits.detach(), *torch.autograd.grad((logits * weights).sum(), parameters, materialize_grads=True)]
