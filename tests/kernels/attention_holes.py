"""Holes of the attention kernels for tests.

X = (counts, its strides (part, b, h, q, k), nq, nk, slopes, gate, its strides (b, h, row), sinks).
"""

import triton
import triton.language as tl


@triton.jit
def seen(part, q, k, b, h, X):
    """How often q sees k in a part, looked up."""
    at = X[0] + part * X[1][0] + b * X[1][1] + h * X[1][2] + q.to(tl.int64) * X[1][3] + k.to(tl.int64) * X[1][4]
    return tl.load(at, mask=(q < X[2]) & (k < X[3]), other=0)


@triton.jit
def count(q, k, b, h, X):
    return seen(0, q, k, b, h, X)


@triton.jit
def keep(q, k, b, h, X):
    return seen(0, q, k, b, h, X) > 0


@triton.jit
def keep1(q, k, b, h, X):
    return seen(1, q, k, b, h, X) > 0


@triton.jit
def keep2(q, k, b, h, X):
    return seen(2, q, k, b, h, X) > 0


@triton.jit
def keep3(q, k, b, h, X):
    return seen(3, q, k, b, h, X) > 0


KEEP = (keep, keep1, keep2, keep3)


@triton.jit
def keep_causal(q, k, b, h, X):
    return k <= q


@triton.jit
def tanh(x):
    return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0


@triton.jit
def cap(s, q, k, b, h, X):
    return 5.0 * tanh(s * 0.2)


@triton.jit
def cap_slope(s, q, k, b, h, X):
    t = tanh(s * 0.2)
    return 1.0 - t * t


@triton.jit
def alibi(s, q, k, b, h, X):
    return s - tl.load(X[4] + h).to(s.dtype) * tl.abs(q - k).to(s.dtype)


@triton.jit
def alibi_slope(s, q, k, b, h, X):
    return tl.full([], 1.0, s.dtype)


@triton.jit
def ragged(s, q, k, b, h, X):
    """A score that is nothing where a row or a key does not exist."""
    return tl.where((q < X[2]) & (k < X[3]), 1.5 * s, float("nan"))


@triton.jit
def ragged_slope(s, q, k, b, h, X):
    return tl.where((q < X[2]) & (k < X[3]), tl.zeros_like(s) + 1.5, float("nan"))


@triton.jit
def gate_of(b, h, t, d, ok, X, like):
    at = X[5] + b.to(tl.int64) * X[6][0] + h * X[6][1] + t * X[6][2] + d
    return 1.0 / (1.0 + tl.exp(-tl.load(at, mask=ok, other=0.0).to(like.dtype)))


@triton.jit
def gated(o, b, h, t, d, ok, X):
    return (o * gate_of(b, h, t, d, ok, X, o),)


@triton.jit
def gated_vjp(dy, o, b, h, t, d, ok, X):
    y = gate_of(b, h, t, d, ok, X, o)
    return dy[0] * y, (dy[0] * o * y * (1.0 - y),)


@triton.jit
def two(o, b, h, t, d, ok, X):
    return (o * gate_of(b, h, t, d, ok, X, o), o * o)


@triton.jit
def two_vjp(dy, o, b, h, t, d, ok, X):
    y = gate_of(b, h, t, d, ok, X, o)
    return dy[0] * y + 2.0 * dy[1] * o, (dy[0] * o * y * (1.0 - y),)


@triton.jit
def sink(lse, b, h, X):
    return tl.load(X[7] + h).to(lse.dtype)


@triton.jit
def thinned(p, q, k, b, h, X):
    """A factor on weights: no fifth one is left."""
    return tl.where((7 * q + 3 * k + h) % 5 > 0, 1.25, 0.0).to(p.dtype)
