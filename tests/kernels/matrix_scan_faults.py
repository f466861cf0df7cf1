# ruff: noqa: E501 -- a fault a line
# pyright: reportMissingParameterType=false
"""Generated recurrences of small matrices, and faults of the matrix scan skeleton that they must find."""

import random
from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tests.kernels.linear_attention_faults import DOTS
from tests.kernels.mutate import Fault
from tests.kernels.space import TYPES, guarded, launch, wrong

FILES, CASES = ("matrix_scan",), 40
Operand = tuple[Tensor, str]


@triton.jit
def delta(s, x, p, t, first, c, X, B: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr):
    """Two states: a matrix under a delta rule, [k, v], and a column of it, [k]. Every coordinate is in the results."""
    w, q, y, k = x
    place = (first + tl.arange(0, y.shape[1])[None, :]).to(s[0].dtype) + t.to(s[0].dtype) / 8 + c[0].to(s[0].dtype) / 4
    v = tl.dot(q.to(DOT), s[0].to(DOT), input_precision=PREC, out_dtype=s[0].dtype) + y * (1.0 + place / 16)
    new = w * s[0] + p[0] * tl.dot(tl.trans(k).to(DOT), v.to(DOT), input_precision=PREC, out_dtype=s[0].dtype)
    return (new, s[1] + w), (v, s[1] * w)


class Case:
    """Sizes, layouts, direction and division, all from one seed. c: places; k, v: keys and values; a, b: lanes."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64):
        rng = self.rng = random.Random(seed)
        self.seed, self.dtype = seed, dtype
        self.lanes = rng.choice(("b", "ab"))
        self.sizes = {"a": rng.choice((1, 2)), "b": rng.choice((1, 3)), "t": rng.choice((1, 2, 4))}
        self.sizes |= {"c": rng.choice((1, 5, 16)), "k": rng.choice((1, 7, 16)), "v": rng.choice((1, 9, 20, 33))}
        self.divided = rng.random() < 0.5
        self.reverse, self.index = rng.random() < 0.5, rng.choice((tl.int32, tl.int64))
        torch.manual_seed(seed)
        lanes = self.lanes
        self.given = {
            "w": (self.draw(lanes + "tk").sigmoid(), lanes + "tk"), "q": (self.draw(lanes + "tck") / 4, lanes + "tck"),
            "y": (self.draw(lanes + "tcv"), lanes + "tcv"), "k": (self.draw(lanes + "tck") / 4, lanes + "tck"),
            "p": (self.draw("k"), "k"), "s": (self.draw(lanes + "kv"), lanes + "kv"), "n": (self.draw(lanes + "k"), lanes + "k"),
        }  # fmt: skip

    def draw(self, dims: str) -> Tensor:
        return torch.randn([self.sizes[d] for d in dims], dtype=torch.float64).to(self.dtype)

    def reference(self, dtype: torch.dtype) -> list[Tensor]:
        """v and the column's result at every step, the matrix before each, both states at the end."""
        w, q, y, k, p, s, n = (x.to(dtype) for x, _ in self.given.values())
        at, steps = len(self.lanes), self.sizes["t"]
        lane = torch.arange(self.sizes[self.lanes[0]], dtype=dtype).view(-1, *[1] * (at + 1))
        found: list[tuple[Tensor, ...]] = [()] * steps
        for t in reversed(range(steps)) if self.reverse else range(steps):
            w_t, q_t, y_t, k_t = (x.select(at, t) for x in (w, q, y, k))
            place = torch.arange(self.sizes["v"], dtype=dtype) + t / 8 + lane / 4
            v = q_t @ s + y_t * (1 + place / 16)
            found[t] = v, n * w_t, s
            s, n = w_t[..., None] * s + p[:, None] * (k_t.mT @ v), n + w_t
        out, column, before = (torch.stack(x, at) for x in zip(*found))
        return [out, before, s] if self.divided else [out, before, s, column, n]

    def run(self, modules: Any) -> list[Tensor]:
        """What `reference` gives; of divided lanes what is divided."""
        lanes, t = self.lanes, self.lanes + "t"
        made = {n: self.tensor(dims, x) for n, (x, dims) in self.given.items()}
        own = {"w": "k ", "q": "ck", "y": "cv", "k": "ck", "p": "k ", "s": "kv", "n": "k "}
        outs = {"out": t + "cv", "before": t + "kv", "end": lanes + "kv", "column": t + "k", "last": lanes + "k"}
        ends = {n: self.tensor(dims) for n, dims in list(outs.items())[: 3 if self.divided else 5]}
        seq, shared, start = ([(made[n], own[n]) for n in group] for group in ("wqyk", "p", "sn"))
        after, last = [(ends["out"], "cv")], [(ends["end"], "kv")]
        if not self.divided:
            after, last = [*after, (ends["column"], "k ")], [(ends["last"], "k "), *last]
        self.launch(modules.matrix_scan.matrix_scan, [seq, shared, start, after, [(ends["before"], "kv")], last])
        return [x.permute([order.index(d) for d in outs[n]]) for n, (x, order) in ends.items()]

    def launch(self, kernel: Any, groups: list[list[tuple[Operand, str]]]) -> None:
        size = 16 if self.divided else 0
        front: list[Any] = []
        tiles: list[tuple[Any, ...]] = []
        for group in groups:
            front.append(tuple(x for (x, _), _ in group))
            dims = [self.lanes + "t" + own for _, own in group]
            at = [[o.index(d) if d in o else None for d in space] for ((_, o), _), space in zip(group, dims)]
            front.append(tuple(tuple(0 if i is None else x.stride(i) for i in a) for ((x, _), _), a in zip(group, at)))
            tiles.append(tuple(self.tile(own) for _, own in group))
        lanes = tuple(self.sizes[d] for d in self.lanes)
        blocks = triton.cdiv(self.sizes["v"], 16) if self.divided else 1
        names = (f"{n}_TILES" for n in ("SEQ", "SHARED", "START", "OUT", "BEFORE", "LAST"))
        launch(
            kernel, (prod(lanes) * blocks,), *front, self.sizes["t"], lanes, None, delta, **dict(zip(names, tiles)),
            OUT_OF=(0, 1)[: len(groups[3])], BEFORE_OF=(0,), LAST_OF=(0,) if self.divided else (1, 0),
            REVERSE=self.reverse, BLOCKS=blocks, B=size, DOT=DOTS[self.dtype], PREC="ieee", ACC=TYPES[self.dtype],
            IDX=self.index, seed=self.seed,
        )  # fmt: skip

    def tile(self, own: str) -> tuple[int, ...]:
        axis = own.index("v") if self.divided and "v" in own else -1
        sides = ((self.sizes[d], 16 * triton.cdiv(self.sizes[d], 16)) if d != " " else (1, 1) for d in own)
        (rows, r), (columns, n) = sides
        r, n = (triton.next_power_of_2(m) for m in (r, n))
        return (16 if axis == 0 else r), rows, (16 if axis == 1 else n), columns, axis

    def tensor(self, dims: str, value: Tensor | None = None) -> Operand:
        """Any dim may be the contiguous one."""
        order = "".join(self.rng.sample(dims, len(dims)))
        value = None if value is None else value.permute([dims.index(d) for d in order])
        return guarded(self.rng, [self.sizes[d] for d in order], self.dtype, value), order


