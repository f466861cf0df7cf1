# ruff: noqa: RUF005 -- Triton compiles no starred tuples
"""What a linear recurrence is within a chunk of C positions, a program a chunk (and a tile of keys in the backward).

    M[t, j] = sum_k w[t, k] k[j, k] a[j+1, k] .. a[t-1, k]  for j < t, else 0      decayed_product
    dw, dk, da from dM                                                              decayed_product_backward
    (1 - x)^-1 of the part of x below the diagonal                                  unit_inverse

Decays between two places are products of factors between them, made in registers by doubling. At level m a chunk is cut
into blocks of m places, and a pair of places is of the level where they are in the two halves of one block of 2m: of
such a pair, what is left of key j at the end of its half, `after[j]`, times what is left of that at row t, `before[t]`.

    M += <w before, k after>             on the pairs of level m: a product of matrices
    before *= whole of the sibling in right halves, after *= it in left ones; whole *= whole of the sibling

No logarithm and no division: exact for decays that are 0, negative or above 1. Pairs in one block of 16 are `near`, a
product for each such block; those of higher levels are `far`, one product of all rows and columns a level. The backward
keeps before, after and whole of every level in registers and goes down the levels; cotangents of before, after and
whole are f, g and h. The inverse grows the same way: what joins two halves is (inverse of the right) x (inverse of the
left).

Source: decays between places by doubling, as the torch path has them; inverses of triangular matrices by blocks, as in
the chunks of the delta rule (Yang et al. 2024).

| argument | meaning |
|---|---|
| IN | w, k, a, of dims (chunk ..., place, key), see `operands`; `unit_inverse`: x, (chunk ..., row, column) |
| D, OUT | dM and M, (chunk ..., row, column); OUT of the backward: dw, dk, da, (chunk ..., place, key) |
| SIZES, NZ | sizes of the dims chunk ..., place, key; how many the first are |
| C, LEVELS | places of a tile, a power of 2, and which one |
| BK | keys of a tile |
| DOT, PREC | dtype of the factors; "ieee", "tf32" or "tf32x3" for fp32 |
| ACC, IDX | tl.float32 or tl.float64; tl.int32, or tl.int64 where a place or an offset can pass 2^31 |

Grids: decayed_product and unit_inverse (chunks,); decayed_product_backward (chunks * key tiles,).
"""

import triton
import triton.language as tl

from ..common.operands import coordinates, load, load_one, store


