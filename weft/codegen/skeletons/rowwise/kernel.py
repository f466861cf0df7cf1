# ruff: noqa: RUF005 -- Triton compiles no starred tuples
"""Maps around reductions along rows: LayerNorm, RMSNorm, softmax, row sums; forward and backward.

    u = pre(x)                          of the loaded operands x of an element's place
    s = s + reduce stages[t](u, s)      along the row; one stage after another, each reads the earlier ones' results
    row = finish(s);  y = body(u, s)    what is stored per row, and per element

    LayerNorm   stages: sum x; sum (x - s0/n)²    finish: s0/n, 1/sqrt(s1/n + eps)    body: (x - s0/n) rstd w + b
    softmax     stages: max x; sum exp(x - s0)    body: exp(x - s0) / s1
    its vjp     stages: sum dy y                  body: y (dy - s0)

A row that fits a tile is loaded once and stays in registers (SINGLE). A longer one is walked in chunks, once for each
stage and once for the body; from the second walk on it comes from the cache. Either way the variance is a sum of
squares of what is already centred.

SUM: values of the body summed over rows, the gradients of weights and biases. Program p takes the row blocks p, p + P,
... and writes row p of the partial sums; `pointwise.reduce_rows` ends them: no atomics, one order. SUM needs SINGLE.

    pre(x, i, c, X) -> u                 None: u is x. i: row-major place; c: a coordinate per dim; X: what else is read
    stages[t](u, s, i, c, X) -> values   to be reduced; s: the results so far, each [BM, 1]
    finish(s, c, X) -> values            None: ROW is empty. c: coordinates of the rows' dims
    body(u, s, i, c, X) -> values        outputs first, then what is summed over rows

| argument | meaning |
|---|---|
| IN, OUT, ROW, SUM, their strides and DIMS | see `operands`; ROW has the rows' dims, SUM (program, columns ...) |
| SIZES, NR | sizes of the dims; the first NR, one at least, are rows, the others are the row |
| KINDS | of each stage, of each of its values: "sum", "max" or "min" |
| SINGLE, BM, BN | a row fits BN; a program's tile, BM rows of BN columns |
| ACC, IDX | tl.float32 or tl.float64; tl.int32, or tl.int64 where a place or an offset can pass 2^31 |

Grid: (programs,): with SUM as many as SUM has rows, else one for each row block.
"""

import triton
import triton.language as tl

from ..common.operands import along, coordinates, entry, gather_in, load, nothings, product, store


@triton.jit
def tile(
    IN,
    in_strides,
    c,
    i,
    ok_r,
    ok_c,
    X,
    pre: tl.constexpr,
    IN_DIMS: tl.constexpr,
    NR: tl.constexpr,
    ACC: tl.constexpr,
):
    """What the stages and the body see of a tile."""
    x = load(IN, in_strides, c, ok_r, ok_c, IN_DIMS, 0, NR, ACC)
    if pre is not None:
        x = pre(x, i, c, X)
    return x


@triton.jit
def one_tile(
    IN,
    in_strides,
    OUT,
    out_strides,
    ROW,
    row_strides,
    SIZES,
    X,
    block,
    sums,
    pre: tl.constexpr,
    stages: tl.constexpr,
    finish: tl.constexpr,
    body: tl.constexpr,
    KINDS: tl.constexpr,
    SUMS: tl.constexpr,
    IN_DIMS: tl.constexpr,
    OUT_DIMS: tl.constexpr,
    ROW_DIMS: tl.constexpr,
    NR: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
):
    """A block of rows, each in one tile; the running sums over rows with its own."""
    nr, nc = product(SIZES, 0, NR, IDX), product(SIZES, NR, len(SIZES), IDX)
    r = tl.cast(block, IDX) * BM + tl.arange(0, BM)[:, None].to(IDX)
    k = tl.arange(0, BN)[None, :].to(IDX)
    cr = coordinates(r, SIZES, 0, NR)
    c, i, ok = cr + coordinates(k, SIZES, NR, len(SIZES)), r * nc + k, (r < nr) & (k < nc)
    u = tile(IN, in_strides, c, i, r < nr, k < nc, X, pre, IN_DIMS, NR, ACC)
    s = ()
    for t in tl.static_range(len(stages)):
        v = gather_in(nothings([BM, BN], entry(KINDS, t), ACC), stages[t](u, s, i, c, X), 0, ok, entry(KINDS, t))
        s = s + along(v, 1, entry(KINDS, t))
    if finish is not None:
        store(ROW, row_strides, finish(s, cr, X), cr, r < nr, k < nc, ROW_DIMS, 0, NR)
    y = body(u, s, i, c, X)
    store(OUT, out_strides, y, c, r < nr, k < nc, OUT_DIMS, 0, NR)
    return gather_in(sums, y, len(OUT), ok, SUMS)


