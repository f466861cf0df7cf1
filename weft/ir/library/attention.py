"""Attention under a pattern, and its derivative from the log-sum-exp."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sympy as sp

from weft.ir.builder import Builder
from weft.ir.formula import symbol
from weft.ir.library.precision import accumulate
from weft.ir.op import Composite
from weft.ir.types import Dims, Val, need

if TYPE_CHECKING:
    from weft.ir.pattern import Layout, Pattern

S = symbol("s")
META = ("segments", "valid", "query_at", "key_at")
"""What an operand after q, k, v can be: i64 segment ids over the queries (keys have the same under their own dim);
bool over the keys; i64 positions of queries, of keys, which then replace their coordinates in pattern and score."""


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
    """

    contract: str
    over: str
    query: str
    pattern: "Pattern"
    scale: sp.Expr
    score: sp.Expr = S
    heads: Dims = ()
    meta: Dims = ()
    layout: "Layout | None" = None

    def expand(self, g: Builder, q: Val, k: Val, v: Val, *meta: Val) -> tuple[Val, Val]:
        acc, x = accumulate(q), Scores(self, g, q, k, meta)
        rows = x.rows
        top = g.detach(g.reduce(x.scores, to=rows, kind="max"))
        top = g.map("Piecewise((top, top > -oo), (0, True))", top=top, dtype=acc)
        e = g.map("exp(x - top)", x=x.scores, top=top, to=x.scores.dims, dtype=acc)
        total = g.reduce(e, to=rows)
        safe = g.map("Piecewise((t, t > 0), (1, True))", t=total, dtype=acc)
        own = [d for d in v.dims if d not in (*rows, self.over)]
        out = g.einsum(e, g.cast(v, acc), to=[*rows, *own])
        out = g.map("out / total", out=out, total=safe, to=out.dims, dtype=q.type.dtype)
        lse = "Piecewise((top + log(safe), total > 0), (oo, True))"
        return out, g.map(lse, top=top, safe=safe, total=total, dtype=acc)

    def vjp(self, g: Builder, x: tuple[Val, ...], y: tuple[Val, ...], dy: list[Val | None]) -> list[Val | None]:
        """From out and lse (AttendGrad) unless lse has a cotangent of its own: then the derived derivative."""
        if dy[1] is not None or dy[0] is None:
            return super().vjp(g, x, y, dy)
        q, k, v, *meta = x
        return [*g.many(AttendGrad(self), q, k, v, *y, dy[0], *meta), *(None for _ in meta)]


@dataclass(frozen=True)
class AttendGrad(Composite):
    """d(q, k, v) of `of`, FlashAttention's backward (Dao et al. 2022, section 3.1 and appendix B.2).

    Operands: q, k, v, out, lse, d(out), then of's metadata. The weights are exp(score - lse) and rowsum(d(out) · out)
    stands for rowsum(d(weights) · weights), so nothing of size query × over is read. Outputs have the types of q, k, v.
    """

    of: Attend

    def expand(self, g: Builder, q: Val, k: Val, v: Val, out: Val, lse: Val, do: Val, *meta: Val) -> tuple[Val, ...]:
        acc, x = accumulate(q), Scores(self.of, g, q, k, meta)
        p = g.map("exp(x - lse)", x=x.scores, lse=lse, to=x.scores.dims, dtype=acc)
        do32, v32 = g.cast(do, acc), g.cast(v, acc)
        dv = g.einsum(p, do32, to=v.dims)
        dp = g.einsum(do32, v32, to=p.dims)
        delta = g.reduce(g.map("o * d", o=out, d=do, dtype=acc), to=x.rows)
        ds = x.pull(g, g.map("p * (dp - delta)", p=p, dp=dp, delta=delta, to=p.dims, dtype=acc))
        dq, dk = g.einsum(ds, g.cast(k, acc), to=q.dims), g.einsum(ds, g.cast(q, acc), to=k.dims)
        return g.cast(dq, q.type.dtype), g.cast(dk, k.type.dtype), g.cast(dv, v.type.dtype)


class Scores:
    """The scores [rows over] of an Attend in a builder: -inf where a key is not seen."""

    def __init__(self, of: Attend, g: Builder, q: Val, k: Val, meta: tuple[Val, ...]):
        need(len(meta) == len(of.meta), f"attend wants {len(of.meta)} metadata operands {of.meta}, got {len(meta)}")
        need(of.query in q.dims, f"attend's queries {q.type} have no dim {of.query}")
        need(set(of.meta) <= set(META), f"attend knows the metadata {', '.join(META)}, not {of.meta}")
        need(set(of.heads) <= set(q.dims), f"attend's queries {q.type} have no dims {of.heads}")
        acc = accumulate(q)
        self.of = of
        self.rows = tuple(d for d in q.dims if d != of.contract)
        self.dots = g.einsum(g.cast(q, acc), g.cast(k, acc), to=[*self.rows, of.over])
        self.given, self.place = self._metadata(g, dict(zip(of.meta, meta)))
        score = of.score.xreplace(self.place).xreplace({S: of.scale * symbol("dots")})
        see = of.pattern.to_sympy(self.place[symbol("i_q")], self.place[symbol("i_k")], self.place[symbol("i_h")])
        if not isinstance(see, (sp.logic.boolalg.Boolean, bool)):
            score, see = score + sp.log(see), see > 0
        formula = sp.Piecewise((score, see), (-sp.oo, True))
        self.scores = g.map(formula, dots=self.dots, **self.given, to=self.dots.dims, dtype=acc)

    def _metadata(self, g: Builder, meta: dict[str, Val]) -> tuple[dict[str, Val], dict[sp.Symbol, sp.Expr]]:
        """Metadata operands by their names in formulas, and what the coordinates i_q, i_k, i_h stand for."""
        of, given = self.of, dict(meta)
        if "segments" in meta:
            given["segments_q"] = given.pop("segments")
            given["segments_k"] = g.rename(meta["segments"], old=of.query, new=of.over)
        head = sp.Integer(0)
        for d in of.heads:
            head = head * symbol(f"n_{d}") + symbol(f"i_{d}")
        at = {"i_q": ("query_at", of.query), "i_k": ("key_at", of.over)}
        place = {symbol(i): symbol(name if name in meta else f"i_{dim}") for i, (name, dim) in at.items()}
        return given, place | {symbol("i_h"): head}

    def pull(self, g: Builder, d: Val) -> Val:
        """d(scores) -> d(dots), through the score formula."""
        s = symbol("dots")
        score = self.of.score.xreplace(self.place).xreplace({S: self.of.scale * s})
        rate = sp.diff(score, s)
        operands = {"dots": self.dots, "d": d} | self.given
        names = {str(v) for v in rate.free_symbols}
        used = {k: v for k, v in operands.items() if k == "d" or k in names}
        return g.map(symbol("d") * rate, **used, to=d.dims, dtype=d.type.dtype)
