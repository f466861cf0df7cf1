# ruff: noqa: RUF005 -- Triton compiles no starred tuples
"""Products of each expert's tokens with its own weights, in one launch; tokens are gathered where they are used.

An expert has C slots for each batch row; TOKEN[e, b, c] is the token in a slot, -1 in an empty one.

    TOKEN[expert[b, t], b, place[b, t]] = t                                       slots
    acc[j][e, slot, n] = sum_k pro(A)[e, slot, k] B[j][e, k, n];  y = epi(acc)    grouped_matmul
    acc[j][e, m, n] = sum over slots of pro(A)[e, slot, m] fac(D)[j][e, slot, n]  grouped_weights
    v[b, t] = sum over choices of term(S[the choice's slot]);  y = body(v)        gather_sum

What slots own has the dims (e, b, c), what tokens own (b, t): the latter is gathered, row by row. t may be several
dims (place in the sequence, choice). Empty slots read 0, so their product is 0; a tile without tokens multiplies
nothing.
The gradient of tokens is gather_sum of that of slots: no scatter, no atomics, one order.

    pro(x, i, c, X) -> a           None: A[0] as it is. Cast to DOT. i: row-major place in (e, slot, column)
    fac(x, i, c, X) -> factors     None: D as they are
    epi(acc, e, i, c, X) -> y      None: the products. e: operands E, of slots, empty ones too, and columns
    term(s, x, c, X) -> v          None: s[0]. s: operands S, of slots; x: operands P, of tokens and choices
    body(v, x, i, c, X) -> y       None: v. x: operands IN, of tokens; i: row-major place in (b, t, n)

| argument | meaning |
|---|---|
| A, D, E, OUT | operands with dims (e, b ..., c, t ..., column ...), see `operands` |
| B; OUT of weights | (e, k ..., n ...); (e, m ..., n ...) |
| SIZES | of e, b ... c, t ..., n ..., k ... (grouped_matmul) or m ..., n ... (grouped_weights) |
| NR, NT, NN | where c ends, where t ends, where the first columns after t end |
| BM, BN, BK, GROUP | a program's tile; how many blocks of rows share columns of B in L2 |
| DOT, PREC | dtype of the factors; "ieee" or "tf32" for fp32 |
| ACC, IDX | tl.float32 or tl.float64; tl.int32, or tl.int64 where a place or an offset can pass 2^31 |

Grids: grouped_matmul (experts * slot blocks * n blocks,), grouped_weights (experts * m blocks * n blocks,), gather_sum
(token blocks * n blocks,), slots (token blocks,).
"""

import triton
import triton.language as tl

from ..common.operands import coordinates, load, load_one, product, store
from ..matmul.kernel import left, swizzled, times, zeros


@triton.jit
def slots(
    EXPERT,
    expert_strides,
    PLACE,
    place_strides,
    TOKEN,
    token_strides,
    SIZES,
    experts,
    capacity,
    DIMS: tl.constexpr,
    NB: tl.constexpr,
    BM: tl.constexpr,
    IDX: tl.constexpr,
):
    """SIZES: of b ..., t ...; the first NB are batches. TOKEN, of dims (e, b ..., c), holds -1 before. EXPERT, PLACE:
    tuples of one; DIMS: which dims they have. No two tokens share a slot; what has no place in one is left out."""
    nt = product(SIZES, NB, len(SIZES), IDX)
    r = tl.program_id(0).to(IDX) * BM + tl.arange(0, BM).to(IDX)
    ok = r < product(SIZES, 0, len(SIZES), IDX)
    c = coordinates(r, SIZES, 0, len(SIZES))
    e = load_one(EXPERT[0], expert_strides[0], c, ok, ok, DIMS, 0, 0, 0).to(IDX)
    place = load_one(PLACE[0], place_strides[0], c, ok, ok, DIMS, 0, 0, 0).to(IDX)
    p = TOKEN + e * token_strides[0]
    for d in tl.static_range(NB):
        p += c[d] * token_strides[1 + d]
    inside = ok & (e >= 0) & (e < experts) & (place >= 0) & (place < capacity)
    tl.store(p + place * token_strides[NB + 1], (r % nt).to(TOKEN.dtype.element_ty), mask=inside)


@triton.jit
def held(
    TOKEN,
    token_strides,
    e,
    r,
    nr,
    SIZES,
    TOKEN_DIMS: tl.constexpr,
    NR: tl.constexpr,
    NT: tl.constexpr,
    IDX: tl.constexpr,
):
    """Coordinates of slots r of expert e and of their tokens; which slots hold one."""
    c = (e,) + coordinates(r, SIZES, 1, NR)
    token = load_one(TOKEN, token_strides, c, r < nr, r < nr, TOKEN_DIMS, 0, 1, NR).to(IDX)
    ok = (r < nr) & (token >= 0)
    return c + coordinates(tl.where(ok, token, 0), SIZES, NR, NT), ok


