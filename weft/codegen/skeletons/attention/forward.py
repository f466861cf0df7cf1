# ruff: noqa: RUF005 -- Triton compiles no starred tuples
"""Softmax attention over blocks of keys, forward.

    o[t] = sum_u drop(t, u) p[t, u] v[u],   p[t, u] = exp(s[t, u] - lse[t]) where keep(t, u), else 0
    s[t, u] = score(scale * q[t] . k[u])

A row that sees nothing has o = 0 and lse = +inf. Without SOFTMAX p[t, u] is s[t, u] where keep(t, u), and lse is 0 (no
maximum, no sum). Algorithm: FlashAttention-2 (Dao, 2023, algorithm 1): one pass over
the key blocks with a running maximum and sum, in base 2. Grid: (query blocks, query heads, sequences * classes).

Tensors: Q [sequence, head, row, dk], K [.., key head, .., dk], V [.., dv], OUT, and LSE [sequence, head, row], each
with its strides (batch, head, row) as one tuple; columns contiguous. TAB, X: tuples of what `pieces`, `block` and what
the other holes read, or None. OLD: the output of other, disjoint parts of the pattern, of which LSE then holds the
log-sum-exp; both are merged in. OLD may be OUT. Y: tuple of the epilogue's outputs, sy of their strides.

| constexpr    |                                                                                                     |
|--------------|-----------------------------------------------------------------------------------------------------|
| scale        | float; without a score it is above 0                                                                |
| G            | query heads that share a key head                                                                   |
| HEADS        | (first, step): program h of the grid serves query head first + h * step                             |
| CLASSES      | residue classes, see tiles.py                                                               |
| Q_AT, K_AT   | where rows of queries and keys lie: (modulus, width, origin), see tiles.py                  |
| DK, DV       | tiles(dk), tiles(dv)                                                                                |
| BM, BN       | queries and keys of a block, powers of two >= 16                                                    |
| REVERSE      | last query block first: of causal patterns that is the longest work                                 |
| SLOTS        | a loop each, at most two: True visits full blocks (all pairs visible, all keys exist), False others |
| PLAN         | integers for `pieces` and `block`                                                                   |
| ACC, PREC    | float32 or float64; "ieee", "tf32", "tf32x3": how fp32 operands of a dot are read                   |
| IDX          | int32, or int64 where BM or BN rows span 2**31 elements                                             |
| MULTI        | keep gives how often a key counts, not only whether                                                 |
| SOFTMAX      | False: weights are what score gives, which is there then                                            |

Holes, @triton.jit functions or None; q, k: positions (broadcastable int32 tensors), b: sequence, h: query head:

    pieces(i, s, nq, nk, b, h, BM, BN, PLAN, TAB) -> start, stop, step     what loop s of query block i runs over
    block(z, i, s, nq, nk, b, h, BM, BN, PLAN, TAB) -> key block           None: the loop's variable itself
    keep(q, k, b, h, X) -> bool or int                                     called where the block is not full
    score(s, q, k, b, h, X) -> s                                           s: scores in ACC, already scaled
    drop(p, q, k, b, h, X) -> like p                                       what is left of weights, as a factor
    sink(lse, b, h, X) -> z                                                the score of one more key, of value 0
    epilogue(o, b, h, t, d, ok, X) -> (y, ...)                             t: row in the tensors, d: column; stored to Y
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


@triton.jit
def unchanged(s, q, k, b, h, X):
    """The score where there is none: what a scale of 0 or below needs, before -inf hides a key."""
    return s


@triton.jit
def one(s, q, k, b, h, X):
    """The derivative of `unchanged`."""
    return tl.zeros_like(s) + 1


@triton.jit
def merge(o, lse, before, old, DV: tl.constexpr, ACC: tl.constexpr):
    """Two parts of one softmax, from their outputs and log-sum-exps (-inf: sees nothing)."""
    top = tl.maximum(old, lse)
    top = tl.where(top == -INF, 0.0, top)
    wo, wn = tl.exp(old - top), tl.exp(lse - top)
    total = wo + wn
    inv = 1.0 / tl.where(total == 0, 1.0, total)
    out = ()
    for k in tl.static_range(len(DV)):
        out = out + (before[k].to(ACC) * (wo * inv)[:, None] + o[k] * (wn * inv)[:, None],)
    return out, top + tl.log(total)


@triton.jit
def plus(o, before, DV: tl.constexpr, ACC: tl.constexpr):
    """Two parts of one sum."""
    out = ()
    for k in tl.static_range(len(DV)):
        out = out + (before[k].to(ACC) + o[k],)
    return out


@triton.jit
def sunk(o, lse, z, DV: tl.constexpr):
    """The same softmax with one more key of score z and value 0, for rows that see any (lse = -inf: sees nothing)."""
    top = tl.maximum(lse, z)
    w, total = tl.exp(lse - top), tl.exp(lse - top) + tl.exp(z - top)
    return times(o, (w / total)[:, None], DV), tl.where(lse == -INF, lse, top + tl.log(total))


@triton.jit
def forward(
    Q, K, V, OUT, OLD, LSE, Y, sq, sk, sv, so, sold, sl, sy, NQ, NK, CUQ, CUK, TAB, X,
    scale: tl.constexpr, G: tl.constexpr, HEADS: tl.constexpr, CLASSES: tl.constexpr, Q_AT: tl.constexpr,
    K_AT: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, REVERSE: tl.constexpr,
    SLOTS: tl.constexpr, PLAN: tl.constexpr, pieces: tl.constexpr, block: tl.constexpr, keep: tl.constexpr,
    MULTI: tl.constexpr, SOFTMAX: tl.constexpr, score: tl.constexpr, drop: tl.constexpr, sink: tl.constexpr,
    epilogue: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr, IDX: tl.constexpr,
):  # fmt: skip
    i, h, b, blocks = program(NQ, Q_AT, BM, HEADS[2])
    i = blocks - 1 - i if REVERSE else i
    h = HEADS[0] + h * HEADS[1]
    b, r = b // CLASSES, b % CLASSES
    q0, nq, origin_q = problem(CUQ, NQ, b, r, Q_AT)
    k0, nk, origin_k = problem(CUK, NK, b, r, K_AT)
    if i * BM < nq:
        Kb, Vb = base(K, sk, b, h // G, k0), base(V, sv, b, h // G, k0)
        q = load(base(Q, sq, b, h, q0), sq[2], i * BM, nq, BM, DK, True, Q_AT, IDX)  # [BM, dk]
        m = tl.full([BM], -INF, ACC)  # running maximum, base 2
        den = tl.zeros([BM], ACC)
        acc = zeros(BM, DV, ACC)  # [BM, dv]
        qi = positions(i * BM, origin_q, BM, Q_AT)[:, None]
        c = tl.full([], LOG2E if score is not None else scale * LOG2E, ACC)
        for s in tl.static_range(len(SLOTS)):
            start, stop, step = pieces(i, s, nq, nk, b, h, BM, BN, PLAN, TAB)
            for z in tl.range(start, stop, step):
                j = z if block is None else block(z, i, s, nq, nk, b, h, BM, BN, PLAN, TAB)
                k = load(Kb, sk[2], j * BN, nk, BN, DK, not SLOTS[s], K_AT, IDX)  # [BN, dk]
                x = dot_nt(q, k, DK, ACC, PREC)  # [BM, BN]
                ki = positions(j * BN, origin_k, BN, K_AT)[None, :]
                if score is not None:
                    x = score(x * tl.full([], scale, ACC), qi, ki, b, h, X)
                if not SLOTS[s]:
                    x = visible(x, qi, ki, b, h, (j * BN + tl.arange(0, BN) < nk)[None, :], keep, X, c, MULTI, SOFTMAX)
                p = x
                if SOFTMAX:
                    new = tl.maximum(m, tl.max(x, 1) * c)
                    # a row may have seen nothing yet
                    top = new if SLOTS[s] and score is None else tl.where(new == -INF, 0.0, new)
                    p = tl.exp2(x * c - top[:, None])
                    a = tl.exp2(m - top)
                    den = den * a + tl.sum(p, 1)
                    acc = times(acc, a[:, None], DV)
                    m = new
                if drop is not None:
                    p = p * drop(p, qi, ki, b, h, X)
                v = load(Vb, sv[2], j * BN, nk, BN, DV, not SLOTS[s], K_AT, IDX)  # [BN, dv]
                acc = dot_acc(p.to(V.dtype.element_ty), v, acc, DV, ACC, PREC)
        o, lse = acc, tl.zeros([BM], ACC)
        if SOFTMAX:
            o = times(acc, (1.0 / tl.where(den == 0, 1.0, den))[:, None], DV)
            lse = (m + tl.log2(den)) / tl.full([], LOG2E, ACC)
        Lb = base(LSE, sl, b, h, q0)
        if OLD is not None:
            before = load(base(OLD, sold, b, h, q0), sold[2], i * BM, nq, BM, DV, True, Q_AT, IDX)
            if SOFTMAX:
                old = load_row(Lb, sl[2], i * BM, nq, BM, -INF, ACC, Q_AT, IDX)
                o, lse = merge(o, lse, before, tl.where(old == INF, -INF, old), DV, ACC)
            else:
                o = plus(o, before, DV, ACC)
            tl.debug_barrier()  # all threads have read before one writes
        if sink is not None:
            o, lse = sunk(o, lse, sink(lse, b, h, X), DV)
        store(base(OUT, so, b, h, q0), o, so[2], None, 0, i * BM, nq, BM, DV, Q_AT, IDX)
        store_row(Lb, tl.where(lse == -INF, INF, lse), sl[2], i * BM, nq, BM, Q_AT, IDX)
        if epilogue is not None:
            ok = i * BM + tl.arange(0, BM) < nq
            t = (q0 + place(i * BM + tl.arange(0, BM), Q_AT).to(tl.int64))[:, None]
            for k in tl.static_range(len(DV)):
                d = DV[k][1] + tl.arange(0, DV[k][2])
                there = ok[:, None] & (d < DV[k][1] + DV[k][3])[None, :]
                y = epilogue(o[k], b, h, t, d[None, :], there, X)
                for n in tl.static_range(len(Y)):
                    p = row_pointers(base(Y[n], sy[n], b, h, q0), sy[n][2], i * BM, BM, Q_AT, IDX)
                    store_tile(p, y[n], ok, None, DV[k][1], DV[k][2], DV[k][3])
