# ruff: noqa: E501 -- a fault a line
"""Generated cases of the rowwise skeleton, and faults that they must find."""

import random
from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tests.kernels.mutate import Fault
from tests.kernels.space import TYPES, flags, guarded, launch, strides, wrong
from weft.codegen.skeletons.common.elementwise import bits24
from weft.ir.formula import philox

FILES, CASES = ("rowwise", "pointwise"), 60
KINDS = ("layer", "rms", "softmax", "plain")
EPS, RATE, OP, LAYER = tl.constexpr(1e-5), 0.3, 5, 2
LEAST, SCALE = tl.constexpr(5033165), tl.constexpr(1 / 0.7)  # ceil(0.3 * 2^24)


@triton.jit
def kept(i, X):
    return bits24(tl.load(X[0]), 5, 2, i) >= LEAST


@triton.jit
def add(x, i, c, X):
    """Residual of the dropped-out branch: (branch, residual, ...) -> (sum, ...)."""
    return (tl.where(kept(i, X), x[0] * SCALE, 0.0) + x[1], x[2], x[3])


@triton.jit
def first(u, s, i, c, X):
    return (u[0],)


@triton.jit
def spread(u, s, i, c, X):
    d = u[0] - s[0] / X[1]
    return (d * d,)


@triton.jit
def square(u, s, i, c, X):
    return (u[0] * u[0],)


@triton.jit
def powers(u, s, i, c, X):
    return (tl.exp(u[0] - s[0]),)


@triton.jit
def layer_rows(s, c, X):
    return s[0] / X[1], 1.0 / tl.sqrt(s[1] / X[1] + EPS)


@triton.jit
def rms_rows(s, c, X):
    return s[0] * 0, 1.0 / tl.sqrt(s[0] / X[1] + EPS)


@triton.jit
def softmax_rows(s, c, X):
    return s[0], s[1]


@triton.jit
def layer(u, s, i, c, X):
    mean, rstd = layer_rows(s, c, X)
    return (u[0] - mean) * rstd * u[1] + u[2], u[0]


@triton.jit
def rms(u, s, i, c, X):
    return u[0] * rms_rows(s, c, X)[1] * u[1] + u[2], u[0]


@triton.jit
def plain(u, s, i, c, X):
    return u[0] * rms_rows(s, c, X)[1], u[0]


@triton.jit
def softmax(u, s, i, c, X):
    return tl.exp(u[0] - s[0]) / s[1], u[0]


# backward: x = (h, or y of softmax; dy, dh, w, row statistics 0 and 1); gradients of branch, residual, w and b


@triton.jit
def norm_products(u, s, i, c, X):
    h, dy, _, w, mean, rstd = u
    return dy * w, dy * w * (h - mean) * rstd


@triton.jit
def rms_product(u, s, i, c, X):
    return (norm_products(u, s, i, c, X)[1],)


@triton.jit
def softmax_product(u, s, i, c, X):
    return (u[1] * u[0],)


@triton.jit
def layer_vjp(u, s, i, c, X):
    h, dy, dh, w, mean, rstd = u
    unit = (h - mean) * rstd
    d = rstd * (dy * w - s[0] / X[1] - unit * s[1] / X[1]) + dh
    return tl.where(kept(i, X), d * SCALE, 0.0), d, dy * unit, dy


@triton.jit
def rms_vjp(u, s, i, c, X):
    h, dy, dh, w, _, rstd = u
    d = rstd * (dy * w - h * rstd * s[0] / X[1]) + dh
    return tl.where(kept(i, X), d * SCALE, 0.0), d, dy * h * rstd, dy


@triton.jit
def softmax_vjp(u, s, i, c, X):
    y, dy, dh = u[0], u[1], u[2]
    d = y * (dy - s[0]) + dh
    return tl.where(kept(i, X), d * SCALE, 0.0), d, dy, dy


@triton.jit
def weights(x, i, c, X):
    h, dy, _, _, mean, rstd = x
    return dy * (h - mean) * rstd, dy


@triton.jit
def same(x, i, c, X):
    return x


