# ruff: noqa: E501 -- a fault a line
"""Generated cases of the scan skeleton, and faults that they must find."""

import random
from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tests.kernels.mutate import Fault
from tests.kernels.scan_cells import CELLS
from tests.kernels.space import TYPES, fit, flags, guarded, launch, strides, wrong
from weft.ir.formula import philox

FILES, CASES = ("scan",), 60
Operands = list[tuple[Tensor, str]]


class Case:
    """A cell, lengths, blocks, which dims the parameters have and where gradients come from, all from one seed."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64):
        rng = self.rng = random.Random(seed)
        self.seed, self.dtype = seed, dtype
        self.cell = CELLS[seed % 3]
        self.lanes = rng.choice(("d", "bd", "bd", "abd"))
        self.sizes = {
            "t": rng.choice((1, 2, 5, 8, 13)),
            "a": 2,
            "b": rng.choice((1, 3)),
            "d": rng.choice((1, 5, 16, 19)),
        }
        self.every = rng.choice((1, 2, 4))
        self.unroll = rng.choice([u for u in (1, 2, 4, 8) if u % self.every == 0 or self.every % u == 0])
        self.reverse, self.ahead, self.final = rng.random() < 0.4, rng.random() < 0.5, rng.random() < 0.6
        self.loop = self.cell.back is not None and self.every == 1 and rng.random() < 0.6
        self.b, self.index = rng.choice((4, 8, 32)), rng.choice((tl.int32, tl.int64))
        while prod(self.shape(self.lanes)) > 5 * self.b:  # the interpreter's time goes by programs
            self.b *= 2
        torch.manual_seed(seed)
        self.x = [self.draw("t" + self.lanes) for _ in range(self.cell.inputs)]
        self.own = [rng.choice((self.lanes, "d", "d", self.lanes[-2:])) for _ in range(self.cell.parameters)]
        self.p = [self.draw(d) for d in self.own]
        if self.cell.before is not None:
            self.own[-1], self.p[-1] = self.lanes, torch.ones(self.shape(self.lanes), dtype=dtype)
        self.s = [self.draw(self.lanes) for _ in range(self.cell.states)]
        self.dy = [self.draw("t" + self.lanes) for _ in range(self.cell.outputs)]
        self.ds = [self.draw(self.lanes) for _ in range(self.cell.states)]
        self.key = torch.tensor([rng.getrandbits(63) - 2**62])

    def draw(self, dims: str) -> Tensor:
        return torch.randn(self.shape(dims), dtype=torch.float64).to(self.dtype)

    def shape(self, dims: str) -> tuple[int, ...]:
        return tuple(self.sizes[d] for d in dims)

    def tensor(self, dims: str, value: Any = None, dtype: torch.dtype | None = None) -> Tensor:
        return guarded(self.rng, self.shape(dims), dtype or self.dtype, value)

    @property
    def wide(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def reference(self, dtype: torch.dtype) -> list[Tensor]:
        """Outputs, final states; gradients of inputs, of parameters with all lanes apart, of initial states."""
        x = [v.to(dtype).requires_grad_() for v in self.x]
        p = [
            fit(v, d, self.lanes).expand(self.shape(self.lanes)).to(dtype).clone().requires_grad_()
            for v, d in zip(self.p, self.own)
        ]
        s0 = [p[1]] if self.cell.start is not None else [v.to(dtype).requires_grad_() for v in self.s]
        used, s, y = list(p), list(s0), [None] * self.sizes["t"]
        if self.cell.before is not None:
            i = torch.arange(prod(self.shape(self.lanes))).view(self.shape(self.lanes))
            used[-1] = (
                torch.where(philox.uniform(self.key[0], 5, 2, i) >= 0.2 * 2**24, p[-1] * 1.25, 0.0)
                .detach()
                .requires_grad_()
            )
        for t in reversed(range(self.sizes["t"])) if self.reverse else range(self.sizes["t"]):
            s, y[t] = self.cell.torch(s, [v[t] for v in x], used, t)
        outs = [torch.stack([z[k] for z in y]) for k in range(self.cell.outputs)]
        ends, seeds = [*outs, *s], [v.to(dtype) for v in self.dy] + [v.to(dtype) * self.final for v in self.ds]
        first = [v.detach().requires_grad_() for v in s0] if self.cell.start is not None else s0
        if self.cell.start is not None:  # the parameter and the initial state apart
            return self.apart(dtype, first)
        grads = torch.autograd.grad(ends, [*x, *used, *first], seeds)
        return [*(v.detach() for v in ends), *grads]

    def apart(self, dtype: torch.dtype, s: list[Tensor]) -> list[Tensor]:
        """`reference` where the initial state is a parameter: its gradient is that of the state."""
        x, first, y = [v.to(dtype).requires_grad_() for v in self.x], list(s), [None] * self.sizes["t"]
        p = [
            fit(v, d, self.lanes).expand(self.shape(self.lanes)).to(dtype).clone().requires_grad_()
            for v, d in zip(self.p, self.own)
        ]
        for t in reversed(range(self.sizes["t"])) if self.reverse else range(self.sizes["t"]):
            s, y[t] = self.cell.torch(s, [v[t] for v in x], p, t)
        ends = [*(torch.stack([z[k] for z in y]) for k in range(self.cell.outputs)), *s]
        seeds = [v.to(dtype) for v in self.dy] + [v.to(dtype) * self.final for v in self.ds]
        dx, dp, ds = torch.autograd.grad(ends, [x[0], p[0], first[0]], seeds)
        return [*(v.detach() for v in ends), dx, dp, torch.zeros_like(dp), ds]

    def launch(self, kernel: Any, groups: list[Operands], holes: tuple[Any, ...], **constants: Any) -> None:
        """One launch; a group of operands lies over time and lanes if its first one does."""
        space = ["t" + self.lanes if o and o[0][1][0] in "tn" else self.lanes for o in groups]
        spaces = ["n" + self.lanes if o and o[0][1][0] == "n" else s for s, o in zip(space, groups)]
        front = [z for s, o in zip(spaces, groups) for z in (tuple(t for t, _ in o), strides(s, *o))]
        dims = [flags(s, *(d for _, d in o)) for s, o in zip(spaces, groups)]
        places = tuple(prod(self.shape(self.lanes[z + 1 :])) for z in range(len(self.lanes)))
        launch(
            kernel, (triton.cdiv(prod(self.shape(self.lanes)), self.b),), *front, self.sizes["t"], self.shape(self.lanes),
            (self.key, places), *holes, *dims, **constants, REVERSE=self.reverse, AHEAD=self.ahead, EVERY=self.every,
            B=self.b, ACC=TYPES[self.dtype], IDX=self.index, seed=self.seed,
        )  # fmt: skip

    def run(self, modules: Any) -> list[Tensor]:
        """What `reference` gives."""
        n, time, cell = modules.scan, "t" + self.lanes, self.cell
        self.sizes["n"] = triton.cdiv(self.sizes["t"], self.every)
        rows = ("n" if self.every > 1 else "t") + self.lanes
        seq = [(self.tensor(time, v), time) for v in self.x]
        lane = [(self.tensor(d, v), d) for v, d in zip(self.p, self.own)]
        init = [] if cell.start is not None else [(self.tensor(self.lanes, v), self.lanes) for v in self.s]
        y = [(self.tensor(time), time) for _ in self.dy]
        last = [(self.tensor(self.lanes, dtype=self.wide), self.lanes) for _ in self.s]
        kept = [(self.tensor(rows, dtype=self.wide), rows) for _ in self.s]
        holes = (cell.before, cell.start, cell.cell)
        self.launch(n.scan, [seq, lane, init, y, kept, last], holes, STATES=cell.states, U=self.unroll)
        dy = [(self.tensor(time, v), time) for v in self.dy]
        ds = [(self.tensor(self.lanes, v), self.lanes) for v in self.ds] if self.final else []
        dx = [(self.tensor(time), time) for _ in seq]
        dp = [(self.tensor(self.lanes, dtype=self.wide), self.lanes) for _ in lane]
        first = [(self.tensor(self.lanes, dtype=self.wide), self.lanes) for _ in self.s]
        if self.loop:
            self.reverse, seqs = not self.reverse, [*dy, *seq, *kept]
            holes, start = (cell.before, None, cell.back), ds
            self.launch(n.scan, [seqs, lane, start, dx, [], [*first, *dp]], holes, STATES=1 + len(dp), U=self.unroll)
        else:
            groups = [seq, lane, kept, dy, ds, dx, dp, first]
            self.launch(n.scan_backward, groups, (cell.before, cell.cell, cell.vjp))
        return [t for t, _ in (*y, *last, *dx, *dp, *first)]


def case(modules: Any, seed: int) -> str:
    """What is wrong in one generated case, "" for nothing."""
    this = Case(seed)
    want = this.reference(torch.float64)
    return "; ".join(filter(None, (wrong(g, t) for g, t in zip(this.run(modules), want, strict=True))))


FAULTS = (
    Fault("reversed time is one off", "scan", "T - 1 - t if REVERSE", "T - t if REVERSE"),
    Fault("time is never reversed", "scan", "T - 1 - t if REVERSE else t", "t"),
    Fault("inputs of the step before", "scan", "new, y = cell(s, part(now, u * len(SEQ)", "new, y = cell(s, part(now, max(u - 1, 0) * len(SEQ)"),
    Fault("every input is the first", "scan", "out = out + (x[first + k].to(ACC),)", "out = out + (x[first].to(ACC),)"),
    Fault("states from zero", "scan", "out = out + (tl.zeros([B], ACC) + x[k],)", "out = out + (tl.zeros([B], ACC) + x[k] * 0,)"),
    Fault("states through fp32", "scan", "out = out + (tl.where(exists, new[k], old[k]),)", "out = out + (tl.where(exists, new[k].to(tl.float32).to(old[k].dtype), old[k]),)"),
    Fault("steps that do not exist are taken", "scan", "            s = moved(exists, new, s)", "            s = new"),
    Fault("next chunk ahead of time", "scan", "            now = nxt\n", "            now = nxt if U == 1 else steps(SEQ, seq_strides, t0 + 1, T, c, ok, SEQ_DIMS, U, REVERSE, IDX)\n"),
    Fault("prefetch of this chunk", "scan", "nxt = steps(SEQ, seq_strides, t0 + U, T", "nxt = steps(SEQ, seq_strides, t0, T"),
    Fault("kept states after the step", "scan", "store(KEPT, kept_strides, s, (row,) + c", "store(KEPT, kept_strides, cell(s, part(now, u * len(SEQ), len(SEQ), ACC), p, t, c, X)[0], (row,) + c"),
    Fault("kept too often", "scan", "live((t0 + u) % EVERY, 1, exists)", "exists"),
    Fault("kept in the wrong row", "scan", "tl.cast((t0 + u) // EVERY, IDX)", "tl.cast((t0 + u) // U, IDX)"),
    Fault("outputs not masked in time", "scan", "store(OUT, out_strides, y, (t,) + c, ok, exists,", "store(OUT, out_strides, y, (t,) + c, ok, ok,"),
    Fault("outputs stored one step late", "scan", "store(OUT, out_strides, y, (t,) + c, ok,", "store(OUT, out_strides, y, (t - t % 2,) + c, ok,"),
    Fault("final states with the initial strides", "scan", "store(LAST, last_strides, s", "store(LAST, init_strides, s"),
    Fault("prologue of the lanes lost", "scan", "    if before is not None:", "    if before is None:"),
    Fault("backward: prologue of the lanes lost", "scan", "    if before is not None:", "    if before is None:", 1),
    Fault("backward: first chunk not done", "scan", "for m in tl.range(0, n):", "for m in tl.range(0, n - 1):"),
    Fault("backward: final gradient lost", "scan", "ds = blocks(load(DLAST, dlast_strides, c, ok, ok, DLAST_DIMS, 0, 0, ACC), len", "ds = blocks((), len"),
    Fault("backward: states of another chunk", "scan", "tl.cast(t0 // EVERY, IDX)\n        s =", "tl.cast(tl.maximum(t0 // EVERY - 1, 0), IDX)\n        s ="),
    Fault("backward: states not recomputed", "scan", "            states = states + s", "            states = states + part(states, 0, len(KEPT), ACC)"),
    Fault("backward: prefetch of a wrong chunk", "scan", "first = tl.where(m < n - 1, t0 - EVERY, T)", "first = tl.where(m < n - 1, t0 - EVERY + 1, T)"),
    Fault("backward: prefetch before the start", "scan", "first = tl.where(m < n - 1, t0 - EVERY, T)", "first = t0 - EVERY"),
    Fault("backward: gradient of the old state", "scan", "            ds = moved(exists, new, ds)", "            ds = new"),
    Fault("backward: sums of steps that do not exist", "scan", "total[k] + tl.where(exists, more[k], 0.0)", "total[k] + more[k]"),
    Fault("backward: last step alone in the sums", "scan", "total[k] + tl.where(exists, more[k], 0.0)", "tl.where(exists, more[k], 0.0)"),
    Fault("backward: dy of another step", "scan", "part(dy, u * len(DY)", "part(dy, (EVERY - 1 - u) * len(DY)"),
    Fault("backward: initial gradient before the sums", "scan", "store(DINIT, dinit_strides, ds,", "store(DINIT, dinit_strides, blocks((), len(KEPT), B, ACC),"),
    Fault("lanes not masked", "scan", "ok = i < product(SIZES, 0, len(SIZES), IDX)", "ok = i < product(SIZES, 0, len(SIZES), IDX) + 1"),
)  # fmt: skip