def case(modules: Any, seed: int) -> str:
    """What is wrong in one generated case, "" for nothing."""
    this = Case(seed)
    want = this.reference(torch.float64)
    return "; ".join(filter(None, (wrong(g, t) for g, t in zip(this.run(modules), want, strict=True))))


FAULTS = (
    Fault("reversed time is one off", "matrix_scan", "T - 1 - step if REVERSE", "tl.maximum(T - 2 - step, 0) if REVERSE"),
    Fault("time is never reversed", "matrix_scan", "T - 1 - step if REVERSE else step", "step"),
    Fault("one step less", "matrix_scan", "for step in tl.range(0, T):", "for step in tl.range(0, T - 1):"),
    Fault("the state after the step", "matrix_scan", "        put(BEFORE, before_strides, s, BEFORE_OF, c, t, first, BEFORE_TILES, IDX)\n        s, y = cell(s, x, p, t, first, c, X, B, DOT, PREC)", "        s, y = cell(s, x, p, t, first, c, X, B, DOT, PREC)\n        put(BEFORE, before_strides, s, BEFORE_OF, c, t, first, BEFORE_TILES, IDX)"),
    Fault("the state is not carried", "matrix_scan", "        s, y = cell(s,", "        _, y = cell(s,"),
    Fault("states from zero", "matrix_scan", "    s = tiles(START, start_strides, c, 0, first, START_TILES, ACC, IDX)", "    s0 = tiles(START, start_strides, c, 0, first, START_TILES, ACC, IDX)\n    s = (s0[0] * 0, s0[1])"),
    Fault("inputs through fp32", "matrix_scan", "            x = x.to(ACC)", "            x = x.to(tl.float32).to(ACC)"),
    Fault("lanes are one", "matrix_scan", "        P += c[d] * strides[d]", "        P += c[0] * strides[d]"),
    Fault("blocks are not told apart", "matrix_scan", "first = (tl.program_id(0) % BLOCKS).to(IDX) * B", "first = (tl.program_id(0) % 1).to(IDX) * B"),
    Fault("columns begin at the first", "matrix_scan", "        n += first", "        n += 0"),
    Fault("columns are not masked", "matrix_scan", "return P, (r < TILE[1]) & (n < TILE[3])", "return P, (r < TILE[1]) & (n < TILE[3] + 1)"),
    Fault("rows are not masked", "matrix_scan", "return P, (r < TILE[1]) & (n < TILE[3])", "return P, (r < TILE[1] + 1) & (n < TILE[3])"),
    Fault("rows and columns change over", "matrix_scan", "r * strides[len(c) + 1] + n * strides[len(c) + 2]", "r * strides[len(c) + 2] + n * strides[len(c) + 1]"),
    Fault("every state is the first", "matrix_scan", "tl.store(at, y[OF[k]]", "tl.store(at, y[0] + 0 * y[OF[k]]"),
    Fault("what is shared is read with time", "matrix_scan", "p = tiles(SHARED, shared_strides, c, 0, first", "p = tiles(SHARED, start_strides, c, 0, first"),
    Fault("results of the step before", "matrix_scan", "put(OUT, out_strides, y, OUT_OF, c, t, first", "put(OUT, out_strides, y, OUT_OF, c, t - t % 2, first"),
    Fault("what does not exist is one", "matrix_scan", "tl.load(at, mask=ok, other=0)", "tl.load(at, mask=ok, other=1)"),
)  # fmt: skip
