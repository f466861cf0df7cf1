"""Generated cases of the attention kernels: any pattern, walk, block sizes, lengths, strides; and their truth."""

import random
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from tests.kernels import attention_holes as H
from tests.kernels.dual import interpreting
from tests.kernels.sanitize import checked, strided
from weft.codegen.skeletons.attention.writer import plan
from weft.codegen.skeletons.attention.writer.walks import Walks
from weft.codegen.skeletons.common import host
from weft.ir.pattern import LayoutPart, Pattern, holds, layout

FILES = ("attention/launch", "attention/pieces", "attention/walks")


def patterns(rng: random.Random) -> dict[str, str]:
    """A text of every kind."""
    w, c, m = rng.choice((1, 7, 16, 32, 40)), rng.choice((1, 3, 8)), rng.choice((2, 3, 5))
    table = [[rng.randrange(8) for _ in range(rng.randint(0, 4))] for _ in range(8)]
    other = [[rng.randrange(8) for _ in range(rng.randint(0, 4))] for _ in range(8)]
    return {
        "all": "all",
        "causal": "causal",
        "strict": "strict_causal",
        "window": f"window({w})",
        "band": f"band({w}, {c})",
        "lag": f"q >= k + {w}",
        "ahead": f"k >= q + {c}",
        "diagonal": f"block_diagonal({w})",
        "strided": f"causal and strided({m})",
        "strided all": f"strided({m})",
        "dilated": f"dilated({w}, {m})",
        "window and strided": f"causal and (window({w}) or strided({m}))",
        "fixed": f"causal and fixed({max(w, 4)}, {rng.choice((1, 2, 3, 4))})",
        "columns": f"chunks_before({w + 1}) and k % {w + 1} >= {w // 2}",
        "longformer": f"longformer({w}, {w}, {c})",
        "sinks": f"causal and (window({w}) or cols({c}))",
        "prefix": f"prefix({w})",
        "late": f"causal and q >= {w} and k >= {w}",
        "late strided": f"causal and strided({m}) and q >= {c} and k >= {c}",
        "modular": f"causal and (q + 3 * k) % {m + 2} < 2",
        "heads": f"heads(causal, window({w}), strided({m}))",
        "segments": "causal and same_segment",
        "nothing": "k > q and k < q",
        "blocks": f"blocks({rng.choice((16, 32))}, {table})",
        "blocks by head": f"blocks(16, {table}, {other})",
        "bigbird": f"bigbird({rng.choice((16, 32))}, 2, 7)",
    }


