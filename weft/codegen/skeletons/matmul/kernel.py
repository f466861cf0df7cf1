# ruff: noqa: RET505, RUF005 -- Triton compiles no starred tuples and needs both arms of a constant branch
"""Products of matrices with maps in front and behind, batched, of any strides: y = epi(pro(A) B, ...).

    acc[j][z, m, n] = sum_k pro(A)[z, m, k] B[j][z, k, n];  y = epi(acc, e)

Several B share A's tile (query, key and value; gate and up). What the epilogue gives after its outputs is summed over a
program's rows: row z * blocks + b of the partial sums, which `pointwise.reduce_rows` ends (gradients of biases).
Tiles are taken in groups of GROUP blocks of rows, which share columns of B in L2. Accumulates in ACC.

    pro(x, i, c, X) -> a            None: A[0] as it is. x: operands of A's place (z, m, k); i: its row-major place;
                                    c: a coordinate per dim; X: what else is read. The result is cast to DOT
    epi(acc, e, i, c, X) -> y       None: the products. e: operands of the result's place (z, m, n). Where N fits BN it
                                    may reduce along axis 1: columns that do not exist are 0 in acc

| argument | meaning |
|---|---|
| A, B, E and OUT, SUM | operands with dims (z, m, k), (z, k, n), (z, m, n), (block, n); see `operands` |
| SIZES, NZ, NM, NN | sizes of the dims z ..., m ..., n ..., k ...; where the last three begin |
| BM, BN, BK, GROUP | a program's tile; GROUP as above |
| DOT, PREC | dtype of the factors; "ieee" or "tf32" for fp32 |
| ACC, IDX | tl.float32 or tl.float64; tl.int32, or tl.int64 where a place or an offset can pass 2^31 |

Grid: (batches * row blocks * column blocks,).
"""

import triton
import triton.language as tl

from ..common.operands import along, coordinates, gather_in, load, load_one, nothings, product, store


@triton.jit
def swizzled(pid, bm, bn, GROUP: tl.constexpr):
    """Number of a tile -> its row and column of blocks, GROUP rows at a time."""
    group = pid // (GROUP * bn)
    high = tl.minimum(bm - group * GROUP, GROUP)
    pid = pid % (GROUP * bn)
    return group * GROUP + pid % high, pid // high


@triton.jit
def left(
    A,
    a_strides,
    c,
    i,
    ok_m,
    ok_k,
    X,
    pro: tl.constexpr,
    A_DIMS: tl.constexpr,
    NS: tl.constexpr,
    NR: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    ACC: tl.constexpr,
):
    """A tile of the left factor."""
    if pro is None:
        return load_one(A[0], a_strides[0], c, ok_m, ok_k, A_DIMS, 0, NS, NR)
    else:
        a = pro(load(A, a_strides, c, ok_m, ok_k, A_DIMS, NS, NR, ACC), i, c, X)
        return tl.broadcast_to(tl.where(ok_m & ok_k, a, 0.0), [BM, BK]).to(DOT)


@triton.jit
def times(
    a,
    acc,
    B,
    b_strides,
    c,
    ok_k,
    ok_n,
    B_DIMS: tl.constexpr,
    NS: tl.constexpr,
    NR: tl.constexpr,
    ACC: tl.constexpr,
    PREC: tl.constexpr,
):
    """acc + a B, for each B."""
    out = ()
    for j in tl.static_range(len(B)):
        b = load_one(B[j], b_strides[j], c, ok_k, ok_n, B_DIMS, j, NS, NR)
        out = out + (tl.dot(a, b, acc[j], input_precision=PREC, out_dtype=ACC),)
    return out


@triton.jit
def zeros(n: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, ACC: tl.constexpr):
    out = ()
    for _ in tl.static_range(n):
        out = out + (tl.zeros([BM, BN], ACC),)
    return out


@triton.jit
def matmul(
    A,
    a_strides,
    B,
    b_strides,
    E,
    e_strides,
    OUT,
    out_strides,
    SUM,
    sum_strides,
    SIZES,
    X,
    pro: tl.constexpr,
    epi: tl.constexpr,
    A_DIMS: tl.constexpr,
    B_DIMS: tl.constexpr,
    E_DIMS: tl.constexpr,
    OUT_DIMS: tl.constexpr,
    SUM_DIMS: tl.constexpr,
    NZ: tl.constexpr,
    NM: tl.constexpr,
    NN: tl.constexpr,
    GROUP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    ACC: tl.constexpr,
    PREC: tl.constexpr,
    IDX: tl.constexpr,
):
    nm, nn, nk = product(SIZES, NZ, NM, IDX), product(SIZES, NM, NN, IDX), product(SIZES, NN, len(SIZES), IDX)
    bm, bn = tl.cdiv(nm, BM).to(tl.int32), tl.cdiv(nn, BN).to(tl.int32)
    z = (tl.program_id(0) // (bm * bn)).to(IDX)
    pm, pn = swizzled(tl.program_id(0) % (bm * bn), bm, bn, GROUP)
    m = pm.to(IDX) * BM + tl.arange(0, BM)[:, None].to(IDX)
    n = pn.to(IDX) * BN + tl.arange(0, BN)[None, :].to(IDX)
    cz = coordinates(z, SIZES, 0, NZ)
    cm, cn = coordinates(m, SIZES, NZ, NM), coordinates(n, SIZES, NM, NN)
    acc = zeros(len(B), BM, BN, ACC)
    for k0 in tl.range(0, nk, BK):
        k = k0 + tl.arange(0, BK)[None, :].to(IDX)
        ca = cz + cm + coordinates(k, SIZES, NN, len(SIZES))
        a = left(A, a_strides, ca, (z * nm + m) * nk + k, m < nm, k < nk, X, pro, A_DIMS, NZ, NM, BM, BK, DOT, ACC)
        k = k0 + tl.arange(0, BK)[:, None].to(IDX)
        cb = cz + coordinates(k, SIZES, NN, len(SIZES)) + cn
        acc = times(a, acc, B, b_strides, cb, k < nk, n < nn, B_DIMS, NZ, NZ + len(SIZES) - NN, ACC, PREC)
    c = cz + cm + cn
    if epi is not None:
        e = load(E, e_strides, c, m < nm, n < nn, E_DIMS, NZ, NM, ACC)
        acc = epi(acc, e, (z * nm + m) * nn + n, c, X)
    store(OUT, out_strides, acc, c, m < nm, n < nn, OUT_DIMS, NZ, NM)
    if len(SUM) > 0:
        SUMS: tl.constexpr = ("sum",) * len(SUM)
        s = gather_in(nothings([BM, BN], SUMS, ACC), acc, len(OUT), (m < nm) & (n < nn), SUMS)
        store(SUM, sum_strides, along(s, 0, SUMS), (z * bm + pm,) + cn, True, n < nn, SUM_DIMS, 1, 1)