FORWARD = {
    "layer": ((first, spread), layer_rows, layer, (("sum",), ("sum",))),
    "rms": ((square,), rms_rows, rms, (("sum",),)),
    "plain": ((square,), rms_rows, plain, (("sum",),)),
    "softmax": ((first, powers), softmax_rows, softmax, (("max",), ("sum",))),
}
BACKWARD = {
    "layer": ((norm_products,), layer_vjp, (("sum", "sum"),)),
    "rms": ((rms_product,), rms_vjp, (("sum",),)),
    "plain": ((rms_product,), rms_vjp, (("sum",),)),
    "softmax": ((softmax_product,), softmax_vjp, (("sum",),)),
}


class Case:
    """A norm or softmax of a residual sum: its sizes, tiles and layouts from one seed."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64):
        rng = self.rng = random.Random(seed)
        self.seed, self.dtype = seed, dtype
        self.kind = KINDS[seed % 4]
        self.rows = "abc"[: rng.choice((1, 1, 2, 3))]
        self.columns = rng.choice(("x", "x", "x", "xy"))
        self.space = self.rows + self.columns
        self.sizes = {d: rng.choice((1, 2, 3, 5)) for d in self.space} | {"x": rng.choice((1, 7, 16, 33, 64, 100))}
        if self.columns == "xy":
            self.sizes["x"] = rng.choice((3, 8))
        self.n = prod(self.shape(self.columns))
        self.single = rng.random() < 0.6
        self.bm = rng.choice((1, 2, 4))
        self.bn = max(triton.next_power_of_2(self.n), 2) if self.single else rng.choice((8, 16, 32))
        self.index = rng.choice((tl.int32, tl.int64))
        torch.manual_seed(seed)
        amplitude = rng.choice((1.0, 1.0, 20.0))
        self.x, self.r = (
            torch.randn(self.shape(self.space), dtype=torch.float64).mul(amplitude).to(dtype) for _ in "xr"
        )
        self.r = self.r + rng.choice((0, -8)) * (self.kind == "softmax")  # also rows without a positive element
        self.w, self.b = (torch.randn(self.shape(self.columns), dtype=torch.float64).to(dtype) for _ in "wb")
        if self.kind in ("softmax", "plain"):
            self.w, self.b = torch.ones_like(self.w), torch.zeros_like(self.b)
        self.dy, self.dh = (torch.randn(self.shape(self.space), dtype=torch.float64).to(dtype) for _ in "yh")
        self.key = torch.tensor([rng.getrandbits(63) - 2**62])

    def shape(self, dims: str) -> tuple[int, ...]:
        return tuple(self.sizes[d] for d in dims)

    def tensor(self, dims: str, value: Any = None, dtype: torch.dtype | None = None) -> Tensor:
        return guarded(self.rng, self.shape(dims), dtype or self.dtype, value)

    @property
    def wide(self) -> torch.dtype:
        """The accumulator's dtype."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def reference(self, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        """(y, h), and the gradients of the branch, the residual, w and b."""
        x, r, w, b = (v.to(dtype).requires_grad_() for v in (self.x, self.r, self.w, self.b))
        i = torch.arange(x.numel()).view(x.shape)
        h = torch.where(philox.uniform(self.key[0], OP, LAYER, i) >= RATE * 2**24, x / (1 - RATE), 0.0) + r
        flat, left = h.flatten(len(self.rows)), (w.flatten(), b.flatten())
        if self.kind == "layer":
            y = torch.nn.functional.layer_norm(flat, (self.n,), *left, eps=EPS.value)
        elif self.kind == "softmax":
            y = flat.softmax(-1) * left[0] + left[1]
        else:
            y = torch.nn.functional.rms_norm(flat, (self.n,), left[0], eps=EPS.value) + left[1]
        y = y.view(h.shape)
        grads = torch.autograd.grad([y, h], [x, r, w, b], [self.dy.to(dtype), self.dh.to(dtype)])
        return [y.detach(), h.detach()], list(grads)

    def launch(self, module: Any, programs: int, ins: Any, outs: Any, rows: Any, sums: Any, *holes: Any) -> None:
        """One launch; operands are (tensor, dims); holes: pre, stages, finish, body, kinds."""
        space = (self.space, self.space, self.rows, "@" + self.columns)
        tensors = [z for s, o in zip(space, (ins, outs, rows, sums)) for z in (tuple(t for t, _ in o), strides(s, *o))]
        dims = [flags(s, *(d for _, d in o)) for s, o in zip(space, (ins, outs, rows, sums))]
        launch(
            module.rowwise, (programs,), *tensors, self.shape(self.space), (self.key, self.n), *holes, *dims,
            NR=len(self.rows), SINGLE=self.single, BM=self.bm, BN=self.bn, ACC=TYPES[self.dtype], IDX=self.index,
            seed=self.seed,
        )  # fmt: skip

    def forward(self, module: Any) -> tuple[Tensor, ...]:
        """y, h and the two row statistics."""
        ins = [
            (self.tensor(d, v), d)
            for v, d in zip((self.x, self.r, self.w, self.b), (self.space,) * 2 + (self.columns,) * 2)
        ]
        y, h = self.tensor(self.space), self.tensor(self.space)
        rows = [(self.tensor(self.rows, dtype=self.wide), self.rows) for _ in "01"]
        stages, finish, body, kinds = FORWARD[self.kind]
        blocks = triton.cdiv(prod(self.shape(self.rows)), self.bm)
        outs = [(y, self.space), (h, self.space)]
        self.launch(module, blocks, ins, outs, rows, [], add, stages, finish, body, kinds)
        return y, h, rows[0][0], rows[1][0]

    def backward(self, modules: Any, h: Tensor, *rows: Tensor) -> list[Tensor]:
        """Gradients of the branch, the residual, w and b: the last two in the same launch where a row is one tile."""
        full = [(self.tensor(self.space, v), self.space) for v in (h, self.dy, self.dh)]
        ins = [*full, (self.tensor(self.columns, self.w), self.columns), *((t, self.rows) for t in rows)]
        dx, dr = self.tensor(self.space), self.tensor(self.space)
        blocks = triton.cdiv(prod(self.shape(self.rows)), self.bm)
        programs = self.rng.choice((1, 2, 3)) if self.single else blocks
        self.sizes["@"] = programs if self.single else 1
        sums = [(self.tensor("@" + self.columns, dtype=self.wide), "@" + self.columns) for _ in "wb"]
        stages, body, kinds = BACKWARD[self.kind]
        outs = [(dx, self.space), (dr, self.space)]
        self.launch(
            modules.rowwise, programs, ins, outs, [], sums if self.single else [], None, stages, None, body, kinds
        )
        if not self.single:
            self.reduce(modules.pointwise, self.space, len(self.rows), ins, sums, weights)
        if self.sizes["@"] > 1:
            parts, self.sizes["@"] = sums, 1
            sums = [(self.tensor("@" + self.columns), "@" + self.columns) for _ in "wb"]
            self.sizes["@"] = programs
            self.reduce(modules.pointwise, "@" + self.columns, 1, parts, sums, same)
        return [dx, dr, sums[0][0][0], sums[1][0][0]]

    def reduce(self, module: Any, space: str, rows: int, ins: Any, sums: Any, body: Any) -> None:
        """Both sums over rows, in one slab."""
        own = "@" + self.columns
        launch(
            module.reduce_rows, (triton.cdiv(self.n, 16), 1), tuple(t for t, _ in ins), strides(space, *ins), (), (),
            tuple(t for t, _ in sums), strides(own, *sums), self.shape(space), (self.key, self.n), body, None,
            ("sum", "sum"), flags(space, *(d for _, d in ins)), (), flags(own, own, own), NR=rows, BM=self.bm, BN=16,
            ACC=TYPES[self.dtype], IDX=self.index, seed=self.seed,
        )  # fmt: skip

    def statistics(self, h: Tensor) -> list[Tensor]:
        """The two values per row that the forward stores."""
        h = h.flatten(len(self.rows))
        if self.kind == "softmax":
            top = h.amax(-1)
            return [top, (h - top[..., None]).exp().sum(-1)]
        mean = h.mean(-1) if self.kind == "layer" else torch.zeros(h.shape[:-1], dtype=h.dtype)
        return [mean, ((h - mean[..., None]) ** 2).mean(-1).add(EPS.value).rsqrt()]

    def run(self, modules: Any, rows: list[Tensor] | None = None) -> list[Tensor]:
        """Everything that `reference` gives; the row statistics into `rows`."""
        y, *saved = self.forward(modules.rowwise)
        if rows is not None:
            rows += saved[1:]
        return [y, saved[0], *self.backward(modules, y if self.kind == "softmax" else saved[0], *saved[1:])]


