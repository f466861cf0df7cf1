"""Cross-entropy of rows of logits against an index, forward and backward, one pass over the logits each.

    z = pre(x);  lse = log sum_k exp z[k];  loss = lse - z[target]       rows whose target is IGNORE: 0
    dz[k] = dloss (exp(z[k] - lse) - [k = target]) + dlse exp(z[k] - lse);  out = post(dz, x)

Forward: an online maximum and sum over chunks of the row (Milakov and Gimelshein 2018); loss is log(sum) - (z[target] -
max), so nothing cancels. Backward: element by element from lse; it may write over the logits, for a program reads its
own tile only.

    pre(x, i, c, X) -> z                 None: x[0]. x: the operands; i: row-major place; c: a coordinate per dim
    finish(loss, lse, c, X) -> values    what is stored per row; None: (loss, lse). c: coordinates of the rows' dims
    post(dz, x, i, c, X) -> values       what is stored per element; None: dz

| argument | meaning |
|---|---|
| IN, TARGET, ROW, OUT, their strides and DIMS | see `operands`; TARGET (one tensor) and ROW have the rows' dims |
| ROW of backward | lse, dloss, and dlse if there is one |
| SIZES, NR | sizes of the dims; the first NR, one at least, are rows, the others the vocabulary |
| IGNORE | a target, or None |
| BM, BN | a program's tile |
| ACC, IDX | tl.float32 or tl.float64; tl.int32, or tl.int64 where a place or an offset can pass 2^31 |

Grids: forward (row blocks,); backward (row blocks * column blocks,).
"""

import triton
import triton.language as tl

from ..common.operands import coordinates, load, load_one, product, store


@triton.jit
def logit(
    IN, in_strides, c, i, ok_r, ok_c, X, pre: tl.constexpr, DIMS: tl.constexpr, NR: tl.constexpr, ACC: tl.constexpr
):
    """The operands of a tile, and its logits."""
    x = load(IN, in_strides, c, ok_r, ok_c, DIMS, 0, NR, ACC)
    return x, (x[0] if pre is None else pre(x, i, c, X))


@triton.jit
def forward(
    IN,
    in_strides,
    TARGET,
    target_strides,
    ROW,
    row_strides,
    SIZES,
    X,
    pre: tl.constexpr,
    finish: tl.constexpr,
    IGNORE: tl.constexpr,
    IN_DIMS: tl.constexpr,
    TARGET_DIMS: tl.constexpr,
    ROW_DIMS: tl.constexpr,
    NR: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
):
    nr, nc = product(SIZES, 0, NR, IDX), product(SIZES, NR, len(SIZES), IDX)
    r = tl.program_id(0).to(IDX) * BM + tl.arange(0, BM)[:, None].to(IDX)
    cr = coordinates(r, SIZES, 0, NR)
    m = tl.full([BM, 1], float("-inf"), ACC)  # running maximum
    total = tl.zeros([BM, 1], ACC)
    for n in tl.range(0, tl.cdiv(nc, BN)):
        k = n * BN + tl.arange(0, BN)[None, :].to(IDX)
        c = cr + coordinates(k, SIZES, NR, len(SIZES))
        _, z = logit(IN, in_strides, c, r * nc + k, r < nr, k < nc, X, pre, IN_DIMS, NR, ACC)
        z = tl.where(k < nc, z, float("-inf"))
        top = tl.maximum(m, tl.max(z, 1, keep_dims=True))
        safe = tl.where(top == float("-inf"), 0.0, top)  # nothing but -inf so far
        total = total * tl.exp(m - safe) + tl.sum(tl.exp(z - safe), 1, keep_dims=True)
        m = top
    target = load_one(TARGET[0], target_strides[0], cr, r < nr, r < nr, TARGET_DIMS, 0, 0, NR).to(IDX)
    inside = (r < nr) & (target >= 0) & (target < nc)
    c = cr + coordinates(tl.where(inside, target, 0), SIZES, NR, len(SIZES))
    _, hit = logit(IN, in_strides, c, r * nc + target, r < nr, inside, X, pre, IN_DIMS, NR, ACC)
    loss = tl.log(total) - tl.where(inside, hit - m, 0.0)
    if IGNORE is not None:
        loss = tl.where(target == IGNORE, 0.0, loss)
    y = (loss, m + tl.log(total)) if finish is None else finish(loss, m + tl.log(total), cr, X)
    store(ROW, row_strides, y, cr, r < nr, r < nr, ROW_DIMS, 0, NR)


@triton.jit
def backward(
    IN,
    in_strides,
    TARGET,
    target_strides,
    ROW,
    row_strides,
    OUT,
    out_strides,
    SIZES,
    X,
    pre: tl.constexpr,
    post: tl.constexpr,
    IGNORE: tl.constexpr,
    IN_DIMS: tl.constexpr,
    TARGET_DIMS: tl.constexpr,
    ROW_DIMS: tl.constexpr,
    OUT_DIMS: tl.constexpr,
    NR: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
):
    nr, nc = product(SIZES, 0, NR, IDX), product(SIZES, NR, len(SIZES), IDX)
    blocks = tl.cdiv(nc, BN).to(tl.int32)
    r = (tl.program_id(0) // blocks).to(IDX) * BM + tl.arange(0, BM)[:, None].to(IDX)
    k = (tl.program_id(0) % blocks).to(IDX) * BN + tl.arange(0, BN)[None, :].to(IDX)
    cr = coordinates(r, SIZES, 0, NR)
    c, i = cr + coordinates(k, SIZES, NR, len(SIZES)), r * nc + k
    target = load_one(TARGET[0], target_strides[0], cr, r < nr, r < nr, TARGET_DIMS, 0, 0, NR).to(IDX)
    row = load(ROW, row_strides, cr, r < nr, r < nr, ROW_DIMS, 0, NR, ACC)
    x, z = logit(IN, in_strides, c, i, r < nr, k < nc, X, pre, IN_DIMS, NR, ACC)
    p = tl.exp(z - row[0])
    dz = row[1] * (p - tl.where(k == target, 1.0, 0.0))
    if IGNORE is not None:
        dz = tl.where(target == IGNORE, 0.0, dz)
    if len(ROW) > 2:
        dz += row[2] * p
    y = (dz,) if post is None else post(dz, x, i, c, X)
    store(OUT, out_strides, y, c, r < nr, k < nc, OUT_DIMS, 0, NR)
