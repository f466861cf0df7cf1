"""c = a @ b. FLAW plants a fault: what a miscompiled or mistaken kernel would do."""

import triton
import triton.language as tl


@triton.jit
def matmul(
    A, B, C, M, N, K, sam, sak, sbk, sbn, scm, scn,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr, FLAW: tl.constexpr,
):  # fmt: skip
    tl.static_assert(FLAW != "assert", "this kernel refuses it")
    i, j = tl.program_id(0), tl.program_id(1)
    m = i * BM + tl.arange(0, BM)
    n = j * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    pa = A + m[:, None] * sam + k[None, :] * sak
    pb = B + k[:, None] * sbk + n[None, :] * sbn
    acc = tl.zeros((BM, BN), dtype=ACC)
    for z in range(tl.cdiv(K, BK)):
        a = tl.load(pa, mask=(m[:, None] < M) & (k[None, :] < K - z * BK), other=0.0)
        b = tl.load(pb, mask=(k[:, None] < K - z * BK) & (n[None, :] < N), other=0.0)
        acc = tl.dot(a, b, acc, out_dtype=ACC)
        pa += BK * sak
        pb += BK * sbk
    if FLAW == "off":
        acc += tl.where((m[:, None] == 0) & (n[None, :] == 0), 1.0, 0.0).to(ACC)
    here = (m[:, None] < M) & (n[None, :] < N)
    if FLAW == "hole":
        here = here & (m[:, None] != M - 1)
    if FLAW == "beyond":
        here = (m[:, None] < M + 1) & (n[None, :] < N)
    tl.store(C + m[:, None] * scm + n[None, :] * scn, acc.to(C.dtype.element_ty), mask=here)
