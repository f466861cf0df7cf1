# ruff: noqa: RUF005, SIM108 -- Triton compiles no starred tuples
"""A recurrence whose cell works element by element, along time; forward and backward.

    s[t+1], y[t] = cell(s[t], x[t], p)        s: states, x: inputs of a step, p: what does not change with time

Lanes (batch x channels) run in parallel, time runs in a program, U steps to a chunk. The loads of a chunk are issued
before the chunk ahead of it is worked on (AHEAD), so a step waits for arithmetic only. Any loop of maps fits: a
derivative that runs backward in time is one too (REVERSE), with sums over time as states.

The forward may keep the states before every EVERY-th step. The backward takes chunks of as many steps from the last to
the first, recomputes a chunk's states in registers from what was kept at its start, and goes through it in reverse. A
gradient of p is summed over time in its lane; lanes that share an element of p are summed by `pointwise.reduce_rows`.
Bytes: with EVERY = 8 the states cost an eighth of one input.

    before(p, c, X) -> p                        None: as loaded. c: coordinates of the lanes; X: what else is read
    start(e, p, c, X) -> s                      states before the first step; None: INIT as loaded
    cell(s, x, p, t, c, X) -> (s, y)            t: the step's time
    vjp(s, x, p, ds, dy, t, c, X) -> (ds, dx, dp)   ds: gradient of the new states, then of the old ones

| argument | meaning |
|---|---|
| SEQ, OUT, DY, DX, KEPT, their strides and DIMS | see `operands`; dims (time, lanes ...) |
| LANE, INIT, LAST, DLAST, DLANE, DINIT | dims (lanes ...); each of LAST, DLAST, DLANE, DINIT may be empty |
| KEPT | states before step t in row t / EVERY; with EVERY = 1 in row t, else counted in the order of steps |
| T, SIZES | steps; sizes of the lanes' dims |
| EVERY, U | a multiple or a divisor of U; backward: steps to a chunk, EVERY of the forward |
| B | lanes of a program |
| ACC, IDX | tl.float32 or tl.float64; tl.int32, or tl.int64 where a place or an offset can pass 2^31 |

Grid: (lane blocks,).
"""

import triton
import triton.language as tl

from ..common.operands import coordinates, load, load_one, product, store


@triton.jit
def when(t, T, REVERSE: tl.constexpr, IDX: tl.constexpr):
    """The time of step number t."""
    return tl.cast(T - 1 - t if REVERSE else t, IDX)


@triton.jit
def live(t, T, ok):
    """Which lanes have a step number t."""
    return ok & (tl.full(ok.shape, t, tl.int32) < T)


@triton.jit
def steps(
    P,
    strides,
    t0,
    T,
    lanes,
    ok,
    DIMS: tl.constexpr,
    U: tl.constexpr,
    REVERSE: tl.constexpr,
    IDX: tl.constexpr,
):
    """The operands of U steps from t0, one step after another, in their own dtypes."""
    out = ()
    for u in tl.static_range(U):
        c = (when(tl.minimum(t0 + u, T - 1), T, REVERSE, IDX),) + lanes  # what has no lanes is loaded unmasked
        for k in tl.static_range(len(P)):
            out = out + (load_one(P[k], strides[k], c, ok, live(t0 + u, T, ok), DIMS, k, 1, 1),)
    return out


@triton.jit
def part(x, first: tl.constexpr, n: tl.constexpr, ACC: tl.constexpr):
    """x[first : first + n], floats as ACC."""
    out = ()
    for k in tl.static_range(n):
        if x[first + k].dtype.is_floating():
            out = out + (x[first + k].to(ACC),)
        else:
            out = out + (x[first + k],)
    return out


@triton.jit
def blocks(x, n: tl.constexpr, B: tl.constexpr, ACC: tl.constexpr):
    """The first n of x as whole blocks of the accumulator's dtype; zeros where there are none."""
    out = ()
    for k in tl.static_range(n):
        if k < len(x):
            out = out + (tl.zeros([B], ACC) + x[k],)
        else:
            out = out + (tl.zeros([B], ACC),)
    return out


