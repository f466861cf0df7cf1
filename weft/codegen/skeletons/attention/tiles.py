# ruff: noqa: RET505, RUF005, SIM108 -- Triton compiles no starred tuples and needs both arms of a constant branch
"""What the attention kernels share: where rows lie, tiles of head dims, loads, stores, products.

Rows. A kernel sees the rows t = 0, 1, ... of one class r of one sequence b. Row t has the position

    place(t) + origin + r,    place(t) = t // width * modulus + t % width,    AT = (modulus, width, origin)

in its sequence: (1, 1, 0) is the sequence itself; (R, 1, s) the residue classes r < R of what follows position s;
(m, w, s) without classes the columns s .. s+w-1 of every m. Tensors are reached by strides (batch, head, row), never
copied; head dims are contiguous. Packed sequences lie in one batch (batch stride 0) at the rows CU[b] .. CU[b+1]-1.

Tiles. A head dim is a tuple of power-of-two tiles (index, first column, width, columns that exist): 80 is 64 + 16.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
INF = tl.constexpr(float("inf"))


def tiles(d):
    """Tiles that cover d columns, largest first; only the last may be cut: 80 -> 64 + 16, 72 -> 64 + 16 (8 of 16)."""
    out, first, end = [], 0, (d + 15) // 16 * 16
    while first < end:
        width = 1 << ((end - first).bit_length() - 1)
        out.append((len(out), first, width, min(width, d - first)))
        first += width
    return tuple(out)


# Rows


@triton.jit
def place(t, AT: tl.constexpr):
    if AT[0] == AT[1]:
        return t
    elif AT[1] == 1:
        return t * AT[0]
    else:
        return t // AT[1] * AT[0] + t % AT[1]


@triton.jit
def of_class(n, AT: tl.constexpr):
    """How many of the n positions from a class's first one on are its rows."""
    n = tl.maximum(n, 0)
    if AT[0] != AT[1]:
        n = n // AT[0] * AT[1] + tl.minimum(n % AT[0], AT[1])
    return n


@triton.jit
def problem(CU, N, b, r, AT: tl.constexpr):
    """First row in the tensor (int64), number of rows, and first position, of class r of sequence b."""
    if CU is None:
        first = b.to(tl.int64) * 0
        n = N
    else:
        first = tl.load(CU + b).to(tl.int64)
        n = (tl.load(CU + b + 1) - first).to(tl.int32)
    origin = AT[2] + r
    n = of_class(n - origin, AT)
    return first + origin, n, origin


@triton.jit
def program(N, AT: tl.constexpr, B: tl.constexpr, HEADS: tl.constexpr):
    """Of this program: its block of B rows of the longest class of N, its head of HEADS, its sequence times classes;
    and how many blocks there are. Blocks run fastest. All lie along one axis: the others end at 65,535."""
    blocks, p = tl.cdiv(of_class(N - AT[2], AT), B), tl.program_id(0)
    return p % blocks, p // blocks % HEADS, p // (blocks * HEADS), blocks


@triton.jit
def base(P, strides, b, h, row):
    return P + tl.cast(b, tl.int64) * strides[0] + tl.cast(h, tl.int64) * strides[1] + row * strides[2]


@triton.jit
def row_pointers(P, stride, t0, B: tl.constexpr, AT: tl.constexpr, IDX: tl.constexpr):
    """Pointers [B] to rows t0 .. t0+B-1."""
    t = tl.arange(0, B)
    if AT[0] == AT[1] or AT[1] == 1:
        near = t * AT[0] if AT[1] == 1 else t
    else:
        near = place(t0 + t, AT) - place(t0, AT)
    return P + tl.cast(place(t0, AT), tl.int64) * stride + near.to(IDX) * stride


@triton.jit
def positions(t0, origin, B: tl.constexpr, AT: tl.constexpr):
    """Positions [B] of rows t0 .. t0+B-1 in their sequence."""
    return place(t0 + tl.arange(0, B), AT) + origin


# Memory


@triton.jit
def load_tile(p, ok, first: tl.constexpr, w: tl.constexpr, real: tl.constexpr, CHECK: tl.constexpr):
    c = tl.arange(0, w)
    if real < w:
        return tl.load(p[:, None] + (first + c)[None, :], mask=ok[:, None] & (c < real)[None, :], other=0.0)
    elif CHECK:
        return tl.load(p[:, None] + (first + c)[None, :], mask=ok[:, None], other=0.0)
    else:
        return tl.load(p[:, None] + (first + c)[None, :])