def case(modules: Any, seed: int) -> str:
    """What is wrong in one generated case, "" for nothing."""
    this = Case(seed)
    results, grads = this.reference(torch.float64)
    rows: list[Tensor] = []
    got = this.run(modules, rows)
    shown = 4 if this.kind in ("softmax", "plain") else 6  # those have no w and b
    pairs = [*zip([*results, *grads][:shown], got), *zip(this.statistics(results[1]), rows)]
    return "; ".join(filter(None, (wrong(g, t) for t, g in pairs)))


FAULTS = (
    Fault("rows of a block collapse", "rowwise", "r = tl.cast(block, IDX) * BM + tl.arange(0, BM)", "r = tl.cast(block, IDX) * BM + 0 * tl.arange(0, BM)"),
    Fault("rows of a block collapse, chunks", "rowwise", "r = tl.cast(block, IDX) * BM + tl.arange(0, BM)", "r = tl.cast(block, IDX) * BM + 0 * tl.arange(0, BM)", 1),
    Fault("what is not loaded is reduced", "rowwise", "r * nc + k, (r < nr) & (k < nc)", "r * nc + k, (r < nr) & (k < BN)"),
    Fault("place without its row", "rowwise", "r * nc + k, (r", "r + k, (r"),
    Fault("place without its row, chunks", "rowwise", "len(SIZES)), r * nc + k\n            u", "len(SIZES)), r + k\n            u"),
    Fault("every stage is the first", "rowwise", "stages[t](u, s, i, c, X), 0, ok, entry", "stages[0](u, s, i, c, X), 0, ok, entry"),
    Fault("the first stage alone", "rowwise", "s = s + along(v, 1, entry(KINDS, t))\n    if", "s = s + along(v, 1, entry(KINDS, 0))\n    if"),
    Fault("no prologue", "rowwise", "if pre is not None:", "if pre is None:"),
    Fault("prologue twice", "rowwise", "x = pre(x, i, c, X)", "x = pre(pre(x, i, c, X) + x[3:], i, c, X)"),
    Fault("row statistics of another row", "rowwise", "store(ROW, row_strides, finish(s, cr, X), cr,", "store(ROW, row_strides, finish(s, cr, X), coordinates(r // 2, SIZES, 0, NR),"),
    Fault("row statistics with the results' strides", "rowwise", "store(ROW, row_strides", "store(ROW, out_strides"),
    Fault("a chunk left out of a stage", "rowwise", "for n in tl.range(0, tl.cdiv(nc, BN)):", "for n in tl.range(0, nc // BN):"),
    Fault("first chunk left out of the body", "rowwise", "for n in tl.range(0, tl.cdiv(nc, BN)):", "for n in tl.range(1, tl.cdiv(nc, BN)):", 1),
    Fault("chunks overlap", "rowwise", "k = n * BN + tl", "k = n * (BN - 1) + tl"),
    Fault("chunked reduction not masked", "rowwise", "0, (r < nr) & (k < nc), entry", "0, (r < nr) & (k < nc + BN), entry"),
    Fault("programs share blocks", "rowwise", "tl.range(p, tl.cdiv", "tl.range(0, tl.cdiv"),
    Fault("blocks left out", "rowwise", "BM), tl.num_programs(0)):", "BM) - 1, tl.num_programs(0)):"),
    Fault("sums of the last block only", "rowwise", "return gather_in(sums, y, len(OUT), ok, SUMS)", "return gather_in(nothings([BM, BN], SUMS, ACC), y, len(OUT), ok, SUMS)"),
    Fault("sums of the results", "rowwise", "return gather_in(sums, y, len(OUT), ok, SUMS)", "return gather_in(sums, y, 0, ok, SUMS)"),
    Fault("partial sums in one row", "rowwise", "(p,) + ck, True", "(p * 0,) + ck, True"),
    Fault("a maximum from 0", "common/operands", 'float("-inf"), ACC', "0.0, ACC"),
    Fault("a maximum not masked", "common/operands", 'tl.maximum(so_far[k], tl.where(ok, y[first + k], float("-inf")))', "tl.maximum(so_far[k], y[first + k])"),
    Fault("a sum as a maximum", "common/operands", 'if KINDS[k] == "sum":\n            out = out + (tl.sum(x[k]', 'if KINDS[k] == "sum":\n            out = out + (tl.max(x[k]'),
)  # fmt: skip
