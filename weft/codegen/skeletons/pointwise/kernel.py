# ruff: noqa: RUF005 -- Triton compiles no starred tuples
"""Maps over one iteration space: every output element from the elements of its place, in one pass over memory.

    y[p] = body(x[p], ...)            pointwise
    s[c] = reduce over rows r of body(x[r, c], ...)        reduce_rows: the gradient of a broadcast operand, a bias

reduce_rows sums without atomics, in an order that depends on nothing but its configuration: program (b, j) walks the
rows of slab j over the columns of block b and writes row j of a partial result; a second launch with one slab, whose
input is the partial results, ends it.

    body(x, i, c, X) -> values    x: loaded operands (floats as ACC); i: row-major place in the space; c: coordinates,
                                  one per dim; X: what else it reads. Outputs first, then what is reduced
    after(s, c, X) -> values      of reduced values, before they are stored; None: as they are

| argument | meaning |
|---|---|
| IN, OUT, SUM, their strides and DIMS | see `operands`; SUM has the dims (slab, columns ...) |
| SIZES, NR | sizes of the dims; the first NR are rows. Fewer dims are better: merge those that no operand tells apart |
| KINDS | of each reduction: "sum", "max" or "min" |
| BM, BN | a program's tile; columns should be the contiguous dim of most operands; BM is 1 where there are no rows |
| ACC, IDX | tl.float32 or tl.float64; tl.int32, or tl.int64 where a place or an offset can pass 2^31 |

Grids: pointwise (row blocks * column blocks,); reduce_rows (column blocks, slabs).
"""

import triton
import triton.language as tl

from ..common.operands import along, coordinates, gather_in, load, nothings, product, store


@triton.jit
def pointwise(
    IN,
    in_strides,
    OUT,
    out_strides,
    SIZES,
    X,
    body: tl.constexpr,
    IN_DIMS: tl.constexpr,
    OUT_DIMS: tl.constexpr,
    NR: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
):
    tl.static_assert(NR > 0 or BM == 1, "a space without rows has one")
    nr, nc = product(SIZES, 0, NR, IDX), product(SIZES, NR, len(SIZES), IDX)
    blocks = tl.cdiv(nc, BN).to(tl.int32)
    r = (tl.program_id(0) // blocks).to(IDX) * BM + tl.arange(0, BM)[:, None].to(IDX)
    k = (tl.program_id(0) % blocks).to(IDX) * BN + tl.arange(0, BN)[None, :].to(IDX)
    c = coordinates(r, SIZES, 0, NR) + coordinates(k, SIZES, NR, len(SIZES))
    x = load(IN, in_strides, c, r < nr, k < nc, IN_DIMS, 0, NR, ACC)
    y = body(x, r * nc + k, c, X)
    store(OUT, out_strides, y, c, r < nr, k < nc, OUT_DIMS, 0, NR)


@triton.jit
def same(x, i, c, X):
    """The body that ends partial results: they go on as they are."""
    return x


@triton.jit
def reduce_rows(
    IN,
    in_strides,
    OUT,
    out_strides,
    SUM,
    sum_strides,
    SIZES,
    X,
    body: tl.constexpr,
    after: tl.constexpr,
    KINDS: tl.constexpr,
    IN_DIMS: tl.constexpr,
    OUT_DIMS: tl.constexpr,
    SUM_DIMS: tl.constexpr,
    NR: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
):
    tl.static_assert(NR > 0 or BM == 1, "a space without rows has one")
    nr, nc = product(SIZES, 0, NR, IDX), product(SIZES, NR, len(SIZES), IDX)
    slab, slabs = tl.program_id(1), tl.num_programs(1)
    k = tl.program_id(0).to(IDX) * BN + tl.arange(0, BN)[None, :].to(IDX)
    ck = coordinates(k, SIZES, NR, len(SIZES))
    share = tl.cdiv(tl.cdiv(nr, BM), slabs)  # row blocks of a slab
    s = nothings([BM, BN], KINDS, ACC)
    for b in tl.range(slab * share, tl.minimum(slab * share + share, tl.cdiv(nr, BM))):
        r = b * BM + tl.arange(0, BM)[:, None].to(IDX)
        c = coordinates(r, SIZES, 0, NR) + ck
        x = load(IN, in_strides, c, r < nr, k < nc, IN_DIMS, 0, NR, ACC)
        y = body(x, r * nc + k, c, X)
        store(OUT, out_strides, y, c, r < nr, k < nc, OUT_DIMS, 0, NR)
        s = gather_in(s, y, len(OUT), (r < nr) & (k < nc), KINDS)
    s = along(s, 0, KINDS)
    if after is not None:
        s = after(s, ck, X)
    store(SUM, sum_strides, s, (slab,) + ck, True, k < nc, SUM_DIMS, 1, 1)
