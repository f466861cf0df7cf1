"""Generated cases of the pointwise skeleton, and faults that they must find."""

import random
from math import prod
from typing import Any

import torch
import triton
import triton.language as tl

from tests.kernels.mutate import Fault
from tests.kernels.space import TYPES, fit, flags, guarded, launch, strides, wrong
from weft.codegen.skeletons.common.elementwise import bits24, gelu_tanh, gelu_tanh_grad
from weft.ir.formula import philox

RATE, OP, LAYER = 0.3, 5, 2
LEAST, SCALE = tl.constexpr(5033165), tl.constexpr(1 / 0.7)  # ceil(0.3 * 2^24)
DIMS = "abcd"
FILES, CASES = ("pointwise",), 60


@triton.jit
def kept(c, X):
    """Dropout's bit: the logical place does not depend on how the space is walked. X: seed, places of the dims."""
    place = tl.full([1, 1], 0, tl.int64)
    for d in tl.static_range(len(c)):
        place = place + c[d] * X[1][d]
    return bits24(tl.load(X[0]), 5, 2, place) >= LEAST


@triton.jit
def chain(x, i, c, X):
    """Bias, activation, dropout, residual: of (x, b, r) the result and the value before the activation."""
    h = x[0] + x[1]
    return tl.where(kept(c, X), gelu_tanh(h) * SCALE, 0.0) + x[2], h


@triton.jit
def chain_vjp(x, i, c, X):
    """(x, b, dy, dh) -> gradients of x (and b) and of r."""
    return tl.where(kept(c, X), gelu_tanh_grad(x[0] + x[1]) * SCALE, 0.0) * x[2] + x[3], x[2]


@triton.jit
def first_vjp(x, i, c, X):
    return (chain_vjp(x, i, c, X)[0],)


@triton.jit
def second_vjp(x, i, c, X):
    return (chain_vjp(x, i, c, X)[1],)


@triton.jit
def both(x, i, c, X):
    """Stores what it also reduces."""
    y = chain_vjp(x, i, c, X)
    return y[0], y[1], y[0]


@triton.jit
def extremes(x, i, c, X):
    """Nothing is 0 where nothing was loaded."""
    v = x[0] * x[0] + 1.5
    return v, -v, v


@triton.jit
def halved(s, c, X):
    return s[0] * 0.5, s[1], s[2]


@triton.jit
def same(x, i, c, X):
    return x