@triton.jit
def load(
    P, stride, t0, n, B: tl.constexpr, TILES: tl.constexpr, CHECK: tl.constexpr, AT: tl.constexpr, IDX: tl.constexpr
):
    """Rows t0 .. t0+B-1 as one [B, w] per tile; rows from n on read 0 (CHECK=False: there are none)."""
    p = row_pointers(P, stride, t0, B, AT, IDX)
    ok = t0 + tl.arange(0, B) < n
    out = ()  # a comprehension would not compile on Triton 3.6
    for k in tl.static_range(len(TILES)):
        out = out + (load_tile(p, ok, TILES[k][1], TILES[k][2], TILES[k][3], CHECK),)
    return out


@triton.jit
def load_row(
    P, stride, t0, n, B: tl.constexpr, other: tl.constexpr, ACC: tl.constexpr, AT: tl.constexpr, IDX: tl.constexpr
):
    """One number for each of rows t0 .. t0+B-1; `other` from n on."""
    return tl.load(row_pointers(P, stride, t0, B, AT, IDX), mask=t0 + tl.arange(0, B) < n, other=other).to(ACC)


@triton.jit
def store_tile(p, x, ok, OLD, first: tl.constexpr, w: tl.constexpr, real: tl.constexpr):
    """x, plus what OLD (pointers like p, or None) holds."""
    c = tl.arange(0, w)
    mask = ok[:, None] & (c < real)[None, :]
    if OLD is not None:
        x += tl.load(OLD[:, None] + (first + c)[None, :], mask=mask, other=0.0).to(x.dtype)
    tl.store(p[:, None] + (first + c)[None, :], x.to(p.dtype.element_ty), mask=mask)


@triton.jit
def store(P, x, stride, OLD, so, t0, n, B: tl.constexpr, TILES: tl.constexpr, AT: tl.constexpr, IDX: tl.constexpr):
    """Rows t0 .. t0+B-1 below n, from one [B, w] per tile; OLD (with row stride so, or None) is added."""
    p = row_pointers(P, stride, t0, B, AT, IDX)
    ok = t0 + tl.arange(0, B) < n
    old = None if OLD is None else row_pointers(OLD, so, t0, B, AT, IDX)
    for k in tl.static_range(len(TILES)):
        store_tile(p, x[k], ok, old, TILES[k][1], TILES[k][2], TILES[k][3])


@triton.jit
def store_row(P, x, stride, t0, n, B: tl.constexpr, AT: tl.constexpr, IDX: tl.constexpr):
    p = row_pointers(P, stride, t0, B, AT, IDX)
    tl.store(p, x.to(P.dtype.element_ty), mask=t0 + tl.arange(0, B) < n)


# Tiles of accumulators and products


@triton.jit
def zero(B: tl.constexpr, w: tl.constexpr, ACC: tl.constexpr):
    return tl.zeros([B, w], ACC)


@triton.jit
def zeros(B: tl.constexpr, TILES: tl.constexpr, ACC: tl.constexpr):
    out = ()
    for k in tl.static_range(len(TILES)):
        out = out + (zero(B, TILES[k][2], ACC),)
    return out


@triton.jit
def times(x, f, TILES: tl.constexpr):
    out = ()
    for k in tl.static_range(len(TILES)):
        out = out + (x[k] * f,)
    return out


@triton.jit
def dot_acc(a, b, acc, TILES: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr):
    """acc + a @ b, tile by tile."""
    out = ()
    for k in tl.static_range(len(TILES)):
        out = out + (tl.dot(a, b[k], acc[k], out_dtype=ACC, input_precision=PREC),)
    return out


@triton.jit
def dot_nt(a, b, TILES: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr):
    """Sum over tiles of a @ b^T. b comes from memory, so its transpose is a view."""
    s = tl.dot(a[0], tl.trans(b[0]), out_dtype=ACC, input_precision=PREC)
    for k in tl.static_range(1, len(TILES)):
        s = tl.dot(a[k], tl.trans(b[k]), s, out_dtype=ACC, input_precision=PREC)
    return s


# Scores


@triton.jit
def visible(x, q, k, b, h, bound, keep: tl.constexpr, X, c, MULTI: tl.constexpr, SOFTMAX: tl.constexpr):
    """Scores x with -inf, or weights with 0, where keep or `bound` (or None) does not hold. MULTI: keep counts, and
    weighs by its count."""
    ok = bound
    if keep is not None:
        seen = keep(q, k, b, h, X)
        if MULTI:
            if SOFTMAX:
                x = x + tl.log2(tl.maximum(seen, 1).to(x.dtype)) / c
            else:
                x = x * seen.to(x.dtype)
            seen = seen > 0
        ok = seen if bound is None else bound & seen
    hidden: tl.constexpr = -INF if SOFTMAX else 0.0
    return x if ok is None else tl.where(ok, x, hidden)
