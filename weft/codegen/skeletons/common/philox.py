"""Philox4x32-10 (Salmon et al. 2011) for blocks of neighbours: one counter's four words serve four elements.

The same bits as `elementwise.bits24`, which computes four words for each element and keeps one; here the integer work,
which would otherwise bound a dropout, is a quarter.
"""

import triton
import triton.language as tl


@triton.jit
def words(seed, op_id, layer, block):
    """The four words of counters (block low, block high, op_id, layer); seed: an int64 scalar; block: int64."""
    a = block.to(tl.uint32)
    b = (block >> 32).to(tl.uint32)
    c = (block * 0 + op_id).to(tl.uint32)
    d = (block * 0 + layer).to(tl.uint32)
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        high0 = tl.umulhi(a, tl.full([], 0xD2511F53, tl.uint32))
        high1 = tl.umulhi(c, tl.full([], 0xCD9E8D57, tl.uint32))
        low0 = tl.mul(a, tl.full([], 0xD2511F53, tl.uint32), sanitize_overflow=False)
        low1 = tl.mul(c, tl.full([], 0xCD9E8D57, tl.uint32), sanitize_overflow=False)
        a, b, c, d = high1 ^ b ^ k0, low1, high0 ^ d ^ k1, low0
        k0 = tl.add(k0, tl.full([], 0x9E3779B9, tl.uint32), sanitize_overflow=False)
        k1 = tl.add(k1, tl.full([], 0xBB67AE85, tl.uint32), sanitize_overflow=False)
    return a, b, c, d


@triton.jit
def bits24_of_runs(seed, op_id, layer, index):
    """The upper 24 random bits, int32, of a tile [BM, BN] of logical places which run along the columns.

    Each row's places must be consecutive and start at a multiple of 4: the innermost dim of the value is the tile's
    column dim and a multiple of 4 long, or the value is walked as one dim. BN is at least 4.
    """
    BM: tl.constexpr = index.shape[0]
    BN: tl.constexpr = index.shape[1]
    quads = tl.reshape(index.to(tl.int64), [BM, BN // 4, 2, 2])
    even, _ = tl.split(quads)
    first, _ = tl.split(even)  # [BM, BN / 4]: the place of each four's first
    a, b, c, d = words(seed, op_id, layer, first >> 2)
    w = tl.join(tl.join(a, c), tl.join(b, d))  # [BM, BN / 4, 2, 2]
    return (tl.reshape(w, [BM, BN]) >> 8).to(tl.int32)