class Case:
    """Sizes, which dims each of x, b, r has, tiles, layouts: everything from one seed."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64):
        rng = self.rng = random.Random(seed)
        self.seed, self.dtype = seed, dtype
        self.space = DIMS[: rng.choice((1, 2, 3, 4))]
        self.sizes = {d: rng.choice((1, 2, 3, 5)) for d in self.space[:-1]}
        self.sizes[self.space[-1]] = rng.choice((1, 3, 16, 17, 33))
        self.dims = [self.space, *("".join(d for d in self.space if rng.random() < 0.6) for _ in "br")]
        self.tiles = {"BM": rng.choice((1, 2, 4, 8)), "BN": rng.choice((8, 16, 32, 64))}
        while prod(self.sizes.values()) > 16 * prod(self.tiles.values()):  # the interpreter's time goes by programs
            self.tiles = {k: 2 * v for k, v in self.tiles.items()}
        self.index = rng.choice((tl.int32, tl.int64))
        self.places = {d: prod(self.sizes[e] for e in self.space[z + 1 :]) for z, d in enumerate(self.space)}
        torch.manual_seed(seed)
        self.values = [torch.randn(self.shape(d), dtype=torch.float64).to(dtype) for d in self.dims]
        self.dy, self.dh = (torch.randn(self.shape(self.space), dtype=torch.float64).to(dtype) for _ in "yh")
        self.key = torch.tensor([rng.getrandbits(63) - 2**62])

    def shape(self, dims: str) -> tuple[int, ...]:
        return tuple(self.sizes[d] for d in dims)

    def tensor(self, dims: str, value: Any = None, dtype: torch.dtype | None = None) -> Any:
        return guarded(self.rng, self.shape(dims), dtype or self.dtype, value)

    def reference(self, dtype: torch.dtype) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Results and gradients of x, b and r."""
        x, b, r = (v.to(dtype).requires_grad_() for v in self.values)
        i = torch.arange(prod(self.shape(self.space))).view(self.shape(self.space))
        keep = philox.uniform(self.key[0], OP, LAYER, i) >= RATE * 2**24
        h = fit(x, self.dims[0], self.space) + fit(b, self.dims[1], self.space)
        act = torch.nn.functional.gelu(h, approximate="tanh") / (1 - RATE)
        y = torch.where(keep, act, 0.0) + fit(r, self.dims[2], self.space)
        grads = torch.autograd.grad([y, h], [x, b, r], [self.dy.to(dtype), self.dh.to(dtype)])
        return [y.detach(), h.detach()], list(grads)

    def launch(
        self, kernel: Any, grid: Any, space: str, ins: Any, outs: Any, sums: Any, rows: int, body: Any, **k: Any
    ):
        """One launch over the dims of `space` in that order; operands are (tensor, dims)."""
        sizes = self.shape(space)
        extra = (tuple(t for t, _ in sums), strides("@" + space[rows:], *sums)) if kernel is not None and sums else ()
        constants = {"IN_DIMS": flags(space, *(d for _, d in ins)), "OUT_DIMS": ((1,) * len(space),) * len(outs)}
        if sums:
            constants["SUM_DIMS"] = flags("@" + space[rows:], *(d for _, d in sums))
        X = (self.key, tuple(self.places.get(d, 0) for d in space))
        tiles = self.tiles if rows else self.tiles | {"BM": 1}
        tensors = tuple(t for t, _ in ins), strides(space, *ins), tuple(t for t, _ in outs), strides(space, *outs)
        launch(
            kernel, grid, *tensors, *extra, sizes, X, body, **constants, NR=rows, **tiles, **k,
            ACC=TYPES[self.dtype], IDX=self.index, seed=self.seed,
        )  # fmt: skip

    def forward(self, module: Any) -> list[torch.Tensor]:
        y, h = self.tensor(self.space), self.tensor(self.space)
        rows = self.rng.randrange(len(self.space))
        n, m = prod(self.shape(self.space[:rows])), prod(self.shape(self.space[rows:]))
        ins = [(self.tensor(d, v), d) for v, d in zip(self.values, self.dims)]
        grid = (triton.cdiv(n, self.tiles["BM"] if rows else 1) * triton.cdiv(m, self.tiles["BN"]),)
        self.launch(module.pointwise, grid, self.space, ins, [(y, self.space), (h, self.space)], [], rows, chain)
        return [y, h]

    def backward(self, module: Any) -> list[torch.Tensor]:
        """dx by a map, db and dr by reductions over the dims that b and r lack, in two launches."""
        full = [(self.tensor(self.space, v), self.space) for v in (self.dy, self.dh)]
        ins = [*((self.tensor(d, v), d) for v, d in zip(self.values[:2], self.dims)), *full]
        dx = self.tensor(self.space)
        grads = []
        for n, body in ((1, first_vjp if self.seed % 2 else both), (2, second_vjp)):
            own = self.dims[n] or "1"
            space = "".join(d for d in self.space if d not in own) + own
            grads.append(self.reduced(module, space, own, ins, dx if body is both else None, body, n))
        if not self.seed % 2:
            return [dx, *grads]
        rows = len(self.space) - 1
        n, m = prod(self.shape(self.space[:rows])), self.sizes[self.space[-1]]
        grid = (triton.cdiv(n, self.tiles["BM"] if rows else 1) * triton.cdiv(m, self.tiles["BN"]),)
        self.launch(module.pointwise, grid, self.space, ins, [(dx, self.space)], [], rows, first_vjp)
        return [dx, *grads]

    def reduced(self, module: Any, space: str, own: str, ins: Any, dx: Any, body: Any, n: int) -> torch.Tensor:
        """The reduction over the dims of `space` before `own`, with partial results."""
        self.sizes |= {"1": 1, "@": self.rng.choice((1, 2, 5))}
        rows, slabs = len(space) - len(own), self.sizes["@"]
        part = [
            (
                self.tensor("@" + own, dtype=torch.float64 if TYPES[self.dtype] == tl.float64 else torch.float32),
                "@" + own,
            )
        ]
        out = [(self.tensor("@" + own)[:1], "@" + own)]
        outs, kinds = [] if dx is None else [(dx, self.space)], ("sum",)
        if body is both:
            part, kinds = [(torch.empty_like(part[0][0]), "@" + own), *part], ("sum", "sum")
        blocks = triton.cdiv(prod(self.shape(own)), self.tiles["BN"])
        more = {"after": None, "KINDS": kinds}
        self.launch(module.reduce_rows, (blocks, slabs), space, ins, outs, part, rows, body, **more)
        self.launch(
            module.reduce_rows, (blocks, 1), "@" + own, part[-1:], [], out, 1, same, **(more | {"KINDS": ("sum",)})
        )
        return out[0][0][0].reshape(self.shape(self.dims[n]))

    def extremes(self, module: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Sum, maximum and minimum of x² + 1.5 over the dims that b lacks, and what they should be."""
        own = self.dims[1] or "1"
        self.sizes |= {"1": 1, "@": 1}
        space = "".join(d for d in self.space if d not in own) + own
        outs = [(self.tensor("@" + own), "@" + own) for _ in range(3)]
        blocks = triton.cdiv(prod(self.shape(own)), self.tiles["BN"])
        ins, kinds = [(self.tensor(self.space, self.values[0]), self.space)], ("sum", "max", "min")
        more = {"after": halved, "KINDS": kinds}
        self.launch(module.reduce_rows, (blocks, 1), space, ins, [], outs, len(space) - len(own), extremes, **more)
        lacking = [z for z, d in enumerate(self.space) if d not in own]
        v = self.values[0] ** 2 + 1.5
        if not lacking:
            return [t[0] for t, _ in outs], [v / 2, -v, v]
        want = [v.sum(lacking) / 2, -v.amin(lacking), v.amin(lacking)]
        return [t[0].reshape(w.shape) for (t, _), w in zip(outs, want)], want


def case(modules: Any, seed: int) -> str:
    """What is wrong in one generated case, "" for nothing."""
    this = Case(seed)
    results, grads = this.reference(torch.float64)
    got, (more, want) = (
        [*this.forward(modules.pointwise), *this.backward(modules.pointwise)],
        this.extremes(modules.pointwise),
    )
    pairs = zip([*got, *more], [*results, *grads, *want], strict=True)
    return "; ".join(filter(None, (wrong(g, w) for g, w in pairs)))


FAULTS = (
    Fault(
        "coordinates from the wrong side",
        "common/operands",
        "out = (i % SIZES[last - 1 - k],) + out",
        "out = (i % SIZES[first + k],) + out",
    ),
    Fault(
        "sizes without the first dim",
        "common/operands",
        "for d in tl.static_range(first, last):\n        n = n",
        "for d in tl.static_range(first + 1, last):\n        n = n",
    ),
    Fault(
        "strides from the wrong side",
        "common/operands",
        "P = P + c[d] * strides[d]",
        "P = P + c[d] * strides[len(c) - 1 - d]",
    ),
    Fault("columns unmasked where both", "common/operands", "mask=ok_r & ok_c, other=0)", "mask=ok_r & ok_r, other=0)"),
    Fault("columns unmasked", "common/operands", "return tl.load(p, mask=ok_c, other=0)", "return tl.load(p)"),
    Fault(
        "row operands lost",
        "common/operands",
        "return tl.load(p, mask=ok_r, other=0)",
        "return tl.load(p, mask=ok_r, other=0) * 0",
    ),
    Fault(
        "rows unmasked in stores",
        "common/operands",
        "y[k].to(P[k].dtype.element_ty), mask=ok_r & ok_c)",
        "y[k].to(P[k].dtype.element_ty), mask=ok_c)",
    ),
    Fault(
        "first value for every row result",
        "common/operands",
        "y[k].to(P[k].dtype.element_ty), mask=ok_c)",
        "y[0].to(P[k].dtype.element_ty), mask=ok_c)",
    ),
    Fault(
        "what is not loaded is summed",
        "common/operands",
        "so_far[k] + tl.where(ok, y[first + k], 0.0)",
        "so_far[k] + y[first + k]",
    ),
    Fault(
        "sums take the outputs",
        "common/operands",
        "so_far[k] + tl.where(ok, y[first + k], 0.0)",
        "so_far[k] + tl.where(ok, y[k], 0.0)",
    ),
    Fault("operands through fp32", "common/operands", "x = x.to(ACC)", "x = x.to(tl.float32).to(ACC)"),
    Fault(
        "what is not loaded counts in a maximum",
        "common/operands",
        'tl.where(ok, y[first + k], float("-inf"))',
        "y[first + k]",
    ),
    Fault("minimum starts at -inf", "common/operands", 'float("inf"), ACC', 'float("-inf"), ACC'),
    Fault("after is not applied", "pointwise", "s = after(s, ck, X)", "s = s"),
    Fault("blocks of rows, not columns", "pointwise", "blocks = tl.cdiv(nc, BN)", "blocks = tl.cdiv(nr, BN)"),
    Fault(
        "results with the operands' strides",
        "pointwise",
        "store(OUT, out_strides, y, c, r < nr, k < nc",
        "store(OUT, in_strides, y, c, r < nr, k < nc",
    ),
    Fault(
        "rows of a block collapse",
        "pointwise",
        "tl.arange(0, BM)[:, None].to(IDX)\n    k",
        "tl.arange(0, BM)[:, None].to(IDX) * 0\n    k",
    ),
    Fault(
        "a slab skips blocks", "pointwise", "for b in tl.range(slab * share,", "for b in tl.range(slab * share + slab,"
    ),
    Fault("the last row block is left out", "pointwise", "tl.cdiv(nr, BM))):", "nr // BM)):"),
    Fault(
        "rows of slabs rounded down",
        "pointwise",
        "share = tl.cdiv(tl.cdiv(nr, BM), slabs)",
        "share = tl.cdiv(nr, BM) // slabs",
    ),
    Fault("reduced along the wrong axis", "pointwise", "s = along(s, 0, KINDS)", "s = along(s, 1, KINDS)"),
    Fault("slabs write one row", "pointwise", "s, (slab,) + ck, True", "s, (slab * 0,) + ck, True"),
)
