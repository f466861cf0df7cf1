# ruff: noqa: RUF005 -- Triton compiles no starred tuples
"""Softmax attention over blocks of keys, backward: delta, dk and dv, dq.

With p from the log-sum-exp as in `forward` and do = d(o):

    delta[t] = do[t] . o[t] - d(lse)[t]           dv[u] = sum_t drop(t, u) p[t, u] do[t]
    ds[t, u] = p[t, u] (drop(t, u) do[t] . v[u] - delta[t]) score'(t, u)
    dq[t] = scale sum_u ds[t, u] k[u]             dk[u] = scale sum_t ds[t, u] q[t]

Without SOFTMAX p is s where keep, ds is drop * do . v * score', and DELTA is not read, LSE for which rows there are.
Algorithm: FlashAttention-2 (Dao, 2023, algorithm 2), with dq in a kernel of its own: no atomics, always the same bits.
dk, dv form S^T = K Q^T directly: the transpose of a dot's result is miscompiled on some machines. Grids:

    delta: (query blocks, query heads, sequences)      dq: (query blocks, query heads, sequences * classes)
    dkdv:  (key blocks, key heads, sequences * classes)

Arguments as in `forward`. DO: d(o), what `delta` wrote if there is an epilogue. OLDQ, OLDK, OLDV: the gradients
that other parts of the pattern have left, added to this one's, or None; they may be DQ, DK_, DV_ themselves. Every part
gets the out, lse and delta of the whole pattern. Walks of dkdv: over the query blocks of a key block. More:

| HEADS          | dkdv: (first, step, count) of the query heads served, None: all. With G = 1 also those of the grid |
| PACKED         | dkdv: block gives (head in its group << 24) + query block, pieces those of all heads of the group  |
| WANT_K, WANT_V | dkdv: which gradients; wide heads take one launch each (S twice, half the accumulators)            |

More holes: dscore(s, q, k, b, h, X), the derivative of score by s, and

    vjp(dy, o, b, h, t, d, ok, X) -> (do, (dg, ...))   dy: tuple, one per output of the epilogue; dg are stored to DG
"""

import triton
import triton.language as tl

from .tiles import (
    INF,
    LOG2E,
    base,
    dot_acc,
    dot_nt,
    load,
    load_row,
    load_tile,
    place,
    positions,
    problem,
    program,
    row_pointers,
    store,
    store_row,
    store_tile,
    times,
    visible,
    zeros,
)

HEAD_SHIFT = tl.constexpr(24)
BLOCK_MASK = tl.constexpr((1 << 24) - 1)


@triton.jit
def pull(DY, DO, DG, OUT, sdy, sdo, sdg, so, q0, nq, i, b, h, X, DV: tl.constexpr, BM: tl.constexpr, AT: tl.constexpr,
         vjp: tl.constexpr, ACC: tl.constexpr, IDX: tl.constexpr):  # fmt: skip
    """Through the epilogue, a tile at a time: stores do and what vjp gives besides; returns do . o [BM]."""
    x = tl.zeros([BM], ACC)
    ok = i * BM + tl.arange(0, BM) < nq
    t = (q0 + place(i * BM + tl.arange(0, BM), AT).to(tl.int64))[:, None]
    po = row_pointers(base(OUT, so, b, h, q0), so[2], i * BM, BM, AT, IDX)
    for k in tl.static_range(len(DV)):
        o = load_tile(po, ok, DV[k][1], DV[k][2], DV[k][3], True).to(ACC)
        dy = ()
        for n in tl.static_range(len(DY)):
            p = row_pointers(base(DY[n], sdy[n], b, h, q0), sdy[n][2], i * BM, BM, AT, IDX)
            dy = dy + (load_tile(p, ok, DV[k][1], DV[k][2], DV[k][3], True).to(ACC),)
        d = DV[k][1] + tl.arange(0, DV[k][2])
        there = ok[:, None] & (d < DV[k][1] + DV[k][3])[None, :]
        do, dg = vjp(dy, o, b, h, t, d[None, :], there, X)
        p = row_pointers(base(DO, sdo, b, h, q0), sdo[2], i * BM, BM, AT, IDX)
        store_tile(p, do, ok, None, DV[k][1], DV[k][2], DV[k][3])
        for n in tl.static_range(len(DG)):
            p = row_pointers(base(DG[n], sdg[n], b, h, q0), sdg[n][2], i * BM, BM, AT, IDX)
            store_tile(p, dg[n], ok, None, DV[k][1], DV[k][2], DV[k][3])
        x += tl.sum(tl.where(there, do.to(DO.dtype.element_ty).to(ACC) * o, 0.0), 1)
    return x


