"""Launches of the attention kernels: forward(...) and backward(...) of a whole pattern, part by part; attend(...) and
attend_grad(...) of a region, whose operands lie as they lie.

A pattern is a disjoint union of parts; every kernel walks a part in blocks of its own size:

    walk = Walk(causal_pieces, None, (True, False))
    part = Part(forward=walk, dq=walk, dkdv=Walk(causal_back, None, (False, True)), keep=keep)  # keep: k <= q
    out, lse = forward(q, k, v, ((None, (part,)),), scale, config)
    dq, dk, dv = backward(do, q, k, v, out, lse, ((None, (part,)),), scale, config)

q [batch, heads, rows, dk], k [batch, key heads, keys, dk], v [batch, key heads, keys, dv]: any strides with a
contiguous last dim; heads a multiple of key heads, which they share in order; fp16, bf16, fp32, or fp64 where
interpreted. Results lie [batch, rows, heads, dv] in memory. lse [batch, heads, rows], fp32 (fp64), is +inf where a row
sees nothing.

groups   ((heads, parts), ...): the parts of query heads (first, step, count), None: of all; every head stands in one
         group. Parts of the same heads are merged by log-sum-exp, in fp32 between launches.
config   {kernel: {"BM", "BN", "num_warps", "num_stages"}} for kernels forward, delta, dkdv, dq; "SPLIT": True gives dk
         and dv a launch each.
holes    see `forward` and `backward`, the modules; x: the tuple X they read.
packed   (cu_q, cu_k, longest rows, longest keys) of sequences packed into a batch of 1, cu int32 [sequences + 1].
precision "ieee", "tf32" or "tf32x3", how fp32 operands are multiplied.
segments  int64 [batch, rows], [batch, keys], where no row sees a key of another segment: blocks are left out by them.
"""

from math import prod
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common import host
from . import backward as backward_kernels
from .forward import forward as forward_kernel
from .forward import one, unchanged
from .pieces import nothing, plan_pieces, plan_within
from .segments import bounds
from .tiles import tiles

AT = (1, 1, 0)
Heads = tuple[int, int, int] | None


class Walk(NamedTuple):
    """What a kernel visits: its holes `pieces` and `block`, SLOTS, PLAN, the tensors of TAB, PACKED.

    keep: False if it visits nothing but what is seen, as often as it counts; then the part's keep is not called.
    """

    pieces: Any
    block: Any = None
    slots: tuple[bool, ...] = (False,)
    plan: Any = None
    table: tuple[Tensor, ...] | None = None
    packed: bool = False
    keep: bool = True


class Part(NamedTuple):
    """One part of a pattern. classes, q_at, k_at: where its rows lie, as in `tiles`. multi: keep counts."""

    forward: Walk
    dkdv: Walk
    dq: Walk
    keep: Any = None
    multi: bool = False
    classes: int = 1
    q_at: tuple[int, int, int] = AT
    k_at: tuple[int, int, int] = AT


class Holes(NamedTuple):
    """score and its derivative by s; epilogue and its vjp; of the forward alone the score of a sink; drop. softmax:
    False where a score is a weight as it is; then there is one."""

    score: Any = None
    dscore: Any = None
    epilogue: Any = None
    vjp: Any = None
    sink: Any = None
    drop: Any = None
    softmax: bool = True

    @property
    def weights(self):
        """Those that the backward makes weights with."""
        return {"score": self.score, "dscore": self.dscore, "drop": self.drop, "SOFTMAX": self.softmax}

    def under(self, scale):
        """With a score where the scale is not above 0: then it cannot be a factor on scores that -inf hides."""
        return self if scale > 0 or self.score is not None else self._replace(score=unchanged, dscore=one)


class Packed(NamedTuple):
    cu_q: Tensor
    cu_k: Tensor
    rows: int
    keys: int


EMPTY = Part(*(Walk(nothing, slots=()),) * 3)
"""Sees nothing: its launch finishes what parts that leave out some rows have begun."""
PLAIN = Holes()


