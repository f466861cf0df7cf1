# ruff: noqa: RUF005 -- Triton compiles no starred tuples
"""A recurrence whose states are small matrices, along time: products of them at every step, forward and backward alike.

    s[t+1], y[t] = cell(s[t], x[t], p)        s: states, x: inputs of a step, p: what does not change with time

A program holds the states of one lane (a batch row and head) whole in registers, or B rows or columns of them where a
dim is summed by nothing in the cell: then programs share the work of a lane. Every value of the cell is a tile of two
axes, one of them or both of size 1 where it has fewer dims. The loop from chunk to chunk of a delta rule is such a
recurrence (state in, state out, a state before each chunk), and so is its derivative, which runs backward in time.
Source: the recurrence over chunks of linear attention, with its state kept on chip (Yang et al. 2024).

    cell(s, x, p, t, first, c, X, B, DOT, PREC) -> (s, y)     t: the step's time; first: of the program's B;
                                                              c: coordinates of the lane; X: what else is read

| argument | meaning |
|---|---|
| SEQ, SHARED, START, OUT, BEFORE, LAST | operands, of dims (lane ..., time, row, column); stride 0 for one it lacks |
| SEQ_TILES and so on | of each (rows of its tile, rows, columns of its tile, columns, which axis B divides or -1) |
| BEFORE_OF, LAST_OF | which state each of BEFORE, before every step, and of LAST, after the last, is |
| T, SIZES | steps; sizes of the lanes' dims |
| B, BLOCKS | rows or columns of a program, and how many programs share a lane |
| DOT, PREC | dtype of the factors of products; "ieee", "tf32" or "tf32x3" for fp32 |
| ACC, IDX | tl.float32 or tl.float64; tl.int32, or tl.int64 where a place or an offset can pass 2^31 |

Grid: (lanes * BLOCKS,).
"""

import triton
import triton.language as tl

from ..common.operands import coordinates


@triton.jit
def place(P, strides, c, t, first, TILE: tl.constexpr, IDX: tl.constexpr):
    """Pointers to a tile, and which of its elements exist."""
    r, n = tl.arange(0, TILE[0])[:, None].to(IDX), tl.arange(0, TILE[2])[None, :].to(IDX)
    if TILE[4] == 0:
        r += first
    if TILE[4] == 1:
        n += first
    for d in tl.static_range(len(c)):
        P += c[d] * strides[d]
    P += t * strides[len(c)] + r * strides[len(c) + 1] + n * strides[len(c) + 2]
    return P, (r < TILE[1]) & (n < TILE[3])


@triton.jit
def tiles(P, strides, c, t, first, TILES: tl.constexpr, ACC: tl.constexpr, IDX: tl.constexpr):
    """A tuple of tiles; floats as ACC; what does not exist reads 0."""
    out = ()
    for k in tl.static_range(len(P)):
        at, ok = place(P[k], strides[k], c, t, first, TILES[k], IDX)
        x = tl.load(at, mask=ok, other=0)
        if x.dtype.is_floating():
            x = x.to(ACC)
        out = out + (x,)
    return out


@triton.jit
def put(P, strides, y, OF: tl.constexpr, c, t, first, TILES: tl.constexpr, IDX: tl.constexpr):
    """Store y[OF[k]] to operand k."""
    for k in tl.static_range(len(P)):
        at, ok = place(P[k], strides[k], c, t, first, TILES[k], IDX)
        tl.store(at, y[OF[k]].to(P[k].dtype.element_ty), mask=ok)


@triton.jit
def matrix_scan(
    SEQ,
    seq_strides,
    SHARED,
    shared_strides,
    START,
    start_strides,
    OUT,
    out_strides,
    BEFORE,
    before_strides,
    LAST,
    last_strides,
    T,
    SIZES,
    X,
    cell: tl.constexpr,
    SEQ_TILES: tl.constexpr,
    SHARED_TILES: tl.constexpr,
    START_TILES: tl.constexpr,
    OUT_TILES: tl.constexpr,
    BEFORE_TILES: tl.constexpr,
    LAST_TILES: tl.constexpr,
    OUT_OF: tl.constexpr,
    BEFORE_OF: tl.constexpr,
    LAST_OF: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCKS: tl.constexpr,
    B: tl.constexpr,
    DOT: tl.constexpr,
    PREC: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
):
    c = coordinates((tl.program_id(0) // BLOCKS).to(IDX), SIZES, 0, len(SIZES))
    first = (tl.program_id(0) % BLOCKS).to(IDX) * B
    p = tiles(SHARED, shared_strides, c, 0, first, SHARED_TILES, ACC, IDX)
    s = tiles(START, start_strides, c, 0, first, START_TILES, ACC, IDX)
    for step in tl.range(0, T):
        t = tl.cast(T - 1 - step if REVERSE else step, IDX)
        x = tiles(SEQ, seq_strides, c, t, first, SEQ_TILES, ACC, IDX)
        put(BEFORE, before_strides, s, BEFORE_OF, c, t, first, BEFORE_TILES, IDX)
        s, y = cell(s, x, p, t, first, c, X, B, DOT, PREC)
        put(OUT, out_strides, y, OUT_OF, c, t, first, OUT_TILES, IDX)
    put(LAST, last_strides, s, LAST_OF, c, 0, first, LAST_TILES, IDX)