@triton.jit
def delta(
    OUT, DY, DO, DG, DLSE, DELTA, so, sdy, sdo, sdg, sdl, sl, NQ, CUQ, X,
    HEADS: tl.constexpr, DV: tl.constexpr, BM: tl.constexpr, vjp: tl.constexpr, ACC: tl.constexpr, IDX: tl.constexpr,
):  # fmt: skip
    """delta[t] = do . o - dlse. DY: tuple of d(outputs), without an epilogue (do,); then DO and DG are not touched."""
    AT: tl.constexpr = (1, 1, 0)
    i, h, b, _ = program(NQ, AT, BM, HEADS)
    q0, nq, _ = problem(CUQ, NQ, b, 0, AT)
    if i * BM < nq:
        if vjp is not None:
            x = pull(DY, DO, DG, OUT, sdy, sdo, sdg, so, q0, nq, i, b, h, X, DV, BM, AT, vjp, ACC, IDX)
        else:
            o = load(base(OUT, so, b, h, q0), so[2], i * BM, nq, BM, DV, True, AT, IDX)
            do = load(base(DY[0], sdy[0], b, h, q0), sdy[0][2], i * BM, nq, BM, DV, True, AT, IDX)
            x = tl.sum(do[0].to(ACC) * o[0].to(ACC), 1)
            for k in tl.static_range(1, len(DV)):
                x += tl.sum(do[k].to(ACC) * o[k].to(ACC), 1)
        if DLSE is not None:
            x -= load_row(base(DLSE, sdl, b, h, q0), sdl[2], i * BM, nq, BM, 0.0, ACC, AT, IDX)
        store_row(base(DELTA, sl, b, h, q0), x, sl[2], i * BM, nq, BM, AT, IDX)


@triton.jit
def lse2(P, stride, t0, n, B: tl.constexpr, ACC: tl.constexpr, AT: tl.constexpr, IDX: tl.constexpr):
    """lse in base 2; +inf for rows that do not exist, as for those that saw nothing: their exp2(s - lse) is 0."""
    return load_row(P, stride, t0, n, B, INF, ACC, AT, IDX) * tl.full([], LOG2E, ACC)


@triton.jit
def heads_of(hk, G: tl.constexpr, HEADS: tl.constexpr):
    """First query head of key head hk that a launch serves, and how many."""
    first = hk * G
    n = G
    if G > 1 and HEADS is not None:
        skip = (tl.maximum(first - HEADS[0], 0) + HEADS[1] - 1) // HEADS[1]
        first = HEADS[0] + skip * HEADS[1]
        last = tl.minimum(hk * G + G, HEADS[0] + HEADS[1] * (HEADS[2] - 1) + 1)
        n = (tl.maximum(last - first, 0) + HEADS[1] - 1) // HEADS[1]
    return first, n


