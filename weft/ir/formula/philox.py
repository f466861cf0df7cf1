"""Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), in 64-bit integer arithmetic.

Written for anything with integer `+ * & | ^ >> %`: torch or numpy int64 tensors and Python integers, mixed by
broadcasting. No intermediate leaves int64: a 32 x 32 bit product is formed from halves, with every sum below 2^63."""

from typing import Any

MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # the multipliers of a round
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # the Weyl increments of the key


def _mulhilo(m: int, x: Any) -> tuple[Any, Any]:
    """High and low words of the 64-bit product of a constant and a 32-bit word."""
    low = (x & 0xFFFF) * m  # below 2^48
    high = (x >> 16) * m + (low >> 16)  # below 2^49
    return high >> 16, (high & 0xFFFF) << 16 | low & 0xFFFF


def philox(counter: tuple[Any, Any, Any, Any], key: tuple[Any, Any]) -> tuple[Any, Any, Any, Any]:
    """Ten rounds: four 32-bit words from a counter of four words and a key of two."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        hi0, lo0 = _mulhilo(_M0, a)
        hi1, lo1 = _mulhilo(_M1, c)
        a, b, c, d = hi1 ^ b ^ k0, lo1, hi0 ^ d ^ k1, lo0
        k0, k1 = (k0 + _W0) & MASK, (k1 + _W1) & MASK
    return a, b, c, d


def bits(seed: Any, op_id: Any, layer: Any, index: Any) -> Any:
    """The 32 random bits of the element with this 64-bit global logical index.

    counter = (index//4 low, index//4 high, op_id, layer); key = (seed low, seed high); word = index % 4."""
    block, lane = index >> 2, index & 3
    words = philox((block & MASK, (block >> 32) & MASK, op_id & MASK, layer & MASK), (seed & MASK, (seed >> 32) & MASK))
    out = words[0] * (lane == 0)
    for i in (1, 2, 3):
        out = out | words[i] * (lane == i)
    return out


def uniform(seed: Any, op_id: Any, layer: Any, index: Any) -> Any:
    """(bits >> 8) / 2^24 in [0, 1), as the 24-bit integer numerator: exact in fp32 once multiplied by 2^-24."""
    return bits(seed, op_id, layer, index) >> 8