def forward(q, k, v, groups, scale, config, holes=PLAIN, x=None, packed=None, dtypes=(), precision="ieee",
            segments=None):  # fmt: skip
    """out, lse, then the epilogue's outputs, of the shape of out, in `dtypes`."""
    holes = holes.under(scale)
    out, lse = rows_like(q, v.shape[3], q.dtype), rows_like(q, 1, wide(q.dtype))[..., 0]
    ys = tuple(rows_like(q, v.shape[3], dtype) for dtype in dtypes)
    launch = Launch(q, k, v, scale, precision, packed, x, segments)
    for heads, parts in groups:
        order = in_order([(heads, p) for p in parts] or [(heads, EMPTY)], "q_at", finish=holes.epilogue is not None)
        total = Sum(out, len(order))
        if not all_rows(order[0][1], "q_at"):
            of_heads(total.to(0), heads).zero_()
            of_heads(lse, heads).fill_(torch.inf if holes.softmax else 0.0)
        for n, (_, part) in enumerate(order):
            epilogue, sink = (holes.epilogue, holes.sink) if n == len(order) - 1 else (None, None)
            to, old, y = total.to(n), total.old(n), ys if epilogue else ()
            forward_kernel[launch.over_queries(part, heads, config["forward"])](
                q, k, v, to, old, lse, y or None,
                *map(strides, (q, k, v, to, old, lse)), tuple(map(strides, y)) or None,
                score=holes.score, drop=holes.drop, sink=sink, epilogue=epilogue, SOFTMAX=holes.softmax,
                HEADS=heads or (0, 1, q.shape[1]), REVERSE=True,
                **launch.common(part, part.forward, config["forward"], to),
            )  # fmt: skip
    return (out, lse, *ys)


def backward(dys, q, k, v, out, lse, groups, scale, config, holes=PLAIN, x=None, packed=None, dlse=None, dtypes=(),
             precision="ieee", segments=None):  # fmt: skip
    """dq, dk, dv, then what vjp gives besides, of the shape of out, in `dtypes`.

    dys: d(out), or d(outputs of the epilogue) as a tuple. dlse: d(lse) or None.
    """
    holes = holes.under(scale)
    launch, dys = Launch(q, k, v, scale, precision, packed, x, segments), dys if isinstance(dys, tuple) else (dys,)
    do, delta, others = dys[0], lse, ()
    if holes.softmax or holes.vjp:
        do, delta, *others = run_delta(launch, out, dys, dlse, lse, holes.vjp, dtypes, config["delta"])
    dq, dk, dv = (rows_like(t, t.shape[3], t.dtype) for t in (q, k, v))
    saved = (q, k, v, do, lse, delta)
    for heads, parts in groups:
        order = in_order([(heads, p) for p in parts] or [(heads, EMPTY)], "q_at")
        run_dq(launch, saved, Sum(dq, len(order)), order, holes, config["dq"])
    chains = [[(heads, p) for p in parts] or [(heads, EMPTY)] for heads, parts in groups]
    if launch.group > 1:  # groups may share key heads
        chains = [[item for chain in chains for item in chain]]
    for chain in chains:
        order = in_order(chain, "k_at")
        for want in ((True, False), (False, True)) if config["dkdv"].get("SPLIT") else ((True, True),):
            run_dkdv(launch, saved, Sum(dk, len(order)), Sum(dv, len(order)), order, want, holes, config["dkdv"])
    return (dq, dk, dv, *others)


def attend(name, holes, like, pattern, scale, q, k, v, results, x=None, dtypes=(), segments=None):
    """The results of a region, as it wants them. name, like: of the configuration. pattern: see `walks.Pattern`.

    q, k, v: (tensor, its axes in each of the four that `forward` takes). results: (which of what `forward` gives, axes
    likewise, shape)."""
    config, (q, k, v) = host.config(name, like), (joined(*t) for t in (q, k, v))
    made = forward(q, k, v, pattern.parts(config, q.device), scale, config, holes, x, dtypes=dtypes, segments=segments)
    return apart(made, results)


def attend_grad(name, holes, like, pattern, scale, q, k, v, out, lse, do, results, x=None, segments=None):
    """As `attend`, of `backward`."""
    config, (q, k, v, out, lse, do) = host.config(name, like), (joined(*t) for t in (q, k, v, out, lse, do))
    made = backward(do, q, k, v, out, lse, pattern.parts(config, q.device), scale, config, holes, x, segments=segments)
    return apart(made, results)


