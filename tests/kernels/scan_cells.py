"""Cells for the tests of the scan skeleton: each in Triton, its derivative in Triton, and in torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft.codegen.skeletons.common.elementwise import bits24, sigmoid, tanh

LEAST = tl.constexpr(3355444)  # ceil(0.2 * 2^24)
SCALE = tl.constexpr(1.25)


# ---- SRU (Lei et al. 2018) with peepholes, and variational dropout drawn per lane: inputs u, f, r, x


@triton.jit
def masked(p, c, X):
    """The last parameter is ones; dropped out by the lane's logical place. X: seed, places of the lanes' dims."""
    place = tl.full([], 0, tl.int64)
    for d in tl.static_range(len(c)):
        place = place + c[d] * X[1][d]
    keep = bits24(tl.load(X[0]), 5, 2, place) >= LEAST
    return p[0], p[1], p[2], p[3], tl.where(keep, p[4] * SCALE, 0.0)


@triton.jit
def sru_gates(s, x, p):
    f = sigmoid(x[1] + p[0] * s[0] + p[2])
    r = sigmoid(x[2] + p[1] * s[0] + p[3])
    return f, r, f * s[0] + (1.0 - f) * x[0]


@triton.jit
def sru(s, x, p, t, c, X):
    _, r, new = sru_gates(s, x, p)
    return (new,), (r * p[4] * new + (1.0 - r * p[4]) * x[3],)


@triton.jit
def sru_vjp(s, x, p, ds, dy, t, c, X):
    f, r, new = sru_gates(s, x, p)
    dr = dy[0] * p[4] * (new - x[3]) * r * (1.0 - r)
    dm = dy[0] * r * (new - x[3])
    dn = ds[0] + dy[0] * r * p[4]
    df = dn * (s[0] - x[0]) * f * (1.0 - f)
    dx = (dn * (1.0 - f), df, dr, dy[0] * (1.0 - r * p[4]))
    return (dn * f + df * p[0] + dr * p[1],), dx, (df * s[0], dr * s[0], df, dr, dm)


@triton.jit
def sru_back(s, x, p, t, c, X):
    """The derivative as a loop of its own: states ds and five sums, inputs dy, u, f, r, x, state."""
    ds, dx, dp = sru_vjp((x[5],), x[1:5], p, s, (x[0],), t, c, X)
    return (ds[0], s[1] + dp[0], s[2] + dp[1], s[3] + dp[2], s[4] + dp[3], s[5] + dp[4]), dx


def sru_torch(s: list[Tensor], x: list[Tensor], p: list[Tensor], t: int) -> tuple[list[Tensor], list[Tensor]]:
    f, r = torch.sigmoid(x[1] + p[0] * s[0] + p[2]), torch.sigmoid(x[2] + p[1] * s[0] + p[3])
    new = f * s[0] + (1 - f) * x[0]
    return [new], [r * p[4] * new + (1 - r * p[4]) * x[3]]


# ---- two states: an LSTM whose recurrence is element by element


@triton.jit
def pair_parts(s, x, p):
    i = sigmoid(x[0] + p[0] * s[1])
    f = sigmoid(x[1] + p[1] * s[0])
    z = tanh(x[2])
    new = f * s[0] + i * z
    return i, f, z, new, tanh(new)


@triton.jit
def pair(s, x, p, t, c, X):
    _, _, _, new, out = pair_parts(s, x, p)
    return (new, out * p[1]), (out, new * x[0])


@triton.jit
def pair_vjp(s, x, p, ds, dy, t, c, X):
    i, f, z, new, out = pair_parts(s, x, p)
    do = ds[1] * p[1] + dy[0]
    dn = ds[0] + do * (1.0 - out * out) + dy[1] * x[0]
    di = dn * z * i * (1.0 - i)
    df = dn * s[0] * f * (1.0 - f)
    dx = (di + dy[1] * new, df, dn * i * (1.0 - z * z))
    return (dn * f + df * p[1], di * p[0]), dx, (di * s[1], df * s[0] + ds[1] * out)


def pair_torch(s: list[Tensor], x: list[Tensor], p: list[Tensor], t: int) -> tuple[list[Tensor], list[Tensor]]:
    i, f, z = torch.sigmoid(x[0] + p[0] * s[1]), torch.sigmoid(x[1] + p[1] * s[0]), torch.tanh(x[2])
    new = f * s[0] + i * z
    return [new, torch.tanh(new) * p[1]], [torch.tanh(new), new * x[0]]


# ---- a decay that knows the time, and starts from its own parameter


@triton.jit
def from_parameter(e, p, c, X):
    return (p[1],)


@triton.jit
def decay(s, x, p, t, c, X):
    a = sigmoid(p[0] + t.to(p[0].dtype) * 0.1)
    new = a * s[0] + x[0]
    return (new,), (new * new,)


@triton.jit
def decay_vjp(s, x, p, ds, dy, t, c, X):
    a = sigmoid(p[0] + t.to(p[0].dtype) * 0.1)
    dn = ds[0] + 2.0 * dy[0] * (a * s[0] + x[0])
    return (dn * a,), (dn,), (dn * s[0] * a * (1.0 - a), dn * 0.0)


def decay_torch(s: list[Tensor], x: list[Tensor], p: list[Tensor], t: int) -> tuple[list[Tensor], list[Tensor]]:
    new = torch.sigmoid(p[0] + t * 0.1) * s[0] + x[0]
    return [new], [new * new]


@dataclass(frozen=True)
class Cell:
    """inputs, states, parameters, outputs: how many. back: the derivative as a loop."""

    cell: Any
    vjp: Any
    torch: Callable[..., tuple[list[Tensor], list[Tensor]]]
    inputs: int
    states: int
    parameters: int
    outputs: int
    before: Any = None
    start: Any = None
    back: Any = None


CELLS = (
    Cell(sru, sru_vjp, sru_torch, 4, 1, 5, 1, before=masked, back=sru_back),
    Cell(pair, pair_vjp, pair_torch, 3, 2, 2, 2),
    Cell(decay, decay_vjp, decay_torch, 1, 1, 2, 1, start=from_parameter),
)