@triton.jit
def chunks(
    IN,
    in_strides,
    OUT,
    out_strides,
    ROW,
    row_strides,
    SIZES,
    X,
    block,
    pre: tl.constexpr,
    stages: tl.constexpr,
    finish: tl.constexpr,
    body: tl.constexpr,
    KINDS: tl.constexpr,
    IN_DIMS: tl.constexpr,
    OUT_DIMS: tl.constexpr,
    ROW_DIMS: tl.constexpr,
    NR: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
):
    """A block of rows, BN columns at a time."""
    nr, nc = product(SIZES, 0, NR, IDX), product(SIZES, NR, len(SIZES), IDX)
    r = tl.cast(block, IDX) * BM + tl.arange(0, BM)[:, None].to(IDX)
    cr = coordinates(r, SIZES, 0, NR)
    s = ()
    for t in tl.static_range(len(stages)):
        v = nothings([BM, BN], entry(KINDS, t), ACC)
        for n in tl.range(0, tl.cdiv(nc, BN)):
            k = n * BN + tl.arange(0, BN)[None, :].to(IDX)
            c, i = cr + coordinates(k, SIZES, NR, len(SIZES)), r * nc + k
            u = tile(IN, in_strides, c, i, r < nr, k < nc, X, pre, IN_DIMS, NR, ACC)
            v = gather_in(v, stages[t](u, s, i, c, X), 0, (r < nr) & (k < nc), entry(KINDS, t))
        s = s + along(v, 1, entry(KINDS, t))
    if finish is not None:
        store(ROW, row_strides, finish(s, cr, X), cr, r < nr, r < nr, ROW_DIMS, 0, NR)
    for n in tl.range(0, tl.cdiv(nc, BN)):
        k = n * BN + tl.arange(0, BN)[None, :].to(IDX)
        c, i = cr + coordinates(k, SIZES, NR, len(SIZES)), r * nc + k
        u = tile(IN, in_strides, c, i, r < nr, k < nc, X, pre, IN_DIMS, NR, ACC)
        store(OUT, out_strides, body(u, s, i, c, X), c, r < nr, k < nc, OUT_DIMS, 0, NR)


@triton.jit
def rowwise(
    IN,
    in_strides,
    OUT,
    out_strides,
    ROW,
    row_strides,
    SUM,
    sum_strides,
    SIZES,
    X,
    pre: tl.constexpr,
    stages: tl.constexpr,
    finish: tl.constexpr,
    body: tl.constexpr,
    KINDS: tl.constexpr,
    IN_DIMS: tl.constexpr,
    OUT_DIMS: tl.constexpr,
    ROW_DIMS: tl.constexpr,
    SUM_DIMS: tl.constexpr,
    NR: tl.constexpr,
    SINGLE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
):
    tl.static_assert(SINGLE or len(SUM) == 0, "sums over rows need whole rows")
    p = tl.program_id(0)
    if len(SUM) > 0:
        SUMS: tl.constexpr = ("sum",) * len(SUM)
        sums = nothings([BM, BN], SUMS, ACC)
        for b in tl.range(p, tl.cdiv(product(SIZES, 0, NR, IDX), BM), tl.num_programs(0)):
            sums = one_tile(
                IN, in_strides, OUT, out_strides, ROW, row_strides, SIZES, X, b, sums,
                pre, stages, finish, body, KINDS, SUMS, IN_DIMS, OUT_DIMS, ROW_DIMS, NR, BM, BN, ACC, IDX,
            )  # fmt: skip
        k = tl.arange(0, BN)[None, :].to(IDX)
        ck = coordinates(k, SIZES, NR, len(SIZES))
        ok_c = k < product(SIZES, NR, len(SIZES), IDX)
        store(SUM, sum_strides, along(sums, 0, SUMS), (p,) + ck, True, ok_c, SUM_DIMS, 1, 1)
    elif SINGLE:
        one_tile(
            IN, in_strides, OUT, out_strides, ROW, row_strides, SIZES, X, p, (),
            pre, stages, finish, body, KINDS, (), IN_DIMS, OUT_DIMS, ROW_DIMS, NR, BM, BN, ACC, IDX,
        )  # fmt: skip
    else:
        chunks(
            IN, in_strides, OUT, out_strides, ROW, row_strides, SIZES, X, p,
            pre, stages, finish, body, KINDS, IN_DIMS, OUT_DIMS, ROW_DIMS, NR, BM, BN, ACC, IDX,
        )  # fmt: skip