@triton.jit
def in_right(t, m: tl.constexpr):
    """Is a place in the right half of its block of 2m?"""
    return (t // m) % 2 == 1


@triton.jit
def levels_of(t, j):
    """Of each pair of places a number whose highest bit is its level; 0 where the row is not after the column."""
    return tl.where(t > j, t ^ j, 0)


@triton.jit
def near_places(C: tl.constexpr):
    """Rows and columns of the blocks of 16 on the diagonal, [C / 16, 16, 16]."""
    first = tl.arange(0, C // 16)[:, None, None] * 16
    return first + tl.arange(0, 16)[None, :, None], first + tl.arange(0, 16)[None, None, :]


@triton.jit
def in_blocks(x, C: tl.constexpr, BK: tl.constexpr):
    """Rows of [C, BK] in blocks of 16."""
    return tl.reshape(x, (C // 16, 16, BK))


@triton.jit
def transposed_products(corner, reads, writes, turned: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr):
    """What rows and keys get of the cotangent of their products."""
    into_reads = tl.dot(corner, writes, input_precision=PREC, out_dtype=ACC)
    return into_reads, tl.dot(tl.permute(corner, turned), reads, input_precision=PREC, out_dtype=ACC)


@triton.jit
def swapped(x, m: tl.constexpr, C: tl.constexpr, BK: tl.constexpr):
    """Rows of [C, BK], each block of m with its sibling's in its place."""
    left, right = tl.split(tl.permute(tl.reshape(x, (C // (2 * m), 2, m, BK)), (0, 2, 3, 1)))
    return tl.reshape(tl.permute(tl.join(right, left), (0, 3, 1, 2)), (C, BK))


@triton.jit
def block_sums(x, m: tl.constexpr, C: tl.constexpr, BK: tl.constexpr):
    """In every row of [C, BK], the sum over its block of m rows."""
    total = tl.sum(tl.reshape(x, (C // m, m, BK)), 1, keep_dims=True)
    return tl.reshape(tl.broadcast_to(total, (C // m, m, BK)), (C, BK))


@triton.jit
def decayed_product(
    IN,
    in_strides,
    OUT,
    out_strides,
    SIZES,
    IN_DIMS: tl.constexpr,
    OUT_DIMS: tl.constexpr,
    NZ: tl.constexpr,
    C: tl.constexpr,
    LEVELS: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    ACC: tl.constexpr,
    PREC: tl.constexpr,
    IDX: tl.constexpr,
):
    n, nk = SIZES[NZ], SIZES[NZ + 1]
    cz = coordinates(tl.program_id(0).to(IDX), SIZES, 0, NZ)
    t, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    near_t, near_j = near_places(C)
    near_levels = levels_of(near_t, near_j)
    near, far = tl.zeros([C // 16, 16, 16], ACC), tl.zeros([C, C], ACC)
    for k0 in tl.range(0, nk, BK):
        key = k0 + tl.arange(0, BK)[None, :]
        c = cz + (t.to(IDX), key.to(IDX))
        w, k, whole = load(IN, in_strides, c, t < n, key < nk, IN_DIMS, NZ, NZ + 1, ACC)
        before = tl.full([C, BK], 1.0, ACC)
        after = before
        for level in tl.static_range(LEVELS):
            right = in_right(t, 1 << level)
            if level < 4:
                passed = tl.where(right, before, after)
                reads, writes = in_blocks((w * passed).to(DOT), C, BK), in_blocks((k * passed).to(DOT), C, BK)
                both = tl.dot(reads, tl.permute(writes, (0, 2, 1)), input_precision=PREC, out_dtype=ACC)
                near += tl.where(near_levels >> level == 1, both, 0.0)
            else:
                reads, writes = tl.where(right, w * before, 0.0).to(DOT), tl.where(right, 0.0, k * after).to(DOT)
                both = tl.dot(reads, tl.trans(writes), input_precision=PREC, out_dtype=ACC)
                far += both if level == LEVELS - 1 else tl.where(t // (2 << level) == j // (2 << level), both, 0.0)
            if level < LEVELS - 1:
                sibling = swapped(whole, 1 << level, C, BK)
                before = tl.where(right, before * sibling, before)
                after = tl.where(right, after, after * sibling)
                whole *= sibling
    c = cz + (near_t.to(IDX), near_j.to(IDX))
    store(OUT, out_strides, (near,), c, near_t < n, near_j < n, OUT_DIMS, NZ, NZ + 1)
    if LEVELS > 4:
        apart = (t < n) & (t // 16 != j // 16)
        store(OUT, out_strides, (far,), cz + (t.to(IDX), j.to(IDX)), apart, j < n, OUT_DIMS, NZ, NZ + 1)


@triton.jit
def decayed_product_backward(
    IN,
    in_strides,
    D,
    d_strides,
    OUT,
    out_strides,
    SIZES,
    IN_DIMS: tl.constexpr,
    D_DIMS: tl.constexpr,
    OUT_DIMS: tl.constexpr,
    NZ: tl.constexpr,
    C: tl.constexpr,
    LEVELS: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    ACC: tl.constexpr,
    PREC: tl.constexpr,
    IDX: tl.constexpr,
):
    n, nk = SIZES[NZ], SIZES[NZ + 1]
    blocks = tl.cdiv(nk, BK)
    cz = coordinates((tl.program_id(0) // blocks).to(IDX), SIZES, 0, NZ)
    t, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    key = (tl.program_id(0) % blocks) * BK + tl.arange(0, BK)[None, :]
    c = cz + (t.to(IDX), key.to(IDX))
    w, k, whole = load(IN, in_strides, c, t < n, key < nk, IN_DIMS, NZ, NZ + 1, ACC)
    near_t, near_j = near_places(C)
    near_levels = levels_of(near_t, near_j)
    c_near = cz + (near_t.to(IDX), near_j.to(IDX))
    near = load_one(D[0], d_strides[0], c_near, near_t < n, near_j < n, D_DIMS, 0, NZ, NZ + 1)
    before = tl.full([C, BK], 1.0, ACC)
    after = before
    kept = ()  # of each level: before in right halves and after in left ones; the sibling's whole
    for level in tl.static_range(LEVELS):
        right = in_right(t, 1 << level)
        sibling = swapped(whole, 1 << level, C, BK)
        kept = kept + (tl.where(right, before, after), sibling)
        before = tl.where(right, before * sibling, before)
        after = tl.where(right, after, after * sibling)
        whole *= sibling
    dw, f = tl.zeros([C, BK], ACC), tl.zeros([C, BK], ACC)
    dk, g, h = dw, dw, dw
    for level in tl.static_range(LEVELS - 1, -1, -1):
        right = in_right(t, 1 << level)
        passed, sibling = kept[2 * level], kept[2 * level + 1]
        if level < 4:
            corner = tl.where(near_levels >> level == 1, near, 0.0).to(DOT)
            reads, writes = in_blocks((w * passed).to(DOT), C, BK), in_blocks((k * passed).to(DOT), C, BK)
            reads, writes = transposed_products(corner, reads, writes, (0, 2, 1), PREC, ACC)
            reads, writes = tl.reshape(reads, (C, BK)), tl.reshape(writes, (C, BK))
        else:
            corner = (t < n) & (levels_of(t, j) >> level == 1)
            corner = load_one(D[0], d_strides[0], cz + (t.to(IDX), j.to(IDX)), corner, j < n, D_DIMS, 0, NZ, NZ + 1)
            reads, writes = (w * passed).to(DOT), (k * passed).to(DOT)
            reads, writes = transposed_products(corner.to(DOT), reads, writes, (1, 0), PREC, ACC)
        dw += reads * passed
        dk += writes * passed
        own = tl.where(right, f, g)
        h = h * sibling + swapped(block_sums(own * passed, 1 << level, C, BK), 1 << level, C, BK)
        own = own * sibling + reads * w + writes * k
        f = tl.where(right, own, f)
        g = tl.where(right, g, own)
    store(OUT, out_strides, (dw, dk, h), c, t < n, key < nk, OUT_DIMS, NZ, NZ + 1)


@triton.jit
def unit_inverse(
    IN,
    in_strides,
    OUT,
    out_strides,
    SIZES,
    IN_DIMS: tl.constexpr,
    OUT_DIMS: tl.constexpr,
    NZ: tl.constexpr,
    C: tl.constexpr,
    LEVELS: tl.constexpr,
    DOT: tl.constexpr,
    ACC: tl.constexpr,
    PREC: tl.constexpr,
    IDX: tl.constexpr,
):
    """SIZES: of chunk ..., row, column, the last two equal."""
    n = SIZES[NZ]
    cz = coordinates(tl.program_id(0).to(IDX), SIZES, 0, NZ)
    t, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    c = cz + (t.to(IDX), j.to(IDX))
    x = load_one(IN[0], in_strides[0], c, t < n, j < n, IN_DIMS, 0, NZ, NZ + 1).to(ACC)
    pairs, out = levels_of(t, j), tl.where(t == j, 1.0, tl.zeros([C, C], ACC))
    for level in tl.range(0, LEVELS):
        blocks = out.to(DOT)
        left = tl.dot(blocks, tl.where(pairs >> level == 1, x, 0.0).to(DOT), input_precision=PREC, out_dtype=ACC)
        out += tl.dot(left.to(DOT), blocks, input_precision=PREC, out_dtype=ACC)
    store(OUT, out_strides, (out,), c, t < n, j < n, OUT_DIMS, NZ, NZ + 1)
