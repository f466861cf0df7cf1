"""Faults planted in the attention kernels, and the cases that hunt them."""

# ruff: noqa: E501 -- a fault is read best in one line

from tests.kernels.attention_cases import FILES, case
from tests.kernels.mutate import Fault

__all__ = ["CASES", "FAULTS", "FILES", "case"]

CASES = 160

COMMON, FORWARD, BACKWARD, PIECES, LAUNCH, WALKS = (
    *(f"attention/{name}" for name in ("tiles", "forward", "backward", "pieces", "launch", "walks")),
)  # fmt: skip
K_LOAD = "k = load(Kb, sk[2], j * BN, nk, BN, DK, not SLOTS[s], K_AT, IDX)"
V_LOAD = "v = load(Vb, sv[2], j * BN, nk, BN, DV, not SLOTS[s], K_AT, IDX)"
Q_LOAD = "q = load(Qb, sq[2], i * BM, nq, BM, DK, True, Q_AT, IDX)"

FAULTS = (
    # addressing
    Fault("key head of another group", FORWARD, "base(K, sk, b, h // G, k0)", "base(K, sk, b, h % (HEADS[2] // G), k0)"),
    Fault("v with k's row stride", FORWARD, V_LOAD, V_LOAD.replace("sv[2]", "sk[2]")),
    Fault("out with q's batch stride", FORWARD, "base(OUT, so, b, h, q0)", "base(OUT, (sq[0], so[1], so[2]), b, h, q0)"),
    Fault("rows of a class rounded down", COMMON, "tl.minimum(n % AT[0], AT[1])", "tl.minimum(n % AT[0], 0)"),
    Fault("origin ignored", COMMON, "origin = AT[2] + r", "origin = r"),
    Fault("class ignored", COMMON, "origin = AT[2] + r", "origin = AT[2] + 0 * r"),
    Fault("columns placed as a class", COMMON, "t // AT[1] * AT[0] + t % AT[1]", "t * AT[0]"),
    Fault("positions without origin", COMMON, "tl.arange(0, B), AT) + origin", "tl.arange(0, B), AT) + 0 * origin"),
    Fault("sequence's first row left out", COMMON, "return first + origin, n, origin", "return first * 0 + origin, n, origin"),
    Fault("cut columns read", COMMON, "mask=ok[:, None] & (c < real)[None, :], other=0.0)", "mask=ok[:, None] & (c < w)[None, :], other=0.0)"),
    Fault("cut columns written", COMMON, "mask = ok[:, None] & (c < real)[None, :]", "mask = ok[:, None] & (c < w)[None, :]"),
    Fault("rows past the end read", COMMON, "return tl.load(p[:, None] + (first + c)[None, :], mask=ok[:, None], other=0.0)", "return tl.load(p[:, None] + (first + c)[None, :])"),
    Fault("rows past the end written", COMMON, "mask = ok[:, None] & (c < real)[None, :]", "mask = (c < real)[None, :] & (ok | True)[:, None]"),
    Fault("log-sum-exps past the end written", COMMON, "tl.store(p, x.to(P.dtype.element_ty), mask=t0 + tl.arange(0, B) < n)", "tl.store(p, x.to(P.dtype.element_ty))"),
    Fault("int32 block start", COMMON, "return P + tl.cast(place(t0, AT), tl.int64) * stride", "return P + place(t0, AT) * (stride + 1)"),
    # forward
    Fault("key bound missing", FORWARD, "(j * BN + tl.arange(0, BN) < nk)[None, :], keep", "(j * BN + tl.arange(0, BN) < nk + 99999)[None, :], keep"),
    Fault("key bound one too far", FORWARD, "tl.arange(0, BN) < nk)[None, :], keep", "tl.arange(0, BN) <= nk)[None, :], keep"),
    Fault("keep not applied", COMMON, "ok = seen if bound is None else bound & seen", "ok = seen if bound is None else bound"),
    Fault("bound not applied", COMMON, "ok = seen if bound is None else bound & seen", "ok = seen"),
    Fault("-inf added to what is hidden", COMMON, "else tl.where(ok, x, -INF)", "else x + tl.where(ok, 0.0, -INF)"),
    Fault("counts weigh like one", COMMON, "x = x + tl.log2(tl.maximum(seen, 1).to(x.dtype)) / c", "x = x + 0.0"),
    Fault("counts not scaled back", COMMON, "tl.log2(tl.maximum(seen, 1).to(x.dtype)) / c", "tl.log2(tl.maximum(seen, 1).to(x.dtype))"),
    Fault("sum not rescaled", FORWARD, "den = den * a + tl.sum(p, 1)", "den = den + tl.sum(p, 1)"),
    Fault("output not rescaled", FORWARD, "times(acc, a[:, None], DV), DV, ACC, PREC)", "acc, DV, ACC, PREC)"),
    Fault("maximum not updated", FORWARD, "                m = new\n", "                m = new if SLOTS[s] else m\n"),
    Fault("a row that saw nothing yet", FORWARD, "top = new if SLOTS[s] and score is None else tl.where(new == -INF, 0.0, new)", "top = new"),
    Fault("an empty row divides by 0", FORWARD, "tl.where(den == 0, 1.0, den)", "den"),
    Fault("an empty row's lse is -inf", FORWARD, "tl.where(lse == -INF, INF, lse), sl[2]", "lse, sl[2]"),
    Fault("lse in base 2", FORWARD, "lse = (m + tl.log2(den)) / tl.full([], LOG2E, ACC)", "lse = m + tl.log2(den)"),
    Fault("lse without the sum", FORWARD, "lse = (m + tl.log2(den)) /", "lse = (m + 0 * den) /"),
    Fault("constant in fp32", FORWARD, "scale * LOG2E, ACC)", "scale * LOG2E, tl.float32).to(ACC)"),
    Fault("scale before the score left out", FORWARD, "score(x * tl.full([], scale, ACC), qi, ki, b, h, X)", "score(x, qi, ki, b, h, X)"),
    Fault("queries and keys exchanged in score", FORWARD, "scale, ACC), qi, ki, b, h, X)", "scale, ACC), ki, qi, b, h, X)"),
    Fault("merge weights exchanged", FORWARD, "wo, wn = tl.exp(old - top), tl.exp(lse - top)", "wn, wo = tl.exp(old - top), tl.exp(lse - top)"),
    Fault("merged lse is the larger", FORWARD, "return out, top + tl.log(total)", "return out, tl.maximum(old, lse)"),
    Fault("an empty part merges with weight", FORWARD, "tl.where(old == INF, -INF, old), DV", "tl.where(old == INF, 0.0, old), DV"),
    Fault("epilogue of the first tile only", FORWARD, "y = epilogue(o[k], b,", "y = epilogue(o[0] if DV[k][2] == DV[0][2] else o[k], b,"),
    Fault("epilogue at the block's row", FORWARD, "t = (q0 + place(i * BM + tl.arange(0, BM), Q_AT).to(tl.int64))", "t = (q0 + place(tl.arange(0, BM), Q_AT).to(tl.int64))"),
    Fault("a sink takes nothing of the output", FORWARD, "return times(o, (w / total)[:, None], DV)", "return times(o, (w / w)[:, None], DV)"),
    Fault("a sink is not in the sum", FORWARD, "tl.where(lse == -INF, lse, top + tl.log(total))", "lse + 0 * total"),
    Fault("a sink in every part", LAUNCH, "epilogue, sink = (holes.epilogue, holes.sink) if n == len(order) - 1 else (None, None)", "epilogue, sink = holes.epilogue if n == len(order) - 1 else None, holes.sink"),
    Fault("a row that sees nothing but a sink", FORWARD, "tl.where(lse == -INF, lse, top + tl.log(total))", "top + tl.log(total)"),
    # backward
    Fault("dlse ignored", BACKWARD, "if DLSE is not None:", "if DLSE is not None and BM < 0:"),
    Fault("delta of the first tile", BACKWARD, "for k in tl.static_range(1, len(DV)):", "for k in tl.static_range(len(DV), len(DV)):"),
    Fault("delta from dy", BACKWARD, "x += tl.sum(tl.where(there, do.to(DO.dtype.element_ty).to(ACC) * o, 0.0), 1)", "x += tl.sum(tl.where(there, dy[0] * o, 0.0), 1)"),
    Fault("rows past the end have lse 0", BACKWARD, "return load_row(P, stride, t0, n, B, INF, ACC, AT, IDX)", "return load_row(P, stride, t0, n, B, 0.0, ACC, AT, IDX)"),
    Fault("lse in base e", BACKWARD, "AT, IDX) * tl.full([], LOG2E, ACC)", "AT, IDX) * tl.full([], 1.0, ACC)"),
    Fault("one head of a group", BACKWARD, "n if PACKED else n * heads", "n"),
    Fault("heads in the wrong order", BACKWARD, "h = h0 + z // n * hs", "h = h0 + (heads - 1) * hs"),
    Fault("packed head lost", BACKWARD, "h, i = hk * G + (i >> HEAD_SHIFT), i & BLOCK_MASK", "h, i = hk * G, i & BLOCK_MASK"),
    Fault("key head for query head in lse", BACKWARD, "Lb, Eb = base(LSE, sl, b, h, q0)", "Lb, Eb = base(LSE, sl, b, hk, q0)"),
    Fault("q read past the end", BACKWARD, Q_LOAD, Q_LOAD.replace("True", "not SLOTS[s]")),
    Fault("keep not applied in dkdv", BACKWARD, "x = visible(x, qi, ki, b, h, None, keep, X, c, MULTI)", "x = visible(x, qi, ki, b, h, None, None, X, c, MULTI)"),
    Fault("delta not subtracted in dkdv", BACKWARD, "ds = p * (dp - load_row(Eb, sl[2], i * BM, nq, BM, 0.0, ACC, Q_AT, IDX)[None, :])", "ds = p * dp"),
    Fault("slope left out in dkdv", BACKWARD, "tl.where(p > 0, ds * dscore(raw, qi, ki, b, h, X), 0.0)", "ds"),
    Fault("slope of the changed score", BACKWARD, "x = tl.where(lse[None, :] < INF, score(raw, qi, ki, b, h, X), -INF)", "x = tl.where(lse[None, :] < INF, score(raw, qi, ki, b, h, X), -INF)\n                    raw = x"),
    Fault("score of rows past the end", BACKWARD, "tl.where(lse[None, :] < INF, score(raw, qi, ki, b, h, X), -INF)", "score(raw, qi, ki, b, h, X)"),
    Fault("dk without scale", BACKWARD, "dk = times(dk, tl.full([], scale, ACC), DK)", "dk = times(dk, tl.full([], 1.0, ACC), DK)"),
    Fault("dk with dv's stride", BACKWARD, "dk, sdk[2], old", "dk, sdv[2], old"),
    Fault("other parts' dk lost", BACKWARD, "old = None if OLDK is None else base(OLDK, soldk, b, hk, k0)", "old = None"),
    Fault("dq without delta", BACKWARD, "ds = p * (dp - de[:, None])", "ds = p * dp"),
    Fault("dq stored twice", BACKWARD, "acc, sdq[2], old, soldq[2], i * BM, nq", "acc, sdq[2], old, soldq[2], i // 2 * BM, nq"),
    Fault("dq: slope left out", BACKWARD, "tl.where(p > 0, ds * dscore(raw, qi, ki, b, h, X), 0.0)", "ds", nth=1),
    Fault("p through fp16", FORWARD, "p.to(V.dtype.element_ty)", "p.to(tl.float16).to(V.dtype.element_ty)"),
    Fault("ds through fp32", BACKWARD, "ds.to(Q.dtype.element_ty)", "ds.to(tl.float32).to(Q.dtype.element_ty)"),
    # walks
    Fault("causal: full one block too far", PIECES, "full = tl.minimum(i * A + 1, m) // B", "full = tl.minimum(i * A + B, m) // B"),
    Fault("causal: last block dropped", PIECES, "return full, up(tl.minimum(i * A + A, m), B), 1", "return full, up(tl.minimum(i * A + A, m) - 1, B), 1"),
    Fault("causal back: full one block early", PIECES, "full = tl.minimum(up(i * A + A - 1, B), up(m, B))", "full = tl.minimum(up(i * A + A - 1 - B, B), up(m, B))"),
    Fault("dense: cut block dropped", PIECES, "return m // B, up(m, B), 1", "return m // B, m // B, 1"),
    Fault("plan: rows of another entry", PIECES, "there = there & (t % PLAN[at + 2] < PLAN[at + 3])", "there = there"),
    Fault("plan: low not cut at 0", PIECES, "tl.maximum(PLAN[at + 4] + t * PLAN[at + 5], 0)", "(PLAN[at + 4] + t * PLAN[at + 5])"),
    Fault("plan: end not cut", PIECES, "high = tl.minimum(PLAN[at + 6] + t * PLAN[at + 7], end)", "high = tl.minimum(PLAN[at + 6] + t * PLAN[at + 7], end + 1)"),
    Fault("plan: cut block dropped", PIECES, "total += cut(i, PLAN, m, B)", "total += 0"),
    Fault("plan: phase of a stride lost", PIECES, "anchor = ((PLAN[at + 9] + t * PLAN[at + 10]) % PLAN[at + 8] + PLAN[at + 8]) % PLAN[at + 8]", "anchor = ((PLAN[at + 9] + 0 * t) % PLAN[at + 8] + PLAN[at + 8]) % PLAN[at + 8]"),
    Fault("plan: entries overlap", PIECES, "member(first + z - past, anchor", "member(first + z, anchor"),
    Fault("table: another head's row", PIECES, "(h if PLAN[0] > 1 else 0)", "0"),
    Fault("table: next slot's blocks", PIECES, "tl.load(p), tl.load(p + 1), 1", "tl.load(p), tl.load(p + 2 - (p - TAB[0] + 2 > PLAN[0] * PLAN[1] * PLAN[2])), 1"),
    Fault("causal in one loop: last block dropped", PIECES, "return 0, up(tl.minimum(i * A + A, m), B), 1", "return 0, up(tl.minimum(i * A + A, m), B) - 1, 1"),
    Fault("causal back in one loop: first block dropped", PIECES, "return i * A // B, up(m, B), 1", "return up(i * A, B), up(m, B), 1"),
    Fault("band: first key too late", PIECES, "tl.maximum(i * A - PLAN[0], 0) // B", "tl.maximum(i * A + B - 1 - PLAN[0], 0) // B"),
    Fault("band: last block dropped", PIECES, "tl.maximum(i * A + A + PLAN[1], 0), m)", "tl.maximum(i * A + A + PLAN[1] - B, 0), m)"),
    Fault("band: full too early", PIECES, "tl.maximum(i * A + A - 1 - PLAN[0], 0)", "tl.maximum(i * A - PLAN[0], 0)"),
    Fault("band: full too long", PIECES, "tl.maximum(i * A + 1 + PLAN[1], 0), m) // B", "tl.maximum(i * A + B + PLAN[1], 0), m) // B"),
    Fault("band: blocks after the full ones lost", PIECES, "return tl.where(z < full, z, z + past - full)", "return z"),
    Fault("table cut: all parts the first", WALKS, "head + j * times + z", "head + j * times"),
    Fault("table cut: head lost", WALKS, "return [head + j * times", "return [0 * head + j * times"),
    Fault("table joined: full if any is", WALKS, "(whole[e] == pieces) == full", "(whole[e] > 0) == full"),
    Fault("table joined: partial ones lost", WALKS, "if len(slots) == 1 or", "if"),
    Fault("table recut: rows of the block before", WALKS, "range(i * a // made.grain, min(rows,", "range(max(0, i - 1) * a // made.grain, min(rows,"),
    Fault("table in one loop: starts of two", WALKS, "first[:: len(walk.slots)].contiguous()", "first"),
    Fault("plan read: end cut nothing", WALKS, '"cut" in head', "False"),
    Fault("plan read: end a small number", WALKS, "END = 1 << 30", "END = 1"),
    Fault("plan in one loop: partial only", WALKS, "(sum(walk.plan[:2]), 0, 0, 0, 0, *walk.plan[5:])", "(walk.plan[1], 0, 0, 0, 0, *walk.plan[5 + 12 * walk.plan[0] :])"),
    # launches
    Fault("a scale of any sign in the base", LAUNCH, "return self if scale > 0 or self.score is not None else", "return self if True else"),
    Fault("rows no part reaches not cleared", LAUNCH, "of_heads(lse, heads).fill_(torch.inf)", "pass"),
    Fault("dq not cleared", LAUNCH, "of_heads(total.to(0), order[0][0]).zero_()", "pass"),
    Fault("parts overwrite each other", LAUNCH, "return self.partial if n else None", "return None"),
    Fault("heads of a stride from 0", LAUNCH, "t[:, heads[0] : heads[0] + heads[1] * (heads[2] - 1) + 1 : heads[1]]", "t[:, : heads[2]]"),
    Fault("grid of the whole length", LAUNCH, "return whole * at[1] + min(rest, at[1])", "return whole * at[1]"),
)  # fmt: skip
