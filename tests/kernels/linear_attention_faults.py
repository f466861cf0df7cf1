# ruff: noqa: E501 -- a fault a line
"""Generated chunks of linear recurrences, forward and backward, and faults that they must find."""

import random
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tests.kernels.mutate import Fault
from tests.kernels.space import TYPES, flags, guarded, launch, strides, wrong

FILES, CASES = ("linear_attention",), 40
DOTS = {torch.float64: tl.float64, torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
HARD = (0.0, 1e-9, 1 - 1e-7, -0.5, 1.5)
"""Decays that a logarithm or a division would not bear."""
Operand = tuple[Tensor, str]


class Case:
    """Chunks, places, keys, tiles and layouts, all from one seed. t, j: places; k: keys; b, c: chunks."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64):
        rng = self.rng = random.Random(seed)
        self.seed, self.dtype = seed, dtype
        self.lead = rng.choice(("b", "bc", "bc"))
        self.sizes = {"b": rng.choice((1, 2)), "c": rng.choice((1, 2)), "k": rng.choice((1, 5, 16, 19, 33))}
        self.sizes |= dict.fromkeys("tj", (rng.choice((1, 5, 15, 16)), rng.choice((17, 31, 32)))[seed % 2])
        if seed % 8 == 1:
            self.sizes |= {"b": 1, "c": 1, "t": 64, "j": 64, "k": 5}
        self.levels = max(4, (self.sizes["t"] - 1).bit_length())
        self.bk, self.index = rng.choice((16, 16, 32)), rng.choice((tl.int32, tl.int64))
        torch.manual_seed(seed)
        self.w, self.k = self.draw("tk"), self.draw("tk")
        self.a, self.d, self.x = self.draw("tk").sigmoid(), self.draw("tj"), self.draw("tj") / 4
        if rng.random() < 0.4:
            self.a.copy_(torch.tensor(HARD, dtype=dtype)[torch.randint(len(HARD), self.a.shape)])

    def draw(self, own: str) -> Tensor:
        return torch.randn([self.sizes[d] for d in self.lead + own], dtype=torch.float64).to(self.dtype)

    def tensor(self, own: str, value: Tensor | None = None) -> Operand:
        """Any dim may be the contiguous one."""
        dims = self.lead + own
        order = "".join(self.rng.sample(dims, len(dims)))
        value = None if value is None else value.permute([dims.index(d) for d in order])
        return guarded(self.rng, [self.sizes[d] for d in order], self.dtype, value), order

    def reference(self, dtype: torch.dtype) -> list[Tensor]:
        """The product, its three gradients, the inverse."""
        w, k, a = (v.to(dtype).requires_grad_() for v in (self.w, self.k, self.a))
        n, rows = self.sizes["t"], list[Tensor]()
        one = torch.eye(n, dtype=dtype)
        passed = torch.zeros_like(k)  # what is left of each key at the place
        for t in range(n):
            rows.append(torch.einsum("...k,...jk->...j", w[..., t, :], passed))
            passed = passed * a[..., t : t + 1, :] + one[t][:, None] * k
        m = torch.stack(rows, -2)
        grads = torch.autograd.grad(m, (w, k, a), self.d.to(dtype), materialize_grads=True)
        wide = torch.float64 if dtype == torch.float64 else torch.float32  # torch inverts nothing narrower
        return [m.detach(), *grads, torch.linalg.inv(one.to(wide) - self.x.to(wide).tril(-1)).to(dtype)]

    def launch(self, kernel: Any, programs: int, groups: list[tuple[list[Operand], str]], **more: Any) -> None:
        spaces = [self.lead + own for _, own in groups]
        front = [v for s, (o, _) in zip(spaces, groups) for v in (tuple(t for t, _ in o), strides(s, *o))]
        dims = [flags(s, *(d for _, d in o)) for s, (o, _) in zip(spaces, groups)]
        sizes = tuple(self.sizes[d] for d in spaces[0])
        chunks = sizes[0] * (sizes[1] if len(self.lead) > 1 else 1)
        launch(
            kernel, (chunks * programs,), *front, sizes, *dims, NZ=len(self.lead), C=1 << self.levels,
            LEVELS=self.levels, **{"DOT": DOTS[self.dtype], "PREC": "ieee", **more}, ACC=TYPES[self.dtype],
            IDX=self.index, seed=self.seed,
        )  # fmt: skip

    def run(self, modules: Any) -> list[Tensor]:
        """What `reference` gives."""
        n = modules.linear_attention
        ins, m = [self.tensor("tk", v) for v in (self.w, self.k, self.a)], self.tensor("tj")
        self.launch(n.decayed_product, 1, [(ins, "tk"), ([m], "tj")], BK=self.bk)
        d, outs = self.tensor("tj", self.d), [self.tensor("tk") for _ in ins]
        groups = [(ins, "tk"), ([d], "tj"), (outs, "tk")]
        self.launch(n.decayed_product_backward, triton.cdiv(self.sizes["k"], self.bk), groups, BK=self.bk)
        x, inverse = self.tensor("tj", self.x), self.tensor("tj")
        self.launch(n.unit_inverse, 1, [([x], "tj"), ([inverse], "tj")], DOT=TYPES[self.dtype], PREC="tf32")
        owns = (m, "tj"), *((o, "tk") for o in outs), (inverse, "tj")
        return [t.permute([order.index(d) for d in self.lead + own]) for (t, order), own in owns]


def case(modules: Any, seed: int) -> str:
    """What is wrong in one generated case, "" for nothing."""
    this = Case(seed)
    want = this.reference(torch.float64)
    return "; ".join(filter(None, (wrong(g, t) for g, t in zip(this.run(modules), want, strict=True))))


FAULTS = (
    Fault("the other half of a block", "linear_attention", "return (t // m) % 2 == 1", "return (t // m) % 2 == 0"),
    Fault("pairs above the diagonal", "linear_attention", "tl.where(t > j, t ^ j, 0)", "t ^ j"),
    Fault("the diagonal is a pair", "linear_attention", "tl.where(t > j, t ^ j, 0)", "tl.where(t > j, t ^ j, t == j)"),
    Fault("nothing is swapped", "linear_attention", "tl.join(right, left)", "tl.join(left, right)"),
    Fault("siblings are the left ones", "linear_attention", "tl.join(right, left)", "tl.join(left, left)"),
    Fault("sums of half a block", "linear_attention", "total = tl.sum(tl.reshape(x, (C // m, m, BK)), 1, keep_dims=True)", "total = tl.sum(tl.reshape(x, (C // m, m, BK)), 1, keep_dims=True) / 2"),
    Fault("rows through fp32", "linear_attention", "both = tl.dot(reads, tl.permute", "both = tl.dot(reads.to(tl.float32).to(DOT), tl.permute"),
    Fault("only the first keys", "linear_attention", "for k0 in tl.range(0, nk, BK):", "for k0 in tl.range(0, BK, BK):"),
    Fault("keys are not masked", "linear_attention", "load(IN, in_strides, c, t < n, key < nk,", "load(IN, in_strides, c, t < n, key < nk + 1,"),
    Fault("before is never advanced", "linear_attention", "before = tl.where(right, before * sibling, before)", "before = tl.where(right, before, before)"),
    Fault("after takes the right half", "linear_attention", "after = tl.where(right, after, after * sibling)", "after = tl.where(right, after * sibling, after)"),
    Fault("wholes are not joined", "linear_attention", "                whole *= sibling", "                whole *= 1.0"),
    Fault("every level of a near block", "linear_attention", "near += tl.where(near_levels >> level == 1, both, 0.0)", "near += tl.where(near_levels >> level >= 1, both, 0.0)"),
    Fault("far keys of the right half", "linear_attention", "tl.where(right, 0.0, k * after).to(DOT)", "(k * after).to(DOT)"),
    Fault("far pairs of another block", "linear_attention", "tl.where(t // (2 << level) == j // (2 << level), both, 0.0)", "both"),
    Fault("far stores over near", "linear_attention", "apart = (t < n) & (t // 16 != j // 16)", "apart = t < n"),
    Fault("rows that do not exist are stored", "linear_attention", "store(OUT, out_strides, (near,), c, near_t < n, near_j < n", "store(OUT, out_strides, (near,), c, near_t < n + 1, near_j < n"),
    Fault("backward: decays forgotten going down", "linear_attention", "own = own * sibling + reads * w", "own = own + reads * w"),
    Fault("backward: rows get nothing of before", "linear_attention", "own * sibling + reads * w + writes * k", "own * sibling + writes * k"),
    Fault("backward: keys get nothing of after", "linear_attention", "own * sibling + reads * w + writes * k", "own * sibling + reads * w"),
    Fault("backward: wholes get nothing", "linear_attention", "h = h * sibling + swapped", "h = h + 0 * swapped"),
    Fault("backward: sums of the own half", "linear_attention", "swapped(block_sums(own * passed, 1 << level, C, BK), 1 << level, C, BK)", "block_sums(own * passed, 1 << level, C, BK)"),
    Fault("backward: f where g stands", "linear_attention", "own = tl.where(right, f, g)", "own = tl.where(right, g, f)"),
    Fault("backward: left halves take f", "linear_attention", "        g = tl.where(right, g, own)", "        g = own"),
    Fault("backward: corner not turned", "linear_attention", "tl.dot(tl.permute(corner, turned), reads", "tl.dot(corner, reads"),
    Fault("backward: gradient of reads for writes", "linear_attention", "        dk += writes * passed", "        dk += reads * passed"),
    Fault("backward: the level above", "linear_attention", "kept[2 * level], kept[2 * level + 1]", "kept[2 * level], kept[2 * min(level + 1, LEVELS - 1) + 1]"),
    Fault("backward: far corners are all", "linear_attention", "corner = (t < n) & (levels_of(t, j) >> level == 1)", "corner = (t < n) & (levels_of(t, j) >> level >= 1)"),
    Fault("backward: keys of another tile", "linear_attention", "key = (tl.program_id(0) % blocks) * BK", "key = (tl.program_id(0) % 1) * BK"),
    Fault("inverse: one side alone", "linear_attention", "out += tl.dot(left.to(DOT), blocks,", "out += left + 0 * tl.dot(left.to(DOT), blocks,"),
    Fault("inverse: of 1 + x", "linear_attention", "        out += tl.dot(left.to(DOT)", "        out -= tl.dot(left.to(DOT)"),
    Fault("inverse: a level is left out", "linear_attention", "tl.where(pairs >> level == 1, x, 0.0)", "tl.where((pairs >> level == 1) & (level != 2), x, 0.0)"),
)  # fmt: skip