@triton.jit
def grouped_matmul(
    TOKEN,
    token_strides,
    A,
    a_strides,
    B,
    b_strides,
    E,
    e_strides,
    OUT,
    out_strides,
    SIZES,
    X,
    pro: tl.constexpr,
    epi: tl.constexpr,
    TOKEN_DIMS: tl.constexpr,
    A_DIMS: tl.constexpr,
    B_DIMS: tl.constexpr,
    E_DIMS: tl.constexpr,
    OUT_DIMS: tl.constexpr,
    NR: tl.constexpr,
    NT: tl.constexpr,
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
    nr, nn, nk = product(SIZES, 1, NR, IDX), product(SIZES, NT, NN, IDX), product(SIZES, NN, len(SIZES), IDX)
    br, bn = tl.cdiv(nr, BM).to(tl.int32), tl.cdiv(nn, BN).to(tl.int32)
    e = (tl.program_id(0) // (br * bn)).to(IDX)
    pr, pn = swizzled(tl.program_id(0) % (br * bn), br, bn, GROUP)
    r = pr.to(IDX) * BM + tl.arange(0, BM)[:, None].to(IDX)
    n = pn.to(IDX) * BN + tl.arange(0, BN)[None, :].to(IDX)
    cn = coordinates(n, SIZES, NT, NN)
    cr, ok = held(TOKEN, token_strides, e, r, nr, SIZES, TOKEN_DIMS, NR, NT, IDX)
    acc = zeros(len(B), BM, BN, ACC)
    for k0 in tl.range(0, tl.where(tl.max(ok.to(tl.int32)) > 0, nk, 0), BK):
        k = k0 + tl.arange(0, BK)[None, :].to(IDX)
        ca, i = cr + coordinates(k, SIZES, NN, len(SIZES)), (e * nr + r) * nk + k
        a = left(A, a_strides, ca, i, ok, k < nk, X, pro, A_DIMS, 1, NT, BM, BK, DOT, ACC)
        k = k0 + tl.arange(0, BK)[:, None].to(IDX)
        cb = (e,) + coordinates(k, SIZES, NN, len(SIZES)) + cn
        acc = times(a, acc, B, b_strides, cb, k < nk, n < nn, B_DIMS, 1, 1 + len(SIZES) - NN, ACC, PREC)
    if epi is not None:
        x = load(E, e_strides, cr + cn, r < nr, n < nn, E_DIMS, 1, NT, ACC)
        acc = epi(acc, x, (e * nr + r) * nn + n, cr + cn, X)
    store(OUT, out_strides, acc, cr + cn, r < nr, n < nn, OUT_DIMS, 1, NT)


@triton.jit
def factors(
    D,
    d_strides,
    c,
    i,
    ok_r,
    ok_n,
    X,
    fac: tl.constexpr,
    D_DIMS: tl.constexpr,
    NT: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
    DOT: tl.constexpr,
    ACC: tl.constexpr,
):
    """Tiles of the right factors, [BK, BN]."""
    out = ()
    if fac is None:
        for j in tl.static_range(len(D)):
            out = out + (load_one(D[j], d_strides[j], c, ok_r, ok_n, D_DIMS, j, 1, NT),)
    else:
        y = fac(load(D, d_strides, c, ok_r, ok_n, D_DIMS, 1, NT, ACC), i, c, X)
        for j in tl.static_range(len(y)):
            out = out + (tl.broadcast_to(tl.where(ok_r & ok_n, y[j], 0.0), [BK, BN]).to(DOT),)
    return out


@triton.jit
def grouped_weights(
    TOKEN,
    token_strides,
    A,
    a_strides,
    D,
    d_strides,
    OUT,
    out_strides,
    SIZES,
    X,
    pro: tl.constexpr,
    fac: tl.constexpr,
    TOKEN_DIMS: tl.constexpr,
    A_DIMS: tl.constexpr,
    D_DIMS: tl.constexpr,
    OUT_DIMS: tl.constexpr,
    NR: tl.constexpr,
    NT: tl.constexpr,
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
    nr, nm, nn = product(SIZES, 1, NR, IDX), product(SIZES, NT, NN, IDX), product(SIZES, NN, len(SIZES), IDX)
    bm, bn = tl.cdiv(nm, BM).to(tl.int32), tl.cdiv(nn, BN).to(tl.int32)
    e = (tl.program_id(0) // (bm * bn)).to(IDX)
    pm, pn = swizzled(tl.program_id(0) % (bm * bn), bm, bn, GROUP)
    m = pm.to(IDX) * BM + tl.arange(0, BM)[:, None].to(IDX)
    n = pn.to(IDX) * BN + tl.arange(0, BN)[None, :].to(IDX)
    cm, cn = coordinates(m, SIZES, NT, NN), coordinates(n, SIZES, NN, len(SIZES))
    acc = zeros(len(OUT), BM, BN, ACC)
    for r0 in tl.range(0, nr, BK):
        r = r0 + tl.arange(0, BK)[None, :].to(IDX)
        cr, ok = held(TOKEN, token_strides, e, r, nr, SIZES, TOKEN_DIMS, NR, NT, IDX)
        a = left(A, a_strides, cr + cm, (e * nr + r) * nm + m, ok, m < nm, X, pro, A_DIMS, 1, NT, BM, BK, DOT, ACC)
        r = r0 + tl.arange(0, BK)[:, None].to(IDX)
        cr, ok = held(TOKEN, token_strides, e, r, nr, SIZES, TOKEN_DIMS, NR, NT, IDX)
        d = factors(D, d_strides, cr + cn, (e * nr + r) * nn + n, ok, n < nn, X, fac, D_DIMS, NT, BK, BN, DOT, ACC)
        new = ()
        for j in tl.static_range(len(OUT)):
            new = new + (tl.dot(a, d[j], acc[j], input_precision=PREC, out_dtype=ACC),)
        acc = new
    store(OUT, out_strides, acc, (e,) + cm + cn, m < nm, n < nn, OUT_DIMS, 1, 1 + NN - NT)


@triton.jit
def gather_sum(
    EXPERT,
    expert_strides,
    PLACE,
    place_strides,
    S,
    s_strides,
    P,
    p_strides,
    IN,
    in_strides,
    OUT,
    out_strides,
    SIZES,
    experts,
    capacity,
    X,
    term: tl.constexpr,
    body: tl.constexpr,
    CHOICE_DIMS: tl.constexpr,
    S_DIMS: tl.constexpr,
    P_DIMS: tl.constexpr,
    IN_DIMS: tl.constexpr,
    OUT_DIMS: tl.constexpr,
    CHOICES: tl.constexpr,
    NB: tl.constexpr,
    NR: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
):
    """SIZES: of b ..., t ..., n ...; NB and NR: where b and t end. Dims of EXPERT, PLACE (tuples of one) and P: (b ...,
    t ..., choice, n ...); of S (e, b ..., c, n ...); of IN and OUT (b ..., t ..., n ...)."""
    nr, nn = product(SIZES, 0, NR, IDX), product(SIZES, NR, len(SIZES), IDX)
    blocks = tl.cdiv(nn, BN).to(tl.int32)
    r = (tl.program_id(0) // blocks).to(IDX) * BM + tl.arange(0, BM)[:, None].to(IDX)
    n = (tl.program_id(0) % blocks).to(IDX) * BN + tl.arange(0, BN)[None, :].to(IDX)
    cr, cn = coordinates(r, SIZES, 0, NR), coordinates(n, SIZES, NR, len(SIZES))
    batch = coordinates(r // product(SIZES, NB, NR, IDX), SIZES, 0, NB)
    v = tl.zeros([BM, BN], ACC)
    for j in tl.static_range(CHOICES):
        c = cr + (j,) + cn
        e = load_one(EXPERT[0], expert_strides[0], c, r < nr, n < nn, CHOICE_DIMS, 0, 0, NR + 1).to(IDX)
        place = load_one(PLACE[0], place_strides[0], c, r < nr, n < nn, CHOICE_DIMS, 0, 0, NR + 1).to(IDX)
        ok = (r < nr) & (e >= 0) & (e < experts) & (place >= 0) & (place < capacity)
        s = load(S, s_strides, (e,) + batch + (place,) + cn, ok, n < nn, S_DIMS, 0, NB + 2, ACC)
        if term is None:
            v += s[0]
        else:
            v += term(s, load(P, p_strides, c, r < nr, n < nn, P_DIMS, 0, NR + 1, ACC), c, X)
    y = (v,)
    if body is not None:
        y = body(v, load(IN, in_strides, cr + cn, r < nr, n < nn, IN_DIMS, 0, NR, ACC), r * nn + n, cr + cn, X)
    store(OUT, out_strides, y, cr + cn, r < nr, n < nn, OUT_DIMS, 0, NR)
