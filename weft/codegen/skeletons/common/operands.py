# ruff: noqa: RET505, RUF005 -- Triton compiles no starred tuples and needs both arms of a constant branch
"""Tensors of any strides over one iteration space, loaded and stored as tuples of tiles.

The dims of the space are, in order: scalars (one coordinate a program), rows, columns. NS counts the scalars, NR the
scalars and rows. c is the tuple of coordinates, one per dim: of rows [BM, 1], of columns [1, BN] (or a scalar and [B]
in a kernel of one axis); sides of several dims are walked in row-major order.

    P        pointers
    strides  one tuple of strides per pointer, one stride per dim of the space
    DIMS     constexpr; one tuple of 0 and 1 per pointer: which dims it has. Without rows its tile is [1, BN], and so on
    ok_r     which rows exist; ok_c: which columns
"""

import triton
import triton.language as tl


@triton.constexpr_function
def has(DIMS, k, first, last):
    """Does operand k have one of the dims first .. last - 1?"""
    return any(DIMS[k][first:last])


@triton.constexpr_function
def entry(table, t):
    """table[t]; Triton 3.6 indexes no nested tuples of text."""
    return table[t]


@triton.jit
def product(SIZES, first: tl.constexpr, last: tl.constexpr, IDX: tl.constexpr):
    """How many coordinates the dims first .. last - 1 have together."""
    n = tl.full([], 1, IDX)
    for d in tl.static_range(first, last):
        n = n * SIZES[d]
    return n


@triton.jit
def coordinates(i, SIZES, first: tl.constexpr, last: tl.constexpr):
    """Row-major place -> a coordinate of each of the dims first .. last - 1."""
    out = ()
    for k in tl.static_range(last - first):
        if k < last - first - 1:
            out = (i % SIZES[last - 1 - k],) + out
            i = i // SIZES[last - 1 - k]
        else:
            out = (i,) + out
    return out


@triton.jit
def address(P, strides, c, DIMS: tl.constexpr, k: tl.constexpr):
    """Of operand k: as many axes as it has sides."""
    for d in tl.static_range(len(c)):
        if DIMS[k][d]:
            P = P + c[d] * strides[d]
    return P


@triton.jit
def load_one(P, strides, c, ok_r, ok_c, DIMS: tl.constexpr, k: tl.constexpr, NS: tl.constexpr, NR: tl.constexpr):
    """Operand k in its own dtype; what does not exist reads 0."""
    p = address(P, strides, c, DIMS, k)
    if has(DIMS, k, NS, NR) and has(DIMS, k, NR, len(c)):
        return tl.load(p, mask=ok_r & ok_c, other=0)
    elif has(DIMS, k, NS, NR):
        return tl.load(p, mask=ok_r, other=0)
    elif has(DIMS, k, NR, len(c)):
        return tl.load(p, mask=ok_c, other=0)
    else:
        return tl.load(p)


@triton.jit
def load(P, strides, c, ok_r, ok_c, DIMS: tl.constexpr, NS: tl.constexpr, NR: tl.constexpr, ACC: tl.constexpr):
    """A tuple of tiles; floats as ACC."""
    out = ()
    for k in tl.static_range(len(P)):
        x = load_one(P[k], strides[k], c, ok_r, ok_c, DIMS, k, NS, NR)
        if x.dtype.is_floating():
            x = x.to(ACC)
        out = out + (x,)
    return out


@triton.jit
def store(P, strides, y, c, ok_r, ok_c, DIMS: tl.constexpr, NS: tl.constexpr, NR: tl.constexpr):
    """The first len(P) values of y, each broadcast to its operand's tile and cast to its dtype."""
    for k in tl.static_range(len(P)):
        p = address(P[k], strides[k], c, DIMS, k)
        if has(DIMS, k, NS, NR) and has(DIMS, k, NR, len(c)):
            tl.store(p, y[k].to(P[k].dtype.element_ty), mask=ok_r & ok_c)
        elif has(DIMS, k, NS, NR):
            tl.store(p, y[k].to(P[k].dtype.element_ty), mask=ok_r)
        else:
            tl.store(p, y[k].to(P[k].dtype.element_ty), mask=ok_c)


@triton.jit
def nothings(shape: tl.constexpr, KINDS: tl.constexpr, ACC: tl.constexpr):
    """What reductions of these kinds, "sum", "max" or "min", start from."""
    out = ()
    for k in tl.static_range(len(KINDS)):
        if KINDS[k] == "sum":
            out = out + (tl.full(shape, 0.0, ACC),)
        elif KINDS[k] == "max":
            out = out + (tl.full(shape, float("-inf"), ACC),)
        else:
            out = out + (tl.full(shape, float("inf"), ACC),)
    return out


@triton.jit
def gather_in(so_far, y, first: tl.constexpr, ok, KINDS: tl.constexpr):
    """Running tiles with the values y[first:] taken in where they exist."""
    out = ()
    for k in tl.static_range(len(KINDS)):
        if KINDS[k] == "sum":
            out = out + (so_far[k] + tl.where(ok, y[first + k], 0.0),)
        elif KINDS[k] == "max":
            out = out + (tl.maximum(so_far[k], tl.where(ok, y[first + k], float("-inf"))),)
        else:
            out = out + (tl.minimum(so_far[k], tl.where(ok, y[first + k], float("inf"))),)
    return out


@triton.jit
def along(x, axis: tl.constexpr, KINDS: tl.constexpr):
    """Each running tile reduced along an axis, which stays with size 1."""
    out = ()
    for k in tl.static_range(len(KINDS)):
        if KINDS[k] == "sum":
            out = out + (tl.sum(x[k], axis, keep_dims=True),)
        elif KINDS[k] == "max":
            out = out + (tl.max(x[k], axis, keep_dims=True),)
        else:
            out = out + (tl.min(x[k], axis, keep_dims=True),)
    return out