@triton.jit
def dkdv(
    Q, K, V, DO, LSE, DELTA, DK_, DV_, OLDK, OLDV, sq, sk, sv, sdo, sl, sdk, sdv, soldk, soldv,
    NQ, NK, CUQ, CUK, TAB, X,
    scale: tl.constexpr, G: tl.constexpr, HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, CLASSES: tl.constexpr,
    Q_AT: tl.constexpr, K_AT: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SLOTS: tl.constexpr,
    PLAN: tl.constexpr, pieces: tl.constexpr, block: tl.constexpr, PACKED: tl.constexpr, keep: tl.constexpr,
    MULTI: tl.constexpr, SOFTMAX: tl.constexpr, score: tl.constexpr, dscore: tl.constexpr, drop: tl.constexpr,
    WANT_K: tl.constexpr, WANT_V: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr, IDX: tl.constexpr,
):  # fmt: skip
    """One block of keys against the queries that see it, of all heads that share it, in one flat loop a slot."""
    j, hk, b, _ = program(NK, K_AT, BN, KEY_HEADS)
    if G == 1 and HEADS is not None:
        hk = HEADS[0] + hk * HEADS[1]
    b, r = b // CLASSES, b % CLASSES
    q0, nq, origin_q = problem(CUQ, NQ, b, r, Q_AT)
    k0, nk, origin_k = problem(CUK, NK, b, r, K_AT)
    if j * BN < nk:
        k = load(base(K, sk, b, hk, k0), sk[2], j * BN, nk, BN, DK, True, K_AT, IDX)  # [BN, dk]
        v = load(base(V, sv, b, hk, k0), sv[2], j * BN, nk, BN, DV, True, K_AT, IDX)  # [BN, dv]
        dk = zeros(BN, DK, ACC)
        dv = zeros(BN, DV, ACC)
        ki = positions(j * BN, origin_k, BN, K_AT)[:, None]
        c = tl.full([], LOG2E if score is not None else scale * LOG2E, ACC)
        h0, heads = heads_of(hk, G, HEADS)
        hs: tl.constexpr = 1 if HEADS is None else HEADS[1]
        hidden: tl.constexpr = -INF if SOFTMAX else 0.0
        for s in tl.static_range(len(SLOTS)):
            start, stop, step = pieces(j, s, nk, nq, b, hk, BN, BM, PLAN, TAB)
            n = tl.maximum(stop - start + step - 1, 0) // step
            for z in tl.range(0, n if PACKED else n * heads):
                w = start + (z if G == 1 or PACKED else z % n) * step
                i = w if block is None else block(w, j, s, nk, nq, b, hk, BN, BM, PLAN, TAB)
                if PACKED:
                    h, i = hk * G + (i >> HEAD_SHIFT), i & BLOCK_MASK
                elif G == 1:
                    h = h0
                else:
                    h = h0 + z // n * hs
                Qb, Db = base(Q, sq, b, h, q0), base(DO, sdo, b, h, q0)
                Lb, Eb = base(LSE, sl, b, h, q0), base(DELTA, sl, b, h, q0)
                q = load(Qb, sq[2], i * BM, nq, BM, DK, True, Q_AT, IDX)  # [BM, dk]
                lse = lse2(Lb, sl[2], i * BM, nq, BM, ACC, Q_AT, IDX)  # [BM]
                x = dot_nt(k, q, DK, ACC, PREC)  # [BN, BM]: S^T
                qi = positions(i * BM, origin_q, BM, Q_AT)[None, :]
                if score is not None:
                    raw = x * tl.full([], scale, ACC)
                    # of rows that do not exist the score may be anything
                    x = tl.where(lse[None, :] < INF, score(raw, qi, ki, b, h, X), hidden)
                if not SLOTS[s]:
                    x = visible(x, qi, ki, b, h, None, keep, X, c, MULTI, SOFTMAX)
                p = x
                if SOFTMAX:
                    p = tl.exp2(x * c - lse[None, :])
                do = load(Db, sdo[2], i * BM, nq, BM, DV, True, Q_AT, IDX)  # [BM, dv]
                if drop is not None:
                    left = drop(p, qi, ki, b, h, X)
                if WANT_V:
                    w = p if drop is None else p * left
                    dv = dot_acc(w.to(DO.dtype.element_ty), do, dv, DV, ACC, PREC)
                if WANT_K:
                    dp = dot_nt(v, do, DV, ACC, PREC)  # [BN, BM]
                    if drop is not None:
                        dp = dp * left
                    if SOFTMAX:
                        ds = p * (dp - load_row(Eb, sl[2], i * BM, nq, BM, 0.0, ACC, Q_AT, IDX)[None, :])
                        if score is not None:  # where p is 0 the slope may be anything
                            ds = tl.where(p > 0, ds * dscore(raw, qi, ki, b, h, X), 0.0)
                    else:
                        ds = tl.where(lse[None, :] < INF, dp * dscore(raw, qi, ki, b, h, X), 0.0)
                        if not SLOTS[s]:
                            ds = visible(ds, qi, ki, b, h, None, keep, X, c, MULTI, False)
                    dk = dot_acc(ds.to(Q.dtype.element_ty), q, dk, DK, ACC, PREC)
        if WANT_K:
            dk = times(dk, tl.full([], scale, ACC), DK)
            old = None if OLDK is None else base(OLDK, soldk, b, hk, k0)
            store(base(DK_, sdk, b, hk, k0), dk, sdk[2], old, soldk[2], j * BN, nk, BN, DK, K_AT, IDX)
        if WANT_V:
            old = None if OLDV is None else base(OLDV, soldv, b, hk, k0)
            store(base(DV_, sdv, b, hk, k0), dv, sdv[2], old, soldv[2], j * BN, nk, BN, DV, K_AT, IDX)