@triton.jit
def moved(exists, new, old):
    """The new values where the step exists."""
    out = ()
    for k in tl.static_range(len(old)):
        out = out + (tl.where(exists, new[k], old[k]),)
    return out


@triton.jit
def added(exists, more, total):
    """Running sums, with those of a step where it exists."""
    out = ()
    for k in tl.static_range(len(total)):
        out = out + (total[k] + tl.where(exists, more[k], 0.0),)
    return out


@triton.jit
def scan(
    SEQ,
    seq_strides,
    LANE,
    lane_strides,
    INIT,
    init_strides,
    OUT,
    out_strides,
    KEPT,
    kept_strides,
    LAST,
    last_strides,
    T,
    SIZES,
    X,
    before: tl.constexpr,
    start: tl.constexpr,
    cell: tl.constexpr,
    SEQ_DIMS: tl.constexpr,
    LANE_DIMS: tl.constexpr,
    INIT_DIMS: tl.constexpr,
    OUT_DIMS: tl.constexpr,
    KEPT_DIMS: tl.constexpr,
    LAST_DIMS: tl.constexpr,
    STATES: tl.constexpr,
    REVERSE: tl.constexpr,
    AHEAD: tl.constexpr,
    EVERY: tl.constexpr,
    U: tl.constexpr,
    B: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
):
    """STATES: how many; the first len(KEPT) are kept, the first len(LAST) stored at the end."""
    tl.static_assert(U % EVERY == 0 or EVERY % U == 0, "EVERY and U: one divides the other")
    i = tl.program_id(0).to(IDX) * B + tl.arange(0, B).to(IDX)
    ok = i < product(SIZES, 0, len(SIZES), IDX)
    c = coordinates(i, SIZES, 0, len(SIZES))
    p = load(LANE, lane_strides, c, ok, ok, LANE_DIMS, 0, 0, ACC)
    if before is not None:
        p = before(p, c, X)
    s = load(INIT, init_strides, c, ok, ok, INIT_DIMS, 0, 0, ACC)
    if start is not None:
        s = start(s, p, c, X)
    s = blocks(s, STATES, B, ACC)
    nxt = steps(SEQ, seq_strides, 0, T, c, ok, SEQ_DIMS, U, REVERSE, IDX)
    for t0 in tl.range(0, T, U):
        if AHEAD:
            now = nxt
            nxt = steps(SEQ, seq_strides, t0 + U, T, c, ok, SEQ_DIMS, U, REVERSE, IDX)
        else:
            now = steps(SEQ, seq_strides, t0, T, c, ok, SEQ_DIMS, U, REVERSE, IDX)
        for u in tl.static_range(U):
            t = when(t0 + u, T, REVERSE, IDX)
            exists = live(t0 + u, T, ok)
            if u % EVERY == 0:
                row = t if EVERY == 1 else tl.cast((t0 + u) // EVERY, IDX)
                due = exists if U % EVERY == 0 else live((t0 + u) % EVERY, 1, exists)
                store(KEPT, kept_strides, s, (row,) + c, ok, due, KEPT_DIMS, 1, 1)
            new, y = cell(s, part(now, u * len(SEQ), len(SEQ), ACC), p, t, c, X)
            store(OUT, out_strides, y, (t,) + c, ok, exists, OUT_DIMS, 1, 1)
            s = moved(exists, new, s)
    store(LAST, last_strides, s, c, ok, ok, LAST_DIMS, 0, 0)


@triton.jit
def scan_backward(
    SEQ,
    seq_strides,
    LANE,
    lane_strides,
    KEPT,
    kept_strides,
    DY,
    dy_strides,
    DLAST,
    dlast_strides,
    DX,
    dx_strides,
    DLANE,
    dlane_strides,
    DINIT,
    dinit_strides,
    T,
    SIZES,
    X,
    before: tl.constexpr,
    cell: tl.constexpr,
    vjp: tl.constexpr,
    SEQ_DIMS: tl.constexpr,
    LANE_DIMS: tl.constexpr,
    KEPT_DIMS: tl.constexpr,
    DY_DIMS: tl.constexpr,
    DLAST_DIMS: tl.constexpr,
    DX_DIMS: tl.constexpr,
    DLANE_DIMS: tl.constexpr,
    DINIT_DIMS: tl.constexpr,
    REVERSE: tl.constexpr,
    AHEAD: tl.constexpr,
    EVERY: tl.constexpr,
    B: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
):
    """KEPT holds every state. The first len(DX) and len(DLANE) of vjp's gradients are stored."""
    i = tl.program_id(0).to(IDX) * B + tl.arange(0, B).to(IDX)
    ok = i < product(SIZES, 0, len(SIZES), IDX)
    c = coordinates(i, SIZES, 0, len(SIZES))
    p = load(LANE, lane_strides, c, ok, ok, LANE_DIMS, 0, 0, ACC)
    if before is not None:
        p = before(p, c, X)
    ds = blocks(load(DLAST, dlast_strides, c, ok, ok, DLAST_DIMS, 0, 0, ACC), len(KEPT), B, ACC)
    dp = blocks((), len(DLANE), B, ACC)
    n = tl.cdiv(T, EVERY)
    nxt = steps(SEQ, seq_strides, (n - 1) * EVERY, T, c, ok, SEQ_DIMS, EVERY, REVERSE, IDX)
    dnxt = steps(DY, dy_strides, (n - 1) * EVERY, T, c, ok, DY_DIMS, EVERY, REVERSE, IDX)
    for m in tl.range(0, n):
        t0 = (n - 1 - m) * EVERY
        row = when(t0, T, REVERSE, IDX) if EVERY == 1 else tl.cast(t0 // EVERY, IDX)
        s = load(KEPT, kept_strides, (row,) + c, ok, ok, KEPT_DIMS, 1, 1, ACC)
        if AHEAD:
            now, dy = nxt, dnxt
            first = tl.where(m < n - 1, t0 - EVERY, T)  # before the first chunk there is nothing to load
            nxt = steps(SEQ, seq_strides, first, T, c, ok, SEQ_DIMS, EVERY, REVERSE, IDX)
            dnxt = steps(DY, dy_strides, first, T, c, ok, DY_DIMS, EVERY, REVERSE, IDX)
        else:
            now = steps(SEQ, seq_strides, t0, T, c, ok, SEQ_DIMS, EVERY, REVERSE, IDX)
            dy = steps(DY, dy_strides, t0, T, c, ok, DY_DIMS, EVERY, REVERSE, IDX)
        states = s
        for u in tl.static_range(EVERY - 1):  # states before each step; of steps that do not exist they are not used
            s, _ = cell(s, part(now, u * len(SEQ), len(SEQ), ACC), p, when(t0 + u, T, REVERSE, IDX), c, X)
            states = states + s
        for u in tl.static_range(EVERY - 1, -1, -1):
            t = when(t0 + u, T, REVERSE, IDX)
            exists = live(t0 + u, T, ok)
            old = part(states, u * len(KEPT), len(KEPT), ACC)
            x = part(now, u * len(SEQ), len(SEQ), ACC)
            new, dx, more = vjp(old, x, p, ds, part(dy, u * len(DY), len(DY), ACC), t, c, X)
            store(DX, dx_strides, dx, (t,) + c, ok, exists, DX_DIMS, 1, 1)
            ds = moved(exists, new, ds)
            dp = added(exists, more, dp)
    store(DLANE, dlane_strides, dp, c, ok, ok, DLANE_DIMS, 0, 0)
    store(DINIT, dinit_strides, ds, c, ok, ok, DINIT_DIMS, 0, 0)
