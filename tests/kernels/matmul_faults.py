# ruff: noqa: E501 -- a fault a line
"""Generated cases of the matmul skeleton, and faults that they must find."""

import random
from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tests.kernels.mutate import Fault
from tests.kernels.space import TYPES, fit, flags, guarded, launch, strides, wrong
from weft.codegen.skeletons.common.elementwise import bits24, gelu_tanh
from weft.ir.formula import philox

FILES, CASES = ("matmul",), 60
DOTS = {torch.float64: tl.float64, torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
LEAST = tl.constexpr(5033165)  # ceil(0.3 * 2^24)
Operand = tuple[Tensor, str]


@triton.jit
def scaled(x, i, c, X):
    """A norm's statistics and weight, then dropout by the place that the coordinates have in the forward's A."""
    place = tl.full([1, 1], 0, tl.int64)
    for d in tl.static_range(len(c)):
        place = place + c[d] * X[1][d]
    keep = bits24(tl.load(X[0]), 5, 2, place) >= LEAST
    return tl.where(keep, (x[0] + 1.0) * x[1] / x[2], 0.0)  # no number where nothing was loaded


@triton.jit
def placed(x, i, c, X):
    """Dropout by the row-major place."""
    return tl.where(bits24(tl.load(X[0]), 5, 2, i) >= LEAST, x[0] * x[1] + x[2], 0.0)


@triton.jit
def biased(acc, e, i, c, X):
    """Bias, activation, residual; the value before the activation; both are summed over rows."""
    h = acc[0] + e[0]
    y = gelu_tanh(h) + e[1] + (i % 7).to(h.dtype)
    return y, h, y, h * h + 1.0


@triton.jit
def gated(acc, e, i, c, X):
    return gelu_tanh(acc[0]) * acc[1] + e[1], acc[0]


@triton.jit
def plus(acc, e, i, c, X):
    return (acc[0] + e[0],)


class Case:
    """Sizes, dims, tiles, holes and layouts from one seed."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64):
        rng = self.rng = random.Random(seed)
        self.seed, self.dtype = seed, dtype
        self.z, self.m = rng.choice(("", "", "z", "yz")), rng.choice(("m", "m", "om"))
        self.n, self.k = rng.choice(("n", "n", "pn")), rng.choice(("k", "k", "lk"))
        self.sizes = {
            "y": 2,
            "z": rng.choice((1, 3)),
            "o": rng.choice((2, 3)),
            "p": rng.choice((2, 3)),
            "l": rng.choice((2, 3)),
        }
        self.sizes |= {d: rng.choice((1, 5, 16, 17, 33)) for d in "mnk"}
        self.bm, self.bn, self.bk, self.group = (rng.choice(c) for c in ((16, 32), (16, 32), (16, 32), (1, 2, 4)))
        self.index = rng.choice((tl.int32, tl.int64))
        self.pro, self.epi = rng.choice((None, scaled, placed)), rng.choice((None, biased, gated))
        self.cores = 2 if self.epi is gated else 1 if self.epi is biased else rng.choice((1, 2, 3))
        torch.manual_seed(seed)
        self.adims = (
            [self.z + self.m + self.k, self.z + self.m, self.k] if self.pro is not None else [self.z + self.m + self.k]
        )
        self.shared = self.z != "" and rng.random() < 0.5  # one weight for all batches
        self.wdims = ("" if self.shared else self.z) + self.k + self.n
        self.a = [self.draw(d) for d in self.adims]
        if self.pro is scaled:
            self.a[2] = self.a[2].abs() + 1
        self.w = [self.draw(self.wdims) for _ in range(self.cores)]
        self.edims = [self.n, self.z + self.m + self.n]
        self.e = [self.draw(d) for d in self.edims]
        self.key = torch.tensor([rng.getrandbits(63) - 2**62])

    def draw(self, dims: str) -> Tensor:
        return torch.randn(self.shape(dims), dtype=torch.float64).to(self.dtype)

    def shape(self, dims: str) -> tuple[int, ...]:
        return tuple(self.sizes[d] for d in dims)

    def tensor(self, dims: str, value: Tensor | None = None, dtype: torch.dtype | None = None) -> Operand:
        """Any dim may be the contiguous one."""
        order = "".join(self.rng.sample(dims, len(dims)))
        value = None if value is None else value.permute([dims.index(d) for d in order])
        return guarded(self.rng, self.shape(order), dtype or self.dtype, value), order

    @property
    def wide(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def factor(self, dtype: torch.dtype) -> Tensor:
        """pro(A), rounded as the kernel rounds it."""
        space = self.z + self.m + self.k
        a = [fit(v.to(dtype), d, space) for v, d in zip(self.a, self.adims)]
        i = torch.arange(prod(self.shape(space))).view(self.shape(space))
        keep = philox.uniform(self.key[0], 5, 2, i) >= 0.3 * 2**24
        if self.pro is None:
            return a[0]
        return torch.where(keep, (a[0] + 1) * a[1] / a[2] if self.pro is scaled else a[0] * a[1] + a[2], 0.0)

    def reference(self, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Results, sums over rows; gradients of the products, then of the left factor and of the weights."""
        a = self.factor(dtype).requires_grad_()
        w = [v.to(dtype).requires_grad_() for v in self.w]
        out = self.z + self.m + self.n
        acc = [torch.einsum(f"{self.z + self.m + self.k},{self.wdims}->{out}", a, v) for v in w]
        e = [fit(v.to(dtype), d, out) for v, d in zip(self.e, self.edims)]
        ys, sums = list(acc), []
        gelu = torch.nn.functional.gelu
        if self.epi is biased:
            i = torch.arange(prod(self.shape(out))).view(self.shape(out))
            h = acc[0] + e[0]
            ys = [gelu(h, approximate="tanh") + e[1] + i % 7, h]
            sums = [v.sum([out.index(d) for d in self.z + self.m]) for v in (ys[0], h * h + 1)]
        elif self.epi is gated:
            ys = [gelu(acc[0], approximate="tanh") * acc[1] + e[1], acc[0]]
        torch.manual_seed(self.seed + 1)
        seeds = [torch.randn(y.shape, dtype=torch.float64).to(dtype) for y in ys]
        dacc = torch.autograd.grad(ys, acc, seeds, retain_graph=True)
        return (
            [y.detach() for y in ys],
            [s.detach() for s in sums],
            list(dacc),
            list(torch.autograd.grad(ys, [a, *w], seeds)),
        )

    def launch(
        self,
        module: Any,
        groups: tuple[str, str, str, str],
        ins: Any,
        ws: Any,
        es: Any,
        outs: Any,
        sums: Any,
        pro: Any,
        epi: Any,
    ) -> None:
        """One product; operands are (tensor, dims); groups: dims of batches, rows, columns, what is summed."""
        z, m, n, k = groups
        spaces = (z + m + k, z + k + n, z + m + n, z + m + n, "@" + n)
        front = [v for s, o in zip(spaces, (ins, ws, es, outs, sums)) for v in (tuple(t for t, _ in o), strides(s, *o))]
        dims = [flags(s, *(d for _, d in o)) for s, o in zip(spaces, (ins, ws, es, outs, sums))]
        blocks = triton.cdiv(prod(self.shape(m)), self.bm) * triton.cdiv(prod(self.shape(n)), self.bn)
        home = self.z + self.m + self.k
        places = {d: prod(self.shape(home[x + 1 :])) for x, d in enumerate(home)}
        launch(
            module.matmul, (prod(self.shape(z)) * blocks,), *front, self.shape(z + m + n + k),
            (self.key, tuple(places.get(d, 0) for d in z + m + k)), pro, epi, *dims,
            NZ=len(z), NM=len(z + m), NN=len(z + m + n), GROUP=self.group, BM=self.bm, BN=self.bn, BK=self.bk,
            DOT=DOTS[self.dtype], ACC=TYPES[self.dtype], PREC="ieee", IDX=self.index, seed=self.seed,
        )  # fmt: skip

    def forward(self, modules: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Results, and sums over rows with their parts added up."""
        out = self.z + self.m + self.n
        ins = [self.tensor(d, v) for v, d in zip(self.a, self.adims)]
        ws, es = [self.tensor(self.wdims, v) for v in self.w], [self.tensor(d, v) for v, d in zip(self.e, self.edims)]
        outs = [self.tensor(out) for _ in range(2 if self.epi is not None else self.cores)]
        self.sizes["@"] = prod(self.shape(self.z)) * triton.cdiv(prod(self.shape(self.m)), self.bm)
        sums = [self.tensor("@" + self.n, dtype=self.wide) for _ in range(2 if self.epi is biased else 0)]
        groups = self.z, self.m, self.n, self.k
        self.launch(modules.matmul, groups, ins, ws, es if self.epi is not None else [], outs, sums, self.pro, self.epi)
        return [self.ordered(o, out) for o in outs], [self.ordered(s, "@" + self.n).sum(0) for s in sums]

    def ordered(self, operand: Operand, dims: str) -> Tensor:
        return operand[0].permute([operand[1].index(d) for d in dims])

    def backward(self, modules: Any, dacc: list[Tensor]) -> list[Tensor]:
        """The gradients of pro(A), one product added to the next, and of the weights: products of transposed views."""
        out, home = self.z + self.m + self.n, self.z + self.m + self.k
        grads = [self.tensor(out, g) for g in dacc]
        total: list[Operand] = []
        for g, w in zip(grads, self.w):
            new = self.tensor(home)
            groups = self.z, self.m, self.k, self.n
            self.launch(
                modules.matmul,
                groups,
                [g],
                [self.tensor(self.wdims, w)],
                total,
                [new],
                [],
                None,
                plus if total else None,
            )
            total = [new]
        ins = [self.tensor(d, v) for v, d in zip(self.a, self.adims)]
        dws = [self.tensor(self.wdims) for _ in self.w]
        batch = "" if self.shared else self.z
        groups = batch, self.k, self.n, (self.z if self.shared else "") + self.m
        if self.pro is placed:  # its place is that of the forward's space, which a transposed view does not have
            ins = [self.tensor(home, self.factor(torch.float64).to(self.dtype))]
        self.launch(modules.matmul, groups, ins, grads, [], dws, [], None if self.pro is placed else self.pro, None)
        return [self.ordered(total[0], home), *(self.ordered(w, self.wdims) for w in dws)]


def case(modules: Any, seed: int) -> str:
    """What is wrong in one generated case, "" for nothing."""
    this = Case(seed)
    results, sums, dacc, grads = this.reference(torch.float64)
    got, parts = this.forward(modules)
    pairs = zip([*got, *parts, *this.backward(modules, dacc)], [*results, *sums, *grads], strict=True)
    return "; ".join(filter(None, (wrong(g, w) for g, w in pairs)))


FAULTS = (
    Fault("groups of rows overlap", "matmul", "group = pid // (GROUP * bn)", "group = pid // (GROUP * bn + 1)"),
    Fault("the last group is taken for a whole one", "matmul", "high = tl.minimum(bm - group * GROUP, GROUP)", "high = GROUP"),
    Fault("rows and columns of blocks exchanged", "matmul", "return group * GROUP + pid % high, pid // high", "return pid // high, group * GROUP + pid % high"),
    Fault("prologue not masked", "matmul", "tl.where(ok_m & ok_k, a, 0.0)", "tl.where(ok_m & (ok_k | True), a, 0.0) * 1"),
    Fault("prologue through fp32", "matmul", ", [BM, BK]).to(DOT)", ", [BM, BK]).to(tl.float32).to(DOT)"),
    Fault("left factor with the rows' mask alone", "matmul", "load_one(A[0], a_strides[0], c, ok_m, ok_k,", "load_one(A[0], a_strides[0], c, ok_m, ok_m,"),
    Fault("every weight is the first", "matmul", "load_one(B[j], b_strides[j], c, ok_k, ok_n, B_DIMS, j,", "load_one(B[0], b_strides[0], c, ok_k, ok_n, B_DIMS, 0,"),
    Fault("weights with the first's strides", "matmul", "load_one(B[j], b_strides[j]", "load_one(B[j], b_strides[0]"),
    Fault("products replace each other", "matmul", "tl.dot(a, b, acc[j], input", "tl.dot(a, b, acc[j] * 0, input"),
    Fault("products share an accumulator", "matmul", "tl.dot(a, b, acc[j], input", "tl.dot(a, b, acc[0], input"),
    Fault("the last block of the sum is left out", "matmul", "for k0 in tl.range(0, nk, BK):", "for k0 in tl.range(0, nk - 1, BK):"),
    Fault("blocks of the sum overlap", "matmul", "tl.range(0, nk, BK):", "tl.range(0, nk, BK // 2):"),
    Fault("batch of the first program", "matmul", "z = (tl.program_id(0) // (bm * bn))", "z = (tl.program_id(0) * 0 // (bm * bn))"),
    Fault("batches of rows", "matmul", "// (bm * bn)).to(IDX)", "// bm).to(IDX)"),
    Fault("prologue's place without its batch", "matmul", "(z * nm + m) * nk + k", "m * nk + k"),
    Fault("prologue's place in the result", "matmul", "(z * nm + m) * nk + k", "(z * nm + m) * nn + k"),
    Fault("epilogue's place without its batch", "matmul", "(z * nm + m) * nn + n, c, X", "m * nn + n, c, X"),
    Fault("epilogue not applied", "matmul", "if epi is not None:", "if epi is not None and len(E) > 2:"),
    Fault("weights not masked in the sum", "matmul", "cb, k < nk, n < nn,", "cb, k < nk + BK, n < nn,"),
    Fault("results with the first result's strides", "common/operands", "p = address(P[k], strides[k], c, DIMS, k)\n        if has(DIMS, k, NS, NR) and has(DIMS, k, NR, len(c)):\n            tl.store", "p = address(P[k], strides[0], c, DIMS, k)\n        if has(DIMS, k, NS, NR) and has(DIMS, k, NR, len(c)):\n            tl.store"),
    Fault("sums of rows that do not exist", "matmul", "(m < nm) & (n < nn), SUMS)", "(m >= 0) & (n < nn), SUMS)"),
    Fault("sums of the results", "matmul", "acc, len(OUT), (m < nm)", "acc, 0, (m < nm)"),
    Fault("sums of batches in one row", "matmul", "(z * bm + pm,) + cn", "(z * 0 + pm,) + cn"),
)  # fmt: skip