@triton.jit
def dq(
    Q, K, V, DO, LSE, DELTA, DQ, OLDQ, sq, sk, sv, sdo, sl, sdq, soldq, NQ, NK, CUQ, CUK, TAB, X,
    scale: tl.constexpr, G: tl.constexpr, HEADS: tl.constexpr, CLASSES: tl.constexpr, Q_AT: tl.constexpr,
    K_AT: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, REVERSE: tl.constexpr,
    SLOTS: tl.constexpr, PLAN: tl.constexpr, pieces: tl.constexpr, block: tl.constexpr, keep: tl.constexpr,
    MULTI: tl.constexpr, SOFTMAX: tl.constexpr, score: tl.constexpr, dscore: tl.constexpr, drop: tl.constexpr,
    ACC: tl.constexpr, PREC: tl.constexpr, IDX: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head against the key blocks of the forward."""
    i, h, b, blocks = program(NQ, Q_AT, BM, HEADS[2])
    i = blocks - 1 - i if REVERSE else i
    h = HEADS[0] + h * HEADS[1]
    b, r = b // CLASSES, b % CLASSES
    q0, nq, origin_q = problem(CUQ, NQ, b, r, Q_AT)
    k0, nk, origin_k = problem(CUK, NK, b, r, K_AT)
    if i * BM < nq:
        Kb, Vb = base(K, sk, b, h // G, k0), base(V, sv, b, h // G, k0)
        q = load(base(Q, sq, b, h, q0), sq[2], i * BM, nq, BM, DK, True, Q_AT, IDX)  # [BM, dk]
        do = load(base(DO, sdo, b, h, q0), sdo[2], i * BM, nq, BM, DV, True, Q_AT, IDX)  # [BM, dv]
        lse = lse2(base(LSE, sl, b, h, q0), sl[2], i * BM, nq, BM, ACC, Q_AT, IDX)  # [BM]
        de = load_row(base(DELTA, sl, b, h, q0), sl[2], i * BM, nq, BM, 0.0, ACC, Q_AT, IDX)
        acc = zeros(BM, DK, ACC)
        qi = positions(i * BM, origin_q, BM, Q_AT)[:, None]
        c = tl.full([], LOG2E if score is not None else scale * LOG2E, ACC)
        for s in tl.static_range(len(SLOTS)):
            start, stop, step = pieces(i, s, nq, nk, b, h, BM, BN, PLAN, TAB)
            for z in tl.range(start, stop, step):
                j = z if block is None else block(z, i, s, nq, nk, b, h, BM, BN, PLAN, TAB)
                k = load(Kb, sk[2], j * BN, nk, BN, DK, not SLOTS[s], K_AT, IDX)  # [BN, dk]
                v = load(Vb, sv[2], j * BN, nk, BN, DV, not SLOTS[s], K_AT, IDX)  # [BN, dv]
                x = dot_nt(q, k, DK, ACC, PREC)  # [BM, BN]
                ki = positions(j * BN, origin_k, BN, K_AT)[None, :]
                if score is not None:
                    raw = x * tl.full([], scale, ACC)
                    x = score(raw, qi, ki, b, h, X)
                bound = (j * BN + tl.arange(0, BN) < nk)[None, :]
                if not SLOTS[s]:
                    x = visible(x, qi, ki, b, h, bound, keep, X, c, MULTI, SOFTMAX)
                p = tl.exp2(x * c - lse[:, None]) if SOFTMAX else x
                dp = dot_nt(do, v, DV, ACC, PREC)
                if drop is not None:
                    dp = dp * drop(p, qi, ki, b, h, X)
                if SOFTMAX:
                    ds = p * (dp - de[:, None])
                    if score is not None:
                        ds = tl.where(p > 0, ds * dscore(raw, qi, ki, b, h, X), 0.0)
                else:
                    ds = dp * dscore(raw, qi, ki, b, h, X)
                    if not SLOTS[s]:
                        ds = visible(ds, qi, ki, b, h, bound, keep, X, c, MULTI, False)
                acc = dot_acc(ds.to(K.dtype.element_ty), k, acc, DK, ACC, PREC)
        acc = times(acc, tl.full([], scale, ACC), DK)
        old = None if OLDQ is None else base(OLDQ, soldq, b, h, q0)
        store(base(DQ, sdq, b, h, q0), acc, sdq[2], old, soldq[2], i * BM, nq, BM, DK, Q_AT, IDX)