def run_delta(launch, out, dys, dlse, lse, vjp, dtypes, config):
    """d(out), delta, and what vjp gives besides."""
    q, delta = launch.q, torch.empty_strided(lse.shape, lse.stride(), dtype=lse.dtype, device=lse.device)
    do = rows_like(q, out.shape[3], q.dtype) if vjp else None
    others = tuple(rows_like(q, out.shape[3], dtype) for dtype in dtypes)
    cu_q, _, rows, _ = launch.problem
    backward_kernels.delta[grid(triton.cdiv(rows, config["BM"]), q.shape[1], launch.sequences)](
        out, dys, do, others or None, dlse, delta, strides(out), tuple(map(strides, dys)), strides(do),
        tuple(map(strides, others)) or None, strides(dlse), strides(lse), rows, cu_q, launch.x, HEADS=q.shape[1],
        DV=tiles(out.shape[3]), BM=config["BM"], vjp=vjp, ACC=launch.acc,
        IDX=launch.index((out, *dys), config["BM"]), **options(config),
    )  # fmt: skip
    return (dys[0] if do is None else do, delta, *others)


def run_dq(launch, saved, total, order, holes, config):
    """dq of some heads: `order` their parts."""
    if not all_rows(order[0][1], "q_at"):
        of_heads(total.to(0), order[0][0]).zero_()
    for n, (heads, part) in enumerate(order):
        to, old = total.to(n), total.old(n)
        backward_kernels.dq[launch.over_queries(part, heads, config)](
            *saved, to, old, *map(strides, (*saved[:5], to, old)), HEADS=heads or (0, 1, launch.q.shape[1]),
            REVERSE=True, **holes.weights, **launch.common(part, part.dq, config, saved[3]),
        )  # fmt: skip


def run_dkdv(launch, saved, dk, dv, order, want, holes, config):
    """dk and dv, or one of them: of all key heads, or of some if each has one query head."""
    if not all_rows(order[0][1], "k_at"):
        for total, wanted in zip((dk, dv), want):
            if wanted:
                of_heads(total.to(0), order[0][0] if launch.group == 1 else None).zero_()
    for n, (heads, part) in enumerate(order):
        tensors = (dk.to(n), dv.to(n), dk.old(n), dv.old(n))
        backward_kernels.dkdv[launch.over_keys(part, heads, config)](
            *saved, *tensors, *map(strides, (*saved[:5], *tensors)), **holes.weights,
            HEADS=heads, KEY_HEADS=launch.key_heads(heads), PACKED=part.dkdv.packed, WANT_K=want[0], WANT_V=want[1],
            **launch.common(part, part.dkdv, config, saved[3], back=True),
        )  # fmt: skip


