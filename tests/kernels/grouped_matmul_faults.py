# ruff: noqa: E501 -- a fault a line
"""Generated cases of the grouped matmul skeleton, a layer of experts forward and backward, and faults they must find."""

import random
from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tests.kernels.mutate import Fault
from tests.kernels.space import TYPES, flags, guarded, launch, strides, wrong
from weft.codegen.skeletons.common.elementwise import gelu_tanh, gelu_tanh_grad

FILES, CASES = ("grouped_matmul",), 60
DOTS = {torch.float64: tl.float64, torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
Operand = tuple[Tensor, str]


@triton.jit
def ratio(x, i, c, X):
    """No number where nothing was loaded."""
    return x[0] / x[1]


@triton.jit
def gated(acc, e, i, c, X):
    return gelu_tanh(acc[0]) * acc[1], acc[0], acc[1]


@triton.jit
def product(x, i, c, X):
    return x[0] * x[1]


@triton.jit
def one_factor(x, i, c, X):
    return (x[0] * x[1] + 0.0 / x[1],)


@triton.jit
def gated_vjp(acc, e, i, c, X):
    gate, up = e[0], e[1]
    return acc[0] * up * gelu_tanh_grad(gate), acc[0] * gelu_tanh(gate)


@triton.jit
def plus(acc, e, i, c, X):
    return (acc[0] + e[0],)


@triton.jit
def weighted(s, x, c, X):
    return s[0] * x[0]


@triton.jit
def residual(v, x, i, c, X):
    """Stored with the place, so that the place is tested too."""
    return v + x[0], v * 0 + (i % 7).to(v.dtype)


class Case:
    """Sizes, a routing with overflowing and empty queues, tiles and layouts, all from one seed."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64):
        rng = self.rng = random.Random(seed)
        self.seed, self.dtype = seed, dtype
        self.b, self.j = rng.choice(("b", "b", "")), rng.choice(("", "j"))
        self.w, self.h = rng.choice(("w", "w", "vw")), rng.choice(("h", "h", "gh"))
        self.t = "t" + self.j
        self.sizes = {
            "b": rng.choice((1, 2, 3)),
            "t": rng.choice((1, 7, 20)),
            "j": 2,
            "e": rng.choice((1, 3, 4)),
            "c": rng.choice((1, 3, 18)),
        }
        self.sizes |= {"v": 2, "w": rng.choice((1, 9, 16, 33)), "g": 3, "h": rng.choice((1, 7, 16, 20))}
        self.bm, self.bn, self.bk, self.group = (rng.choice(c) for c in ((16, 32), (16, 32), (16, 32), (1, 2, 4)))
        self.index = rng.choice((tl.int32, tl.int64))
        torch.manual_seed(seed)
        self.expert = torch.randint(self.sizes["e"], self.shape(self.b + self.t))
        if self.sizes["e"] > 1 and rng.random() < 0.4:
            self.expert.clamp_(max=self.sizes["e"] - 2)  # an expert without tokens
        self.place = self.queue()
        self.x, self.r, self.dy = (self.draw(self.b + "t" + self.w) for _ in "xry")
        self.s = self.draw(self.w).abs() + 1
        self.gate = self.draw(self.b + self.t).abs() + 0.5
        self.wg, self.wu = (self.draw("e" + self.w + self.h) for _ in "gu")
        self.wd = self.draw("e" + self.h + self.w)

    def queue(self) -> Tensor:
        """Each choice's place in its expert's queue, of its own batch row."""
        flat = self.expert.reshape(prod(self.shape(self.b)), -1)
        hot = torch.nn.functional.one_hot(flat, self.sizes["e"])
        return ((hot.cumsum(1) - 1) * hot).sum(-1).view(self.expert.shape)

    def draw(self, dims: str) -> Tensor:
        return torch.randn(self.shape(dims), dtype=torch.float64).to(self.dtype)

    def shape(self, dims: str) -> tuple[int, ...]:
        return tuple(self.sizes[d] for d in dims)

    def tensor(self, dims: str, value: Tensor | None = None, dtype: torch.dtype | None = None) -> Operand:
        """Any dim may be the contiguous one."""
        order = "".join(self.rng.sample(dims, len(dims)))
        value = None if value is None else value.permute([dims.index(d) for d in order])
        return guarded(self.rng, self.shape(order), dtype or self.dtype, value), order

    def ordered(self, operand: Operand, dims: str) -> Tensor:
        return operand[0].permute([operand[1].index(d) for d in dims])

    def reference(self, dtype: torch.dtype) -> list[Tensor]:
        """y; gradients of the gated inputs' slots, of the three weights, and of x divided by s."""
        b, w, h = self.b, self.w, self.h
        xs = (self.x.to(dtype) / self.s.to(dtype)).requires_grad_()
        wg, wu, wd = (v.to(dtype).requires_grad_() for v in (self.wg, self.wu, self.wd))
        n, c = self.sizes["e"], self.sizes["c"]
        slot = torch.nn.functional.one_hot(self.expert * c + self.place.clamp(max=c - 1), n * c).to(dtype)
        slot = (slot * (self.place < c)[..., None]).unflatten(-1, (n, c))  # [b t j e c]
        sent = torch.einsum(f"{b}{self.t}ec,{b}t{w}->{b}ec{w}", slot, xs)
        gate, up = (torch.einsum(f"{b}ec{w},e{w}{h}->{b}ec{h}", sent, v) for v in (wg, wu))
        hidden = torch.nn.functional.gelu(gate, approximate="tanh") * up
        down = torch.einsum(f"{b}ec{h},e{h}{w}->{b}ec{w}", hidden, wd)
        back = torch.einsum(f"{b}{self.t}ec,{b}ec{w}->{b}{self.t}{w}", slot, down)
        y = torch.einsum(f"{b}{self.t}{w},{b}{self.t}->{b}t{w}", back, self.gate.to(dtype)) + self.r.to(dtype)
        grads = torch.autograd.grad(y, [gate, up, wg, wu, wd, xs], self.dy.to(dtype))
        return [y.detach(), *grads]

    def front(self, spaces: Any, groups: Any) -> tuple[list[Any], list[Any]]:
        """Pointers and strides of groups of operands, and their DIMS."""
        tensors = [v for s, o in zip(spaces, groups) for v in (tuple(t for t, _ in o), strides(s, *o))]
        return tensors, [flags(s, *(d for _, d in o)) for s, o in zip(spaces, groups)]

    def common(self) -> dict[str, Any]:
        return {"ACC": TYPES[self.dtype], "IDX": self.index, "seed": self.seed}

    def tiles(self) -> dict[str, Any]:
        r, t = 2 + len(self.b), 2 + len(self.b + self.t)
        tiles = {
            "GROUP": self.group,
            "BM": self.bm,
            "BN": self.bn,
            "BK": self.bk,
            "DOT": DOTS[self.dtype],
            "PREC": "ieee",
        }
        return self.common() | tiles | {"NR": r, "NT": t}

    def product(self, modules: Any, n: str, k: str, ins: Any, ws: Any, es: Any, outs: Any, pro: Any, epi: Any) -> None:
        """One grouped product over slots."""
        slot = "e" + self.b + "c" + self.t
        spaces = (slot + k, "e" + k + n, slot + n, slot + n)
        tensors, dims = self.front(spaces, (ins, ws, es, outs))
        rows = triton.cdiv(prod(self.shape(self.b + "c")), self.bm)
        grid = (self.sizes["e"] * rows * triton.cdiv(prod(self.shape(n)), self.bn),)
        launch(
            modules.grouped_matmul.grouped_matmul, grid, self.token[0], strides(slot, self.token)[0], *tensors,
            self.shape(slot + n + k), (), pro, epi, flags(slot, self.token[1]), *dims,
            NN=len(slot + n), **self.tiles(),
        )  # fmt: skip

    def weights(self, modules: Any, m: str, n: str, ins: Any, ds: Any, outs: Any, pro: Any, fac: Any) -> None:
        slot = "e" + self.b + "c" + self.t
        tensors, dims = self.front((slot + m, slot + n, "e" + m + n), (ins, ds, outs))
        blocks = triton.cdiv(prod(self.shape(m)), self.bm) * triton.cdiv(prod(self.shape(n)), self.bn)
        launch(
            modules.grouped_matmul.grouped_weights, (self.sizes["e"] * blocks,), self.token[0],
            strides(slot, self.token)[0], *tensors, self.shape(slot + m + n), (), pro, fac,
            flags(slot, self.token[1]), *dims, NN=len(slot + m), **self.tiles(),
        )  # fmt: skip

    def gathered(self, modules: Any, source: Operand, per: Any, ins: Any, outs: Any, term: Any, body: Any) -> None:
        """The sum over choices of what a token's slots hold."""
        token, choice = self.b + "t" + self.w, self.b + "t" + "j" + self.w
        routes = [(self.tensor(self.b + self.t, v, torch.int64)) for v in (self.expert, self.place)]
        spaces = (choice, choice, "e" + self.b + "c" + self.w, choice, token, token)
        tensors, dims = self.front(spaces, ([routes[0]], [routes[1]], [source], per, ins, outs))
        grid = (triton.cdiv(prod(self.shape(self.b + "t")), 4) * triton.cdiv(prod(self.shape(self.w)), 16),)
        launch(
            modules.grouped_matmul.gather_sum, grid, *tensors, self.shape(token), self.sizes["e"], self.sizes["c"], (),
            term, body, *dims[1:], CHOICES=self.sizes["j"] if self.j else 1, NB=len(self.b), NR=len(self.b) + 1,
            BM=4, BN=16, **self.common(),
        )  # fmt: skip

    def route(self, modules: Any) -> None:
        """The tokens of the slots."""
        slot = "e" + self.b + "c"
        space = self.b + self.t
        self.token = self.tensor(slot, torch.full(self.shape(slot), -1), torch.int32)
        routes = [self.tensor(space, v, torch.int64) for v in (self.expert, self.place)]
        place = tuple(self.token[0].stride(self.token[1].index(d)) for d in slot)
        launch(
            modules.grouped_matmul.slots, (triton.cdiv(self.expert.numel(), 8),), (routes[0][0],), strides(space, routes[0]),
            (routes[1][0],), strides(space, routes[1]), self.token[0], place, self.shape(space), self.sizes["e"],
            self.sizes["c"], flags(space, space), NB=len(self.b), BM=8, IDX=self.index, seed=self.seed,
        )  # fmt: skip

    def run(self, modules: Any) -> list[Tensor]:
        """What `reference` gives; slots without a token are left out of the gradients of slots."""
        b, t, w, h = self.b, self.t, self.w, self.h
        self.route(modules)
        of_slots, of_hidden = "e" + b + "c" + w, "e" + b + "c" + h
        x = [self.tensor(b + "t" + w, self.x), self.tensor(w, self.s)]
        wg, wu, wd = (self.tensor("e" + d, v) for v, d in ((self.wg, w + h), (self.wu, w + h), (self.wd, h + w)))
        hidden, gate, up = (self.tensor(of_hidden) for _ in range(3))
        self.product(modules, h, w, x, [wg, wu], [], [hidden, gate, up], ratio, gated)
        down = self.tensor(of_slots)
        self.product(modules, w, h, [hidden], [wd], [], [down], None, None)
        y, places = self.tensor(b + "t" + w), self.tensor(b + "t" + w)
        gates = self.tensor(b + t, self.gate)
        self.gathered(modules, down, [gates], [self.tensor(b + "t" + w, self.r)], [y, places], weighted, residual)
        dy = [self.tensor(b + "t" + w, self.dy), gates]
        dgate, dup = self.tensor(of_hidden), self.tensor(of_hidden)
        self.product(modules, h, w, dy, [wd], [gate, up], [dgate, dup], product, gated_vjp)
        dwg, dwu, dwd = self.tensor("e" + w + h), self.tensor("e" + w + h), self.tensor("e" + h + w)
        self.weights(modules, w, h, x, [dgate, dup], [dwg, dwu], ratio, None)
        self.weights(modules, h, w, [hidden], dy, [dwd], None, one_factor)
        part, total, dx = self.tensor(of_slots), self.tensor(of_slots), self.tensor(b + "t" + w)
        self.product(modules, w, h, [dgate], [wg], [], [part], None, None)
        self.product(modules, w, h, [dup], [wu], [part], [total], None, plus)
        self.gathered(modules, total, [], [], [dx], None, None)
        assert torch.equal(
            self.ordered(places, b + "t" + w).double(), torch.arange(self.x.numel()).view(self.x.shape).double() % 7
        )
        order = b + "ec"
        got = [self.ordered(v, order + h) for v in (dgate, dup)]
        return [
            self.ordered(y, b + "t" + w),
            *got,
            self.ordered(dwg, "e" + w + h),
            self.ordered(dwu, "e" + w + h),
            self.ordered(dwd, "e" + h + w),
            self.ordered(dx, b + "t" + w),
        ]


def case(modules: Any, seed: int) -> str:
    """What is wrong in one generated case, "" for nothing."""
    this = Case(seed)
    pairs = zip(this.run(modules), this.reference(torch.float64), strict=True)
    return "; ".join(filter(None, (wrong(g, w) for g, w in pairs)))


FAULTS = (
    Fault("tokens counted across batches", "grouped_matmul", "(r % nt).to(TOKEN.dtype.element_ty)", "r.to(TOKEN.dtype.element_ty)"),
    Fault("tokens past the capacity sent", "grouped_matmul", "(place >= 0) & (place < capacity)\n    tl.store", "(place >= 0)\n    tl.store"),
    Fault("batch rows share slots", "grouped_matmul", "p += c[d] * token_strides[1 + d]", "p += 0 * c[d] * token_strides[1 + d]"),
    Fault("empty slots hold token 0", "grouped_matmul", "ok = (r < nr) & (token >= 0)", "ok = r < nr"),
    Fault("only token 1 and later", "grouped_matmul", "ok = (r < nr) & (token >= 0)", "ok = (r < nr) & (token > 0)"),
    Fault("every slot's token is its own number", "grouped_matmul", "coordinates(tl.where(ok, token, 0), SIZES, NR, NT)", "coordinates(tl.where(ok, r % 2, 0), SIZES, NR, NT)"),
    Fault("the first expert's weights", "grouped_matmul", "cb = (e,) + coordinates", "cb = (e * 0,) + coordinates"),
    Fault("full tiles are skipped", "grouped_matmul", "tl.max(ok.to(tl.int32)) > 0", "tl.min(ok.to(tl.int32)) > 0"),
    Fault("sum one block short", "grouped_matmul", "> 0, nk, 0), BK):", "> 0, nk - 1, 0), BK):"),
    Fault("slots that do not exist are written", "grouped_matmul", "cr + cn, r < nr, n < nn, OUT_DIMS, 1, NT)", "cr + cn, r < nr + BM, n < nn, OUT_DIMS, 1, NT)"),
    Fault("empty slots are not written", "grouped_matmul", "cr + cn, r < nr, n < nn, OUT_DIMS, 1, NT)", "cr + cn, ok, n < nn, OUT_DIMS, 1, NT)"),
    Fault("epilogue lost", "grouped_matmul", "acc = epi(acc, x, (e * nr + r) * nn + n, cr + cn, X)", "acc = acc + acc + acc"),
    Fault("epilogue's operands of another expert", "grouped_matmul", "x = load(E, e_strides, cr + cn", "x = load(E, e_strides, (e * 0,) + cr[1:] + cn"),
    Fault("expert of the program", "grouped_matmul", "e = (tl.program_id(0) // (br * bn))", "e = (tl.program_id(0) // bn)"),
    Fault("weights: first slots only", "grouped_matmul", "for r0 in tl.range(0, nr, BK):", "for r0 in tl.range(0, tl.minimum(nr, BK), BK):"),
    Fault("weights: factor not masked", "grouped_matmul", "tl.where(ok_r & ok_n, y[j], 0.0)", "y[j]"),
    Fault("weights: every factor is the first", "grouped_matmul", "load_one(D[j], d_strides[j], c, ok_r, ok_n, D_DIMS, j, 1, NT)", "load_one(D[0], d_strides[0], c, ok_r, ok_n, D_DIMS, 0, 1, NT)"),
    Fault("weights: products replace each other", "grouped_matmul", "tl.dot(a, d[j], acc[j], input", "tl.dot(a, d[j], acc[j] * 0, input"),
    Fault("weights: of the first expert", "grouped_matmul", "acc, (e,) + cm + cn", "acc, (e * 0,) + cm + cn"),
    Fault("weights: prologue lost", "grouped_matmul", "ok, m < nm, X, pro, A_DIMS", "ok, m < nm, X, None, A_DIMS"),
    Fault("choices of the first expert", "grouped_matmul", "s = load(S, s_strides, (e,) +", "s = load(S, s_strides, (e * 0,) +"),
    Fault("dropped choices read the last slot", "grouped_matmul", "ok = (r < nr) & (e >= 0) & (e < experts) & (place >= 0) & (place < capacity)", "place = tl.minimum(place, capacity - 1)\n        ok = r < nr"),
    Fault("one choice only", "grouped_matmul", "tl.static_range(CHOICES)", "tl.static_range(1)"),
    Fault("choices replace each other", "grouped_matmul", "v += term(", "v = term("),
    Fault("gates lost", "grouped_matmul", "            v += term(", "            v += s[0] + 0 * term("),
    Fault("batch row of the token number", "grouped_matmul", "coordinates(r // product(SIZES, NB, NR, IDX), SIZES, 0, NB)", "coordinates(r * 0, SIZES, 0, NB)"),
)  # fmt: skip