KINDS = tuple(patterns(random.Random(0)))
HEADS = ((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (1, 1, 3), (1, 2, 2), (2, 1, 2))
MODES = ("layout", "plan", "table", "one loop", "emitted")


@dataclass(frozen=True)
class Case:
    """One case. most: the length the walks are made for; cu: of packed sequences; blocks: (BM, BN) of each kernel."""

    seed: int
    text: str
    mode: str
    batch: int
    kv: int
    group: int
    nq: int
    nk: int
    most: tuple[int, int]
    dk: int
    dv: int
    blocks: dict[str, tuple[int, int]]
    score: str
    epilogue: str
    sink: bool
    drop: bool
    dlse: bool
    lengths: tuple[tuple[int, int], ...] | None
    split: bool
    amplitude: float
    sign: int
    softmax: bool = True


def generate(seed: int, dtype: torch.dtype = torch.float64) -> Case:
    """Case number `seed`: kind and mode go round, the rest is drawn."""
    rng = random.Random(seed)
    kind, text = KINDS[seed % len(KINDS)], list(patterns(rng).values())[seed % len(KINDS)]
    mode = MODES[(seed // len(KINDS) + seed) % len(MODES)]
    listed, square = "bl" in kind or kind == "bigbird", kind not in ("all", "lag", "ahead", "band", "columns")
    nq = rng.choice((rng.randint(1, 70), rng.randint(1, 40), 16, 32, 64, 65))
    nk = nq if square or rng.random() < 0.4 else rng.randint(1, 70)
    more = 0 if listed else rng.choice((0, 0, 1, 30, 100))
    lengths = None
    if rng.random() < 0.3 and not listed and kind != "segments":
        lengths = tuple((a, a if square else rng.randint(0, nk)) for a in (rng.randint(0, nq) for _ in range(3)))
        nq, nk = max(1, *(a for a, _ in lengths)), max(1, *(b for _, b in lengths))
    dk = rng.choice((16, 16, 24, 32, 48, 80))
    sizes = (16,) if listed and mode == "emitted" else (16, 32, 32, 64)  # those that divide a static set's
    batch, kv, group = rng.choice(HEADS)
    made = Case(
        seed=seed, text=text, mode=mode, batch=batch, kv=kv, group=group, nq=nq, nk=nk, most=(nq + more, nk + more),
        dk=dk, dv=dk if rng.random() < 0.7 else rng.choice((16, 40, 96)),
        blocks={k: (rng.choice(sizes), rng.choice(sizes)) for k in ("forward", "delta", "dkdv", "dq")},
        score=rng.choice(("", "", "cap", "alibi")), epilogue=rng.choice(("", "", "gated", "two")),
        sink=random.Random(f"{seed}, sink").random() < 0.3, drop=random.Random(f"{seed}, drop").random() < 0.3,
        dlse=rng.random() < 0.5, lengths=lengths, split=rng.random() < 0.3, amplitude=rng.choice((1.0, 1.0, 6.0)),
        sign=rng.choice((1, 1, 1, -1, -1, 0)),
    )  # fmt: skip
    made = replace(made, score="ragged") if made.score and rng.random() < 0.4 else made
    if random.Random(f"{seed}, softmax").random() < 0.85:
        return made
    return replace(made, score=made.score or "cap", sink=False, dlse=False, softmax=False)


# What the kernels get


def counts(c: Case, pattern: Pattern, segments: Tensor | None) -> Tensor:
    """How often q sees k: int8 [batch or 1, heads, nq, nk]."""
    pattern, n = pattern.at(max(c.nq, c.nk)), max(c.nq, c.nk)
    q, k = np.arange(c.nq)[:, None], np.arange(c.nk)[None]
    out = []
    for b in range(1 if segments is None else c.batch):
        meta = None if segments is None else {"segments": (segments[b, :, None].numpy(), segments[b].numpy())}
        seen = [np.asarray(holds(pattern, q, k, head=h, meta=meta, np=np, n=n)) for h in range(c.kv * c.group)]
        out.append([np.broadcast_to(x.astype(np.int8), (c.nq, c.nk)) for x in seen])
    return torch.from_numpy(np.array(out))


def parts_of(c: Case) -> list[tuple[Any, list[LayoutPart]]]:
    """[(heads, parts)]: by the pattern's layout, or each head's pattern as one part."""
    pattern, heads = Pattern.parse(c.text).at(max(c.nq, c.nk)), c.kv * c.group
    if c.mode == "layout" and not pattern.multiset:
        chosen: dict[tuple[int, ...], list[int]] = {}
        found = layout(pattern, max(c.nq, c.nk), 32, heads).parts
        by_head = {h: [p for p in found if p.heads is None or h in range(*p.heads)] for h in range(heads)}
        if not pattern.per_head or all(p.layout in ("tiles", "blocks") for p in found):
            return [(None, by_head[0])]
        for h, parts in by_head.items():
            chosen.setdefault(tuple(map(id, parts)), []).append(h)
        return [((h, 1, 1), by_head[h]) for hs in chosen.values() for h in hs]
    return [(None, [LayoutPart("tiles", term=pattern)])]


def walk_of(modules: Any, c: Case, p: Any, kernel: str, pattern: Pattern, nq: int, nk: int) -> Any:
    """One kernel's walk of a part with row pattern `pattern`."""
    (bm, bn), back = c.blocks[kernel], kernel == "dkdv"
    heads = list(range(c.kv * c.group)) if pattern.per_head else [None]
    size = max(nq, nk) if pattern.needs_length else None
    pattern = pattern.at(size) if size else pattern
    loops = 1 if c.mode == "one loop" else 2
    if loops == 1 and not pattern.per_head:
        w = plan.walk(pattern, nq, nk, bm, bn, back, loops=1) if c.seed % 3 else plan.MASKED
    elif c.mode == "emitted":
        return emitted(modules, c, pattern, nq, nk, kernel)
    elif c.mode == "table" or pattern.per_head:
        w = plan.tabulate(pattern, nq, nk, bm, bn, back, heads, c.group if pattern.per_head else 1, loops)
    elif c.mode == "plan" and plan.closed(pattern):
        w = plan.planned(pattern, nq, nk, bm, bn, back) or plan.MASKED
    else:
        w = plan.walk(pattern, nq, nk, bm, bn, back)
    table = None if w.table is None else tuple(map(torch.from_numpy, w.table))
    names = modules.attention_pieces
    block = None if w.block is None else getattr(names, w.block)
    numbers = names.flat(*w.plan) if w.pieces == "plan_pieces" else w.plan
    return modules.attention_launch.Walk(getattr(names, w.pieces), block, w.slots, numbers, table, w.packed, w.keep)


def emitted(modules: Any, c: Case, pattern: Pattern, nq: int, nk: int, kernel: str) -> Any:
    """The walk that a region's file has for the case's blocks, in one loop or two."""
    back, heads = kernel == "dkdv", list(range(c.kv * c.group)) if pattern.per_head else [None]
    text = Walks(plan.static_block(pattern))
    text.add("WALKS", pattern, nq, nk, back, heads, c.group if back and pattern.per_head else 1)
    names = {"launch": modules.attention_launch, "pieces": modules.attention_pieces, "walks": modules.attention_walks}
    scope = {**names, "host": host}
    exec("\n".join(text.lines), scope)
    return modules.attention_walks.chosen(scope["WALKS"], (*c.blocks[kernel], 1 + c.seed % 2), torch.device("cpu"))


def groups_of(modules: Any, c: Case, segments: Tensor | None) -> tuple[Any, Tensor]:
    """The groups of `attention.forward`, and what keep looks up: int8 [part, batch or 1, heads, nq, nk]."""
    out, masks = [], []
    for heads, parts in parts_of(c):
        made = []
        for p in parts:
            g, multi = plan.geometry(p), p.term.multiset
            nq, nk = g.count(c.most[0], g.q_at), g.count(c.most[1], g.k_at)
            walks = [walk_of(modules, c, p, name, g.rows, nq, nk) for name in ("forward", "dkdv", "dq")]
            hole = None if g.keep is None else H.count if multi else H.KEEP[len(masks)]
            masks.append(counts(c, p.term, segments))
            made.append(modules.attention_launch.Part(*walks, hole, multi, g.classes, g.q_at, g.k_at))
        out.append((heads, tuple(made)))
    return tuple(out), torch.stack(masks or [torch.zeros(1, c.kv * c.group, c.nq, c.nk, dtype=torch.int8)])


HOLES = {
    "": (None, None),
    "cap": (H.cap, H.cap_slope),
    "alibi": (H.alibi, H.alibi_slope),
    "ragged": (H.ragged, H.ragged_slope),
    "gated": (H.gated, H.gated_vjp),
    "two": (H.two, H.two_vjp),
}


@dataclass
class Run:
    """The operands of a case, and what the kernels made of them."""

    case: Case
    tensors: dict[str, Tensor]
    counts: Tensor
    scale: float
    results: dict[str, Tensor]


def operands(c: Case, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor | None, float]:
    """Strided tensors of dtype: q, k, v, the gate, the cotangents; segments; the scale."""
    rng = random.Random(c.seed)
    torch.manual_seed(c.seed)
    heads, packed = c.kv * c.group, c.lengths
    batch = 1 if packed else c.batch
    rows, keys = (sum(a for a, _ in packed), sum(b for _, b in packed)) if packed else (c.nq, c.nk)
    shapes = {
        "q": (heads, rows, c.dk), "k": (c.kv, keys, c.dk), "v": (c.kv, keys, c.dv), "gate": (heads, rows, c.dv),
        "dy": (heads, rows, c.dv), "dy2": (heads, rows, c.dv), "dlse": (heads, rows, 1),
    }  # fmt: skip
    single = torch.float32 if dtype != torch.float64 else dtype
    tensors = {
        name: strided(rng, (batch, *shape), single if name == "dlse" else dtype,
                      torch.randn(batch, *shape) * (c.amplitude if name == "q" else 1.0))
        for name, shape in shapes.items()
    }  # fmt: skip
    tensors["dlse"] = tensors["dlse"][..., 0]
    tensors["slopes"] = torch.rand(heads, dtype=single) * 0.2
    tensors["sinks"] = torch.linspace(-1, 2, heads, dtype=single)
    segments = torch.randint(0, 7, (c.batch, c.nq)) if "segment" in c.text else None
    if segments is not None and c.seed // len(KINDS) % 3:  # else in no order
        segments = segments.sort(-1).values
    return tensors, segments, c.sign * rng.uniform(0.2, 0.5)


def run(modules: Any, c: Case, dtype: torch.dtype = torch.float64, precision: str = "ieee", check: bool = True) -> Run:
    """Forward and backward of a case, interpreted under the checks, results in memory of NaN and of any strides."""
    A, rng = modules.attention_launch, random.Random(c.seed + 1)
    t, segments, scale = operands(c, dtype)
    groups, seen = groups_of(modules, c, segments)
    steps = (seen.stride(0), seen.stride(1) if seen.shape[1] > 1 else 0, *seen.stride()[2:])
    x = (seen, steps, c.nq, c.nk, t["slopes"], t["gate"], A.strides(t["gate"]), t["sinks"])
    packed = None
    if c.lengths:
        cu = [torch.tensor([0, *np.cumsum([n[z] for n in c.lengths])], dtype=torch.int32) for z in (0, 1)]
        packed = A.Packed(*cu, c.nq, c.nk)
    config = {
        k: {"BM": m, "BN": n, "num_warps": 4, "num_stages": 2, "SPLIT": c.split} for k, (m, n) in c.blocks.items()
    }
    sink, drop = H.sink if c.sink else None, H.thinned if c.drop else None
    holes = A.Holes(*HOLES[c.score], *HOLES[c.epilogue], sink, drop, c.softmax)
    many = {"": 0, "gated": 1, "two": 2}[c.epilogue]
    common = {"holes": holes, "x": x, "packed": packed, "precision": precision}
    common["segments"] = None if segments is None else (segments, segments)
    made = patch.object(A, "rows_like", lambda like, width, kind: strided(rng, (*like.shape[:3], width), kind))
    with made, interpreting(), checked(c.seed) if check else patch.object(A, "EMPTY", A.EMPTY):
        out, lse, *ys = A.forward(*(t[n] for n in "qkv"), groups, scale, config, dtypes=(dtype,) * many, **common)
        dys = (t["dy"], t["dy2"])[: max(1, many)]
        dlse = t["dlse"] if c.dlse else None
        grads = A.backward(dys, *(t[n] for n in "qkv"), out, lse, groups, scale, config, dlse=dlse,
                           dtypes=(dtype,) * (many > 0), **common)  # fmt: skip
    names = ("out", "lse", *("y", "y2")[:many], "dq", "dk", "dv", *["dgate"][:many])
    return Run(c, t, counts(c, Pattern.parse(c.text), segments), scale, dict(zip(names, (out, lse, *ys, *grads))))


# The truth


def truth(r: Run, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The same results from dense attention and autograd, in `dtype`."""
    c, out = r.case, dict[str, list[Tensor]]()
    spans, a, b = [], 0, 0
    for nq, nk in c.lengths or [(c.nq, c.nk)] * c.batch:
        spans.append((slice(a, a + nq), slice(b, b + nk)) if c.lengths else (slice(None), slice(None)))
        a, b = a + nq, b + nk
    for z, (rows, keys) in enumerate(spans):
        at = 0 if c.lengths else z
        own = {
            n: r.tensors[n][at][:, keys if n in "kv" else rows].to(dtype)
            for n in ("q", "k", "v", "gate", "dy", "dy2", "dlse")
        }
        seen = r.counts[min(z, len(r.counts) - 1)][:, : own["q"].shape[1], : own["k"].shape[1]]
        slopes, sinks = (r.tensors[n].to(dtype)[:, None, None] for n in ("slopes", "sinks"))
        for name, value in dense(c, own, seen, slopes, sinks, r.scale).items():
            out.setdefault(name, []).append(value)
    return {n: torch.cat(v, 1)[None] if c.lengths else torch.stack(v) for n, v in out.items() if n in r.results}


def dense(
    c: Case, t: dict[str, Tensor], seen: Tensor, slopes: Tensor, sinks: Tensor, scale: float
) -> dict[str, Tensor]:
    """One sequence. slopes, sinks [heads, 1, 1]."""
    q, k, v, gate = (t[n].detach().clone().requires_grad_() for n in ("q", "k", "v", "gate"))
    acc = torch.float32 if q.dtype.itemsize == 2 else q.dtype  # half types are multiplied as fused kernels do
    k_, v_ = (x.repeat_interleave(c.group, 0) for x in (k, v))
    s = q.to(acc) @ k_.to(acc).mT
    s = s * scale
    if c.score == "cap":
        s = 5 * torch.tanh(s * 0.2)
    if c.score == "alibi":
        i, j = torch.arange(s.shape[1])[:, None], torch.arange(s.shape[2])[None]
        s = s - slopes.to(s.dtype) * (i - j).abs()
    if c.score == "ragged":
        s = 1.5 * s
    plain, live = torch.where(seen > 0, s * seen, 0), (seen > 0).any(-1)
    s = torch.where(seen > 0, s + seen.clamp(min=1).to(s.dtype).log(), -1e300 if s.dtype == torch.float64 else -1e30)
    every = torch.cat([s, sinks.to(s.dtype).expand(*s.shape[:2], 1)], -1) if c.sink else s
    lse = torch.where(live, every.logsumexp(-1) if s.shape[2] else s.sum(-1), torch.inf)
    p = torch.where(seen > 0, torch.exp(s - lse[..., None].nan_to_num(posinf=0)), 0)
    if not c.softmax:
        p, lse = plain, torch.zeros_like(lse)
    if c.drop:
        h, i, j = (torch.arange(n) for n in s.shape)
        p = p * torch.where((7 * i[:, None] + 3 * j + h[:, None, None]) % 5 > 0, 1.25, 0.0).to(p.dtype)
    p = p.to(v.dtype)
    o = (p.to(acc) @ v_.to(acc)).to(v.dtype)
    y, y2 = (o * torch.sigmoid(gate), o * o) if c.epilogue else (o, o)
    loss = (y * t["dy"]).sum() + ((y2 * t["dy2"]).sum() if c.epilogue == "two" else 0)
    if c.dlse:
        loss = loss + torch.where(live, lse * t["dlse"].to(lse.dtype), 0).sum()
    grads = torch.autograd.grad(loss, (q, k, v, gate), materialize_grads=True)
    names = ("out", "lse", "y", "y2", "dq", "dk", "dv", "dgate")
    return dict(zip(names, (o.detach(), lse.detach(), y.detach(), y2.detach(), *grads)))


def wrong(r: Run, tolerance: float = 1e-10) -> str:
    """What of a case's results is wrong, "" if nothing."""
    for name, want in truth(r).items():
        got = r.results[name]
        if got.shape != want.shape:
            return f"{name}: shape {tuple(got.shape)}, not {tuple(want.shape)}"
        if not torch.equal(got.isinf(), want.isinf()):
            return f"{name}: infinite where it should not be, or finite"
        got, want = got.double().nan_to_num(nan=1e300, posinf=0), want.nan_to_num(posinf=0)
        error = (got - want).abs().max().item() if want.numel() else 0.0
        if not error <= tolerance * max(1.0, want.abs().max().item() if want.numel() else 0.0):
            return f"{name}: error {error:.2g}"
    return ""


def case(modules: Any, seed: int) -> str:
    """What is wrong with case `seed` in fp64."""
    return wrong(run(modules, generate(seed)))


def too_rough(r: Run, dtype: torch.dtype) -> str:
    """Which error in `dtype` is above twice torch's in the same dtype, with one rounding to spare; "" if none."""
    exact, theirs = truth(r), truth(r, dtype)
    for name, want in exact.items():
        finite = want.isfinite()
        if not torch.equal(r.results[name].isinf(), want.isinf()):
            return f"{name}: infinite where it should not be, or finite"
        if not finite.any():
            continue
        ours, torchs = ((x[name].double() - want)[finite].abs().max().item() for x in (r.results, theirs))
        precision, size = torch.float32 if name == "lse" else dtype, want[finite].abs().max().item()
        spare = torch.finfo(precision).eps * max(size, 1e-3) * (8 if precision == torch.float32 else 1)
        if not ours <= 2 * torchs + spare:
            return f"{name}: error {ours:.3g}, torch's {torchs:.3g}, largest {size:.3g}"
    return ""