class Launch:
    """What all launches on one q, k, v have in common."""

    def __init__(self, q, k, v, scale, precision, packed, x, segments=None):
        self.q, self.k, self.v, self.scale, self.precision, self.x = q, k, v, scale, precision, x or None
        self.problem = packed or Packed(None, None, q.shape[2], k.shape[2])
        self.sequences = q.shape[0] if packed is None else len(packed.cu_q) - 1
        self.group = q.shape[1] // k.shape[1]
        self.segments, self.within = segments, {}
        self.acc = tl.float64 if q.dtype == torch.float64 else tl.float32

    def over_queries(self, part, heads, config):
        """The grid of `forward` and `dq`."""
        blocks = triton.cdiv(longest(self.problem.rows, part.q_at), config["BM"])
        return grid(blocks, heads[2] if heads else self.q.shape[1], self.sequences * part.classes)

    def over_keys(self, part, heads, config):
        """The grid of `dkdv`."""
        blocks = triton.cdiv(longest(self.problem.keys, part.k_at), config["BN"])
        return grid(blocks, self.key_heads(heads), self.sequences * part.classes)

    def key_heads(self, heads):
        """How many key heads `dkdv` runs for."""
        return heads[2] if heads and self.group == 1 else self.k.shape[1]

    def common(self, part, walk, config, like, back=False):
        """Arguments that `forward`, `dq` and `dkdv` share; `like`: of the memory layout of out. back: of `dkdv`."""
        cu_q, cu_k, rows, keys = self.problem
        walk = self.inside(walk, config, back)
        spread = max(at[0] // at[1] + 1 if at[0] != at[1] else 1 for at in (part.q_at, part.k_at))
        reach = max(config["BM"], config["BN"]) * spread
        return {
            "NQ": rows, "NK": keys, "CUQ": cu_q, "CUK": cu_k, "TAB": walk.table, "X": self.x, "scale": self.scale,
            "G": self.group, "CLASSES": part.classes, "Q_AT": part.q_at, "K_AT": part.k_at,
            "DK": tiles(self.q.shape[3]), "DV": tiles(self.v.shape[3]), "BM": config["BM"], "BN": config["BN"],
            "SLOTS": walk.slots, "PLAN": walk.plan, "pieces": walk.pieces, "block": walk.block,
            "keep": part.keep if walk.keep else None, "MULTI": part.multi and walk.keep, "ACC": self.acc,
            "PREC": self.precision, "IDX": self.index((self.q, self.k, self.v, like), reach), **options(config),
        }  # fmt: skip

    def inside(self, walk, config, back):
        """The walk, of runs no more than what lies in the segments of a row of blocks. back: rows are keys."""
        if self.segments is None or walk.pieces is not plan_pieces or not any(walk.plan[2:4]):
            return walk
        blocks = (config["BN"], config["BM"]) if back else (config["BM"], config["BN"])
        if (back, blocks) not in self.within:
            rows, columns = self.segments[::-1] if back else self.segments
            self.within[back, blocks] = bounds(rows, columns, *blocks)
        return walk._replace(pieces=plan_within, table=self.within[back, blocks])

    def index(self, tensors, reach):
        """The integer that holds the offsets of `reach` rows."""
        return tl.int64 if max(t.stride(2) for t in tensors) * reach >= 2**31 else tl.int32


def grid(blocks, heads, sequences):
    """Programs along one axis. Raises ValueError where they are more than a GPU counts."""
    n = blocks * heads * sequences
    if n >= 2**31:
        said = f"{blocks:,} blocks, {heads} heads, {sequences:,} sequences or classes of them"
        raise ValueError(
            f"attention in {n:,} programs ({said}) is over the 2,147,483,647 of a GPU; make the batch smaller"
        )
    return (n,)


class Sum:
    """Where the parts of a sum go: all but the last of `count` to a wide buffer, the last to the result."""

    def __init__(self, result, count):
        self.result, self.last = result, count - 1
        dtype = wide(result.dtype)
        self.partial = result if count < 2 or result.dtype == dtype else torch.empty_like(result, dtype=dtype)

    def to(self, n):
        return self.result if n == self.last else self.partial

    def old(self, n):
        return self.partial if n else None


def in_order(parts, at, finish=False):
    """Parts [(heads, part)] so that the last one writes every row; with `finish` also of a single part."""
    order = sorted(parts, key=lambda p: all_rows(p[1], at))
    if (len(order) > 1 or finish) and not all_rows(order[-1][1], at):
        order.append((order[0][0], EMPTY))
    return order


def all_rows(part, at):
    """Does a part reach every row of the queries ("q_at") or keys ("k_at")?"""
    modulus, width, origin = getattr(part, at)
    return origin == 0 and (modulus == width or modulus == part.classes)


def longest(n, at):
    """Rows of the longest class of n."""
    whole, rest = divmod(max(n - at[2], 0), at[0])
    return whole * at[1] + min(rest, at[1])


def rows_like(t, width, dtype):
    """An empty [batch, heads, rows, width], heads next to each other in memory."""
    batch, heads, rows = t.shape[:3]
    return t.new_empty(batch, rows, heads, width, dtype=dtype).transpose(1, 2)


def of_heads(t, heads):
    return t if heads is None else t[:, heads[0] : heads[0] + heads[1] * (heads[2] - 1) + 1 : heads[1]]


def strides(t):
    """(batch, head, row); a batch of one, as of packed sequences, does not move."""
    return (0, 0, 0) if t is None else (t.stride(0) if t.shape[0] > 1 else 0, t.stride(1), t.stride(2))


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def options(config):
    return {"num_warps": config["num_warps"], "num_stages": config["num_stages"], "enable_fp_fusion": True}


def joined(x, groups):
    """The tensor with axes in the order of `groups`, each group one axis (() a new one), the last contiguous."""
    sizes = [prod(x.shape[a] for a in g) for g in groups]
    x = x.permute([a for g in groups for a in g]).reshape(sizes)
    return x if x.stride(-1) == 1 else x.contiguous()


def apart(made, results):
    """Of each of `results` the tensor among `made`, its axes in the order of the shape, contiguous; undoes `joined`."""
    out = []
    for which, groups, shape in results:
        order = [a for g in groups for a in g]
        x = made[which].reshape([shape[a] for a in order])
        out.append(x.permute([order.index(a) for a in range(len(order))]).contiguous())
    return tuple(out) if len(out) > 1 else out[0]
