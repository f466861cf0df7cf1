# ruff: noqa: E501 -- a fault a line
"""Generated cases of the cross-entropy skeleton, and faults that they must find."""

import random
from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tests.kernels.mutate import Fault
from tests.kernels.space import TYPES, flags, guarded, launch, strides, wrong

FILES, CASES = ("cross_entropy",), 60
TEMPERATURE = tl.constexpr(0.8)


@triton.jit
def tempered(x, i, c, X):
    return (x[0] + x[1]) * TEMPERATURE


@triton.jit
def added(dz, x, i, c, X):
    """The gradient of the logits, and with what came from elsewhere."""
    return dz * TEMPERATURE, dz * TEMPERATURE + x[2]


@triton.jit
def weighted(loss, lse, c, X):
    return loss * 2.0, lse, lse - loss


class Case:
    """Logits and targets, with or without holes, from one seed."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64):
        rng = self.rng = random.Random(seed)
        self.seed, self.dtype = seed, dtype
        self.rows, self.space = rng.choice((("a", "av"), ("ab", "abv"), ("ab", "abv"), ("a", "avw")))
        self.sizes = {
            "a": rng.choice((1, 3, 9)),
            "b": rng.choice((1, 2, 4)),
            "v": rng.choice((1, 5, 33, 64, 130)),
            "w": 3,
        }
        self.holes = rng.random() < 0.5
        self.ignore = rng.choice((None, -100, 0))
        self.z = rng.random() < 0.5  # a gradient of lse too
        self.bm, self.bn = rng.choice((1, 2, 4)), rng.choice((8, 16, 64))
        self.index = rng.choice((tl.int32, tl.int64))
        torch.manual_seed(seed)
        n = self.vocabulary = prod(self.shape(self.space[len(self.rows) :]))
        amplitude = rng.choice((1.0, 5.0, 2000.0))
        self.logits = torch.randn(self.shape(self.space), dtype=torch.float64).mul(amplitude).to(dtype)
        if n > 16 and dtype == torch.float64 and rng.random() < 0.3:
            self.logits.view(-1, n)[:, : n // 2] = float("-inf")
        self.bias = torch.randn(self.shape(self.space[len(self.rows) :]), dtype=torch.float64).to(dtype)
        self.extra = torch.randn(self.shape(self.space), dtype=torch.float64).to(dtype)
        self.target = torch.randint(n // 2, n, self.shape(self.rows))
        if self.ignore is not None:
            self.target[torch.rand(self.target.shape) < 0.4] = self.ignore
        self.dloss, self.dlse = (torch.randn(self.shape(self.rows), dtype=torch.float64) for _ in "lz")

    def shape(self, dims: str) -> tuple[int, ...]:
        return tuple(self.sizes[d] for d in dims)

    def tensor(self, dims: str, value: Any = None, dtype: torch.dtype | None = None) -> Tensor:
        return guarded(self.rng, self.shape(dims), dtype or self.dtype, value)

    @property
    def wide(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def reference(self, dtype: torch.dtype) -> list[Tensor]:
        """loss, lse, the gradient of the logits, and that plus what came from elsewhere."""
        x = self.logits.to(dtype).requires_grad_()
        z = (x + self.bias.to(dtype)) * TEMPERATURE.value if self.holes else x
        flat = z.flatten(len(self.rows)).view(-1, self.vocabulary)
        keep = self.ignore if self.ignore is not None else -100
        loss = torch.nn.functional.cross_entropy(flat, self.target.view(-1), ignore_index=keep, reduction="none")
        loss, lse = loss.view(self.target.shape), flat.logsumexp(-1).view(self.target.shape)
        seeds = [self.dloss.to(dtype), self.dlse.to(dtype) * self.z]
        (grad,) = torch.autograd.grad([loss, lse], [x], seeds)
        return [loss.detach(), lse.detach(), grad, grad + self.extra.to(dtype)]

    def run(self, modules: Any) -> list[Tensor]:
        """What `reference` gives, from the kernels; without holes the gradient is written over the logits."""
        module, holes = modules.cross_entropy, self.holes
        ins = [(self.tensor(self.space, self.logits), self.space)]
        if holes:
            vocabulary = self.space[len(self.rows) :]
            ins += [(self.tensor(vocabulary, self.bias), vocabulary), (self.tensor(self.space, self.extra), self.space)]
        target = [(self.tensor(self.rows, self.target, torch.int64), self.rows)]
        rows = [(self.tensor(self.rows, dtype=self.wide), self.rows) for _ in range(2 + holes)]
        front = [z for o in (ins, target) for z in (tuple(t for t, _ in o), strides(self.space, *o))]
        sizes, blocks = self.shape(self.space), triton.cdiv(prod(self.shape(self.rows)), self.bm)
        common = {"NR": len(self.rows), "BM": self.bm, "BN": self.bn, "ACC": TYPES[self.dtype], "IDX": self.index}
        dims = [flags(self.space, *(d for _, d in ins)), flags(self.space, self.rows)]
        launch(
            module.forward, (blocks,), *front, tuple(t for t, _ in rows), strides(self.space, *rows), sizes, (),
            tempered if holes else None, weighted if holes else None, self.ignore,
            *dims, flags(self.space, *(self.rows for _ in rows)), **common, seed=self.seed,
        )  # fmt: skip
        given = [rows[1], (self.tensor(self.rows, self.dloss, self.wide), self.rows)]
        given += [(self.tensor(self.rows, self.dlse, self.wide), self.rows)] * self.z
        outs = [(self.tensor(self.space), self.space), (self.tensor(self.space), self.space)] if holes else ins
        launch(
            module.backward, (blocks * triton.cdiv(self.vocabulary, self.bn),), *front,
            tuple(t for t, _ in given), strides(self.space, *given), tuple(t for t, _ in outs), strides(self.space, *outs),
            sizes, (), tempered if holes else None, added if holes else None, self.ignore, *dims,
            flags(self.space, *(self.rows for _ in given)), flags(self.space, *(self.space for _ in outs)),
            **common, seed=self.seed,
        )  # fmt: skip
        loss, lse = rows[0][0], rows[1][0]
        if holes:
            assert not wrong(rows[2][0], lse - loss / 2, 1e-5)
            return [loss / 2, lse, outs[0][0], outs[1][0]]
        return [loss, lse, outs[0][0]]


def case(modules: Any, seed: int) -> str:
    """What is wrong in one generated case, "" for nothing."""
    this = Case(seed)
    return "; ".join(filter(None, (wrong(g, t) for g, t in zip(this.run(modules), this.reference(torch.float64)))))


FAULTS = (
    Fault("rows of a block collapse", "cross_entropy", "(tl.program_id(0) // blocks).to(IDX) * BM + tl.arange(0, BM)", "(tl.program_id(0) // blocks).to(IDX) * BM + 0 * tl.arange(0, BM)"),
    Fault("sum not rescaled", "cross_entropy", "total = total * tl.exp(m - safe) +", "total = total +"),
    Fault("maximum not kept", "cross_entropy", "top = tl.maximum(m, tl.max(z, 1, keep_dims=True))", "top = tl.max(z, 1, keep_dims=True)"),
    Fault("-inf is not safe", "cross_entropy", 'tl.where(top == float("-inf"), 0.0, top)', "top"),
    Fault("columns that do not exist count", "cross_entropy", 'z = tl.where(k < nc, z, float("-inf"))', "z = z"),
    Fault("the last chunk is left out", "cross_entropy", "tl.range(0, tl.cdiv(nc, BN))", "tl.range(0, tl.maximum(nc // BN, 1))"),
    Fault("loss without the target", "cross_entropy", "tl.where(inside, hit - m, 0.0)", "tl.where(inside, hit * 0, 0.0)"),
    Fault("ignored rows have a loss", "cross_entropy", "loss = tl.where(target == IGNORE, 0.0, loss)", "loss = loss"),
    Fault("target read past its row", "cross_entropy", "inside = (r < nr) & (target >= 0) & (target < nc)", "inside = r < nr"),
    Fault("lse without the maximum", "cross_entropy", "y = (loss, m + tl.log(total)) if", "y = (loss, tl.log(total)) if"),
    Fault("lse is the maximum", "cross_entropy", "finish(loss, m + tl.log(total), cr, X)", "finish(loss, m, cr, X)"),
    Fault("prologue not applied to the target", "cross_entropy", "_, hit = logit(IN, in_strides, c, r * nc + target, r < nr, inside, X, pre,", "_, hit = logit(IN, in_strides, c, r * nc + target, r < nr, inside, X, None,"),
    Fault("gradient without the target", "cross_entropy", "tl.where(k == target, 1.0, 0.0)", "tl.where(k == target, 1.0, 0.0) * 0"),
    Fault("ignored rows have a gradient", "cross_entropy", "dz = tl.where(target == IGNORE, 0.0, dz)", "dz = dz"),
    Fault("gradient of lse lost", "cross_entropy", "dz += row[2] * p", "dz += row[2] * 0"),
    Fault("gradient of lse of ignored rows lost", "cross_entropy", "dz += row[2] * p", "dz += tl.where(dz == 0, 0.0, row[2] * p)"),
    Fault("epilogue not applied", "cross_entropy", "y = (dz,) if post is None else post(dz, x, i, c, X)", "y = (dz, dz) if post is not None else (dz,)"),
    Fault("columns of another block", "cross_entropy", "k = (tl.program_id(0) % blocks)", "k = (tl.program_id(0) * 0 % blocks)"),
    Fault("target through int16", "cross_entropy", "TARGET_DIMS, 0, 0, NR).to(IDX)\n    row", "TARGET_DIMS, 0, 0, NR).to(tl.int8).to(IDX)\n    row"),
)  # fmt: skip
