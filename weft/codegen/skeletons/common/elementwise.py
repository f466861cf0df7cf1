"""What formulas in holes call: functions that would overflow, cancel or round wrongly if they were written out.

Everything is generic over float32 and float64 and takes scalars or blocks. Integer division and remainder round down,
as in Python (Triton's own truncate). NaN stays NaN. Random numbers are Philox4x32-10 (Salmon et al. 2011) by logical
index, the same bits as in the torch path.
"""

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """Near 0 its series, where the quotient would keep no digit of a small x."""
    y = x * x
    series = x * (1.0 - y * (1 / 3 - y * (2 / 15 - y * (17 / 315 - y * (62 / 2835)))))
    return tl.where(y < 0.00390625, series, 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def log1p(e):
    """log(1 + e) for 0 <= e <= 1: exact where 1 + e rounds (Kahan)."""
    u = 1.0 + e
    return tl.where(u == 1.0, e, tl.log(u) * e / tl.where(u == 1.0, 1.0, u - 1.0))


@triton.jit
def softplus(x):
    return tl.where(x < 0.0, 0.0, x) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def logaddexp(a, b):
    return tl.where(a == b, a + 0.6931471805599453, larger(a, b) + log1p(tl.exp(-tl.abs(a - b))))


@triton.jit
def relu(x):
    return tl.where(x < 0.0, 0.0, x)


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def silu_grad(x):
    s = sigmoid(x)
    return s * (1.0 + x * sigmoid(-x))


@triton.jit
def gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_grad(x):
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * tl.exp(-0.5 * x * x) * 0.3989422804014327


@triton.jit
def gelu_tanh(x):
    return x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def gelu_tanh_grad(x):
    s = sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    r = sigmoid(-1.5957691216057308 * (x + 0.044715 * x * x * x))
    return s + x * s * r * (1.5957691216057308 + 0.2140644488178074 * x * x)


@triton.jit
def sign(x):
    return tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, 0.0 * x))


@triton.jit
def larger(a, b):
    return tl.where(a != a, a, tl.where(a > b, a, b))  # no `|`: the interpreter has none of a scalar and a block


@triton.jit
def smaller(a, b):
    return tl.where(a != a, a, tl.where(a < b, a, b))


@triton.jit
def floordiv(a, b):
    """floor(a / b) of integers."""
    q = a // b
    r = a - q * b
    return q - ((r != 0) & ((r < 0) != (b < 0))).to(q.dtype)


@triton.jit
def mod(a, b):
    """a - b floor(a / b) of integers."""
    r = a - a // b * b
    return r + ((r != 0) & ((r < 0) != (b < 0))).to(r.dtype) * b


@triton.jit
def floatmod(a, b):
    """a - b floor(a / b) of floats."""
    return a - b * tl.floor(a / b)


@triton.jit
def bits24(seed, op_id, layer, index):
    """The upper 24 random bits, int32, of elements by 64-bit logical index; seed: an int64 scalar."""
    index = index.to(tl.int64)
    a = (index >> 2).to(tl.uint32)
    b = (index >> 34).to(tl.uint32)
    c = (index * 0 + op_id).to(tl.uint32)
    d = (index * 0 + layer).to(tl.uint32)
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        high0 = tl.umulhi(a, tl.full([], 0xD2511F53, tl.uint32))
        high1 = tl.umulhi(c, tl.full([], 0xCD9E8D57, tl.uint32))
        low0 = tl.mul(a, tl.full([], 0xD2511F53, tl.uint32), sanitize_overflow=False)
        low1 = tl.mul(c, tl.full([], 0xCD9E8D57, tl.uint32), sanitize_overflow=False)
        a = high1 ^ b ^ k0
        b = low1
        c = high0 ^ d ^ k1
        d = low0
        k0 = tl.add(k0, tl.full([], 0x9E3779B9, tl.uint32), sanitize_overflow=False)
        k1 = tl.add(k1, tl.full([], 0xBB67AE85, tl.uint32), sanitize_overflow=False)
    lane = index & 3
    word = tl.where(lane < 2, tl.where(lane == 0, a, b), tl.where(lane == 2, c, d))
    return (word >> 8).to(tl.int32)


@triton.jit
def uniform(seed, op_id, layer, index):
    """Numbers in [0, 1), multiples of 2^-24, float32."""
    return bits24(seed, op_id, layer, index).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def dropout(x, threshold: tl.constexpr, scale: tl.constexpr, SEED, op_id: tl.constexpr, layer, index):
    """x * scale where the element's 24 bits are at least `threshold`, else 0; x itself without a seed.

    SEED: pointer to an int64, or None."""
    y = x
    if SEED is not None:
        y = tl.where(bits24(tl.load(SEED), op_id, layer, index) >= threshold, x * scale, 0.0)
    return y


@triton.constexpr_function
def accumulator(dtype):
    """What a kernel computes in that reads tensors of this dtype. A dtype is nothing that a jit function can return."""
    return tl.float64 if dtype == tl.float64 else tl.float32
