"""Attention under a pattern, and its derivative from the log-sum-exp."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import sympy as sp

from weft.ir.builder import Builder
from weft.ir.composite import Composite
from weft.ir.formula import normal, symbol
from weft.ir.library.precision import accumulate
from weft.ir.library.scores import DRAWN, S, Scores
from weft.ir.ops.op import Cotangents, Op
from weft.ir.pattern import Pattern, is_causal, max_distance
from weft.ir.pattern.expression import K, Q, add, const
from weft.ir.pattern.formula import moved
from weft.ir.pattern.writing import written
from weft.ir.types import Dims, Node, Type, Val, need

if TYPE_CHECKING:
    from weft.ir.pattern import PatternLayout


@dataclass(frozen=True)
class Attend(Composite):
    """softmax over the visible keys of score(scale * q·k), times v.

    Operands: q [... query ... contract], k [... over ... contract], v [... over ... any], then one per name in `meta`.
    Dims shared by name are batched; dims of q that k and v lack share their keys (grouped queries: k, v [... kv ...],
    q [... kv group ...]). Outputs: out [q's dims without contract, v's own dims], q's dtype; lse, same dims without
    v's own, fp32 (f64 for f64).

    pattern decides who sees whom, from the coordinates of `query` and `over` and the head: the row-major index over the
    dims in `heads`. A pattern with multiplicities weighs a key seen m times by m. A row that sees nothing has out = 0,
    lse = +inf and gradients 0, so exp(s - lse) is its weight as in any other row. scale is a formula in sizes; score
    one in `s` = scale * q·k, `i_q`, `i_k`, `i_h`. layout is the pattern pass's choice and does not change the result.

    near [.. distance]: `s` = scale * q·k + near at the pair's distance q - k; its other dims are some of the rows', so
    a table can differ by query (relative positions: Dai et al. 2019), by head (buckets: Raffel et al. 2020), or not at
    all. Its first row is for the distance `first`, a formula in sizes; a distance that it lacks reads 0. tail: the
    queries stand at the last of the keys' positions, query i at i + n_over - n_query, for pattern, score and near.

    sinks [heads]: the score of one more key of value 0, which all rows see that see any (a learned logit: gpt-oss,
    Agarwal et al. 2025). Its weight is exp(z - lse), and lse counts it.

    normalised: else a visible key's weight is its score itself, m times where it is seen m times, nothing is divided by
    a sum, and lse is 0 (squared ReLU in place of the softmax: Hua et al. 2022, section 3.1).

    rate: with seed and layer, a weight counts 1 / (1 - rate) times where uniform(seed, op_id, layer, index) >= rate and
    not at all elsewhere (Vaswani et al. 2017, as in their code); lse is that of all. The index is the row-major place
    of (batch, head, query, key) over the dims' global sizes, so a pair has one bit in any layout, tiling or sharding.
    """

    contract: str
    over: str
    query: str
    pattern: Pattern
    scale: sp.Expr
    score: sp.Expr = S
    heads: Dims = ()
    meta: Dims = ()
    layout: "PatternLayout | None" = None
    first: sp.Expr = sp.S.Zero
    tail: bool = False
    rate: sp.Expr = sp.S.Zero
    op_id: int = 0
    normalised: bool = True

    def __post_init__(self) -> None:
        heads: Any = self.heads or ()
        object.__setattr__(self, "heads", tuple(heads.split() if isinstance(heads, str) else heads))
        object.__setattr__(self, "scale", normal(self.scale))
        object.__setattr__(self, "first", normal(self.first))
        object.__setattr__(self, "score", normal(self.score))

    @property
    def attention(self) -> "Attend":  # pyright: ignore[reportIncompatibleVariableOverride]
        return self

    @property
    def scalars(self) -> Mapping[int, str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return _drawn(self, 3)

    def expand(self, g: Builder, q: Val, k: Val, v: Val, *meta: Val) -> tuple[Val, Val]:
        if "sinks" in self.meta:
            return self._sunk(g, q, k, v, *meta)
        acc, x = accumulate(q), Scores(self, g, q, k, meta)
        rows = x.rows
        own = [d for d in v.dims if d not in (*rows, self.over)]
        if not self.normalised:
            out = g.einsum(x.dropped(g, x.scores), g.cast(v, acc), to=[*rows, *own])
            return g.cast(out, q.type.dtype), g.map(0, to=rows, dtype=acc)
        top = g.detach(g.reduce(x.scores, to=rows, kind="max"))
        # Finite where nothing is seen, so that exp(-oo - top) is 0 and not nan. No dtype is too small to compare.
        top = g.map("where(top > -1e18, top, 0)", top=top, dtype=acc)
        e = g.map("exp(x - top)", x=x.scores, top=top, to=x.scores.dims, dtype=acc)
        total = g.reduce(e, to=rows)
        safe = g.map("where(t > 0, t, 1)", t=total, dtype=acc)
        out = g.einsum(x.dropped(g, e), g.cast(v, acc), to=[*rows, *own])
        out = g.map("out / total", out=out, total=safe, to=out.dims, dtype=q.type.dtype)
        lse = "where(total > 0, top + log(safe), oo)"
        return out, g.map(lse, top=top, safe=safe, total=total, dtype=acc)

    def _sunk(self, g: Builder, q: Val, k: Val, v: Val, *meta: Val) -> tuple[Val, Val]:
        """Attention without the sinks, and then what they take of it; a row that sees nothing stays as it is."""
        (z,), rest = self.apart(meta, "sinks")
        need(set(z.dims) == set(self.heads), f"attend's sinks {z.type} are not over its heads {self.heads}")
        out, lse = g.many(self.without_sinks, q, k, v, *rest)
        kept = g.map("out * sigmoid(lse - z)", out=out, lse=lse, z=z, to=out.dims, dtype=q.type.dtype)
        return kept, g.map("logaddexp(lse, z)", lse=lse, z=z, to=lse.dims, dtype=lse.dtype)

    @property
    def without_sinks(self) -> "Attend":
        """The same without `sinks`."""
        return replace(self, meta=tuple(m for m in self.meta if m != "sinks"))

    def apart(self, meta: Sequence[Any], name: str) -> tuple[list[Any], list[Any]]:
        """What of the operands `meta` is called `name`, and the others."""
        given = list(zip(self.meta, meta, strict=True))
        return [v for m, v in given if m == name], [v for m, v in given if m != name]

    def step(self, s: Any, n: Node, ins: Sequence[Any]) -> Iterable[Any]:
        """The new queries see past and new keys."""
        if "seed" in self.meta:
            plain = self.untrained(n)
            return plain.op.step(s, plain, [x for x, v in zip(ins, n.ins) if v in plain.ins])
        moving = any(map(s.is_keyed, ins))
        if not moving and s.time not in (self.query, self.over):
            return s.same(n, ins)
        if self.query != s.time or self.tail or {"key_at", "query_at"} & set(self.meta):
            raise s.refusal(n, f"attends from {self.query} to all positions along {s.time}")
        if any(f"n_{s.time}" == str(x) for e in (self.scale, self.score) for x in e.free_symbols):
            raise s.refusal(n, f"has scores that depend on the length along {s.time}")
        meta: dict[str, Val] = {"query_at": s.fed.at} if moving or self.placed else {}
        if moving:
            if not is_causal(self.pattern, s.sizes[s.time], self.count(s.sizes)):
                raise s.refusal(n, "sees later positions")
            meta["key_at"] = s.key_positions(self.over)
        if "segments" in self.meta and "key_segments" not in self.meta:
            (ids,) = s.keyed(s.value(ins[3 + self.meta.index("segments")]), self.over)
            meta["key_segments"] = s.joined_keys(ids, n)
        given = [s.joined_keys(x, n) if s.is_keyed(x) else s.value(x) for x in ins]
        wide = replace(self, meta=(*self.meta, *meta), layout=None)
        return s.g.many(wide, *given, *meta.values(), names=[v.name for v in n.outs])

    def reach(self, sizes: Mapping[str, int], time: str) -> tuple[str, int | None] | None:
        if self.query != time:
            return None
        far = max_distance(self.pattern, sizes[time], self.count(sizes))
        return self.over, None if far is None else max(1, far + 1)

    def untrained(self, node: Node) -> Node:
        drawn = set(self.scalars)
        ins = tuple(v for i, v in enumerate(node.ins) if i not in drawn)
        meta = tuple(m for m in self.meta if m not in DRAWN)
        return replace(node, op=replace(self, meta=meta, rate=sp.S.Zero, op_id=0), ins=ins) if drawn else node

    def unplaced(self, ins: Sequence[Val], at: Val, time: str) -> tuple[Op, list[Val]]:
        own = self.meta.index("query_at") if "query_at" in self.meta else len(self.meta)  # a step's come after them
        return replace(self, meta=self.meta[:own]), list(ins[: 3 + own])

    @property
    def placed(self) -> bool:
        """Does anything depend on where a query stands?"""
        return self.pattern.reads_queries or "near" in self.meta or symbol("i_q") in self.score.free_symbols

    def work(self, types: tuple[Type, ...]) -> str:
        return "attention"

    @property
    def distant(self) -> bool:
        """Do its scores depend on distances in a table, or its queries stand behind other keys?"""
        return "near" in self.meta or self.tail

    def walked(self, queries: int, keys: int) -> Pattern:
        """The pattern over the coordinates of so many queries and keys."""
        fixed = self.pattern.at(max(queries, keys))
        if not self.tail:
            return fixed
        return Pattern.parse(written(moved(fixed.formula, add(Q, const(keys - queries)), K)))

    def count(self, sizes: Mapping[str, int]) -> int:
        """How many heads it has."""
        return prod(sizes[d] for d in self.heads)

    def vjp(self, g: Builder, x: tuple[Val, ...], y: tuple[Val, ...], dy: Sequence[Val | None]) -> Cotangents:
        """From out and lse (AttendGrad) unless lse has a cotangent of its own: then the derived derivative.

        With out and lse of all keys, sinks among them, AttendGrad gives q, k and v theirs; a sink of weight w has
        -w rowsum(d(out) · out), since its value is 0."""
        if dy[1] is not None or dy[0] is None:
            return super().vjp(g, x, y, dy)
        q, k, v, *meta = x
        sinks, rest = self.apart(meta, "sinks")
        dq, dk, dv, *near = g.many(AttendGrad(self.without_sinks), q, k, v, *y, dy[0], *rest)
        sunk = [self._sink_grad(g, z, y[0], y[1], dy[0]) for z in sinks]
        found: dict[str, Val] = dict([*zip(["near"], near), *zip(["sinks"], sunk)])
        return [dq, dk, dv, *map(found.get, self.meta)]

    def _sink_grad(self, g: Builder, z: Val, out: Val, lse: Val, do: Val) -> Val:
        weight = g.map("exp(z - lse)", z=z, lse=lse, to=lse.dims, dtype=lse.dtype)
        each = g.map("-w * o * d", w=weight, o=out, d=do, to=out.dims, dtype=lse.dtype)
        return g.cast(g.reduce(each, to=z.dims), z.dtype)

    def wide(self, results: int) -> tuple[bool, ...] | None:
        return False, *(True for _ in range(results - 1))


@dataclass(frozen=True)
class AttendGrad(Composite):
    """d(q, k, v) of `of`, FlashAttention's backward (Dao et al. 2022, section 3.1 and appendix B.2).

    Operands: q, k, v, out, lse, d(out), then of's metadata. The weights are exp(score - lse) and rowsum(d(out) · out)
    stands for rowsum(d(weights) · weights), so nothing of size query × over is read; of one that is not normalised the
    weights are the scores, and out and lse are not read. Outputs have the types of q, k, v; the gradient of `near`
    follows where there is one.
    """

    of: Attend

    @property
    def scalars(self) -> Mapping[int, str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return _drawn(self.of, 6)

    def work(self, types: tuple[Type, ...]) -> str:
        return "attention"

    @property
    def attention(self) -> Attend:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.of

    def expand(self, g: Builder, q: Val, k: Val, v: Val, out: Val, lse: Val, do: Val, *meta: Val) -> tuple[Val, ...]:
        acc, x = accumulate(q), Scores(self.of, g, q, k, meta)
        p = x.scores
        if self.of.normalised:
            p = g.map("exp(x - lse)", x=p, lse=lse, to=p.dims, dtype=acc)
        do32, v32 = g.cast(do, acc), g.cast(v, acc)
        dv = g.einsum(x.dropped(g, p), do32, to=v.dims)
        pulled = x.dropped(g, g.einsum(do32, v32, to=p.dims))
        if self.of.normalised:
            delta = g.reduce(g.map("o * d", o=out, d=do, dtype=acc), to=x.rows)
            pulled = g.map("p * (dp - delta)", p=p, dp=pulled, delta=delta, to=p.dims, dtype=acc)
        ds = x.pull(g, pulled, "dots")
        dq, dk = g.einsum(ds, g.cast(k, acc), to=q.dims), g.einsum(ds, g.cast(q, acc), to=k.dims)
        grads = g.cast(dq, q.type.dtype), g.cast(dk, k.type.dtype), g.cast(dv, v.type.dtype)
        return grads if x.near is None else (*grads, x.near.pull(g, x.pull(g, pulled, "near")))

    def wide(self, results: int) -> tuple[bool, ...] | None:
        return (False,) * results


def _drawn(of: Attend, before: int) -> Mapping[int, str]:
    """Which operands are the seed and the layer, behind so many others."""
    return {before + i: m for i, m in enumerate(of.meta) if m in DRAWN}
