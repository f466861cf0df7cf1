"""The scores of attention's pairs: the formula, who sees whom, tables by distance, and what drops weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sympy as sp

from weft.ir.builder import Builder
from weft.ir.formula import normal, symbol
from weft.ir.formula.functions import diff, where
from weft.ir.library.dropout import kept
from weft.ir.library.index import row_major
from weft.ir.library.precision import accumulate
from weft.ir.ops.op import Op
from weft.ir.pattern import METADATA, Pattern, holds, opaque_atoms, to_sympy
from weft.ir.pattern.formula import BatchCondition, Leaf
from weft.ir.types import Dims, Type, Val, need, union

if TYPE_CHECKING:
    from weft.ir.library.attention import Attend

S = symbol("s")
META = ("segments", "key_segments", "valid", "query_at", "key_at", "near", "sinks", "seed", "layer")
"""What an operand after q, k, v can be. segments: i64 ids over the queries; keys have the same under their own dim, or
key_segments. valid: bool over the keys. query_at, key_at: i64 positions, which then replace the coordinates in pattern
and score; nobody sees a key at a negative one. near: a table of scores by distance. sinks: a score for each head. These
two are floats. seed, layer: i64[], of the bits by which weights are dropped."""
DRAWN = ("seed", "layer")


@dataclass(frozen=True)
class BlockTable(Op):
    """How often a static table lists the block of (query, key): i64 [heads query over], 0 where it does not.

    Operands: the positions of queries and keys, where `query_at` and `key_at` say so; else they are the coordinates.
    `table` is the text of a pattern that is one table; `swap` exchanges queries and keys.
    """

    table: str
    query: str
    over: str
    heads: Dims = ()
    swap: bool = False
    query_at: bool = False
    key_at: bool = False

    def places(self) -> tuple[tuple[str, bool], tuple[str, bool]]:
        """The dims of queries and keys; is the position along it an operand?"""
        return (self.query, self.query_at), (self.over, self.key_at)

    def infer(self, *x: Type) -> Type:
        need(len(x) == self.query_at + self.key_at, f"block table wants {self.query_at + self.key_at} operands")
        return Type("i64", (*self.heads, *union(*(t.dims for t in x), (self.query, self.over))))

    def torch(self, s: Any, torch: Any, *x: Any) -> Any:
        to, given = s.node.outs[0].dims, iter(zip(x, s.types))

        def at(dim: str, named: bool) -> Any:
            if not named:
                return s.coord(dim, to)
            value, type_ = next(given)
            return s.align(value, type_.dims, to)

        q, k = (at(*p) for p in self.places())
        q, k = (k, q) if self.swap else (q, k)
        head = None
        for d in self.heads:
            head = s.coord(d, to) if head is None else head * s.sizes[d] + s.coord(d, to)
        found = holds(Pattern.parse(self.table), q, k, head, np=torch, n=s.sizes[self.over])
        return (found * 1).expand([s.n(d) for d in to])

    def vjp(self, g: Builder, x: tuple[Val, ...], y: tuple[Val, ...], dy: Sequence[Val | None]) -> list[None]:
        return [None for _ in x]

    def onnx(self, e: Any, *x: Any) -> Any:
        return e.block_table(self, *x)


class Scores:
    """The scores [rows over] of an Attend in a builder, -inf where a key is not seen; of one that is not normalised
    they are weights, each as often as its key is seen, and 0 where it is not."""

    def __init__(self, of: "Attend", g: Builder, q: Val, k: Val, meta: tuple[Val, ...]):
        need(len(meta) == len(of.meta), f"attend wants {len(of.meta)} metadata operands {of.meta}, got {len(meta)}")
        need(set(of.meta) <= set(META), f"attend knows the metadata {', '.join(META)}, not {of.meta}")
        need(of.normalised or "sinks" not in of.meta, "attend's sinks take part in a softmax, and there is none")
        need({of.query, *of.heads} <= set(q.dims), f"attend's queries {q.type} lack one of {(of.query, *of.heads)}")
        acc = accumulate(q)
        self.of = of
        self.given: dict[str, Any] = {m: v for m, v in zip(of.meta, meta) if m not in DRAWN}
        self.drawn: dict[str, Any] = {m: v for m, v in zip(of.meta, meta) if m in DRAWN}
        self.rows = tuple(d for d in q.dims if d != of.contract)
        self.dots = g.einsum(g.cast(q, acc), g.cast(k, acc), to=[*self.rows, of.over])
        before = symbol(f"n_{of.over}") - symbol(f"n_{of.query}") if of.tail else sp.S.Zero
        self.place = {
            symbol("i_q"): symbol("query_at") if "query_at" in of.meta else symbol(f"i_{of.query}") + before,
            symbol("i_k"): symbol("key_at" if "key_at" in of.meta else f"i_{of.over}"),
            symbol("i_h"): row_major(of.heads),
        }
        self.near = Near(self, g) if "near" in of.meta else None
        see, score, times = self.visible(g), self.score(), symbol("times")
        if of.pattern.multiset:
            self.given["times"] = g.map(see, **self.given, to=self.dots.dims, dtype="i64")
            score, see = score + sp.log(times) if of.normalised else score * times, times > 0
        self.see, hidden = see, -sp.oo if of.normalised else sp.S.Zero
        self.scores = g.map(where(see, score, hidden), dots=self.dots, **self.given, to=self.dots.dims, dtype=acc)

    def score(self) -> Any:
        """The score formula over the operands `dots` and `near`, the coordinates and the metadata."""
        plain = self.of.scale.xreplace(self.place) * symbol("dots")
        plain = plain if self.near is None else plain + symbol("near")
        return self.of.score.xreplace(self.place).xreplace({S: plain})

    def visible(self, g: Builder) -> sp.Basic:
        """The pattern as a condition, or as a count; what it needs as operands joins `given`."""
        of, known = self.of, dict[Leaf, Any]()
        if "segments" in of.meta and "key_segments" not in of.meta:
            self.given["key_segments"] = g.rename(self.given["segments"], old=of.query, new=of.over)
        for i, atom in enumerate(opaque_atoms(of.pattern)):
            if isinstance(atom, BatchCondition):
                need(METADATA[atom.name] in of.meta, f"the pattern reads {METADATA[atom.name]}, not in {of.meta}")
                same = sp.Eq(symbol("segments"), symbol("key_segments"))
                known[atom] = same if atom.name == "same_segment" else sp.Ne(symbol("valid"), 0)
                continue
            at = {m: self.given[m] for m in ("query_at", "key_at") if m in of.meta}
            if of.tail and "query_at" not in at:
                at = {"query_at": g.map(self.place[symbol("i_q")], to=of.query, dtype="i64"), **at}
            places = "query_at" in at, "key_at" in at
            table = BlockTable(atom.table.text(), of.query, of.over, of.heads, atom.table.swap, *places)
            self.given[f"listed{i}"] = g.one(table, *at.values())
            count = symbol(f"listed{i}")
            known[atom] = count if of.pattern.multiset else count > 0
        i_q, i_k, i_h = self.place.values()
        see: Any = to_sympy(of.pattern, i_q, i_k, i_h if of.heads else None, known)
        if "key_at" not in of.meta:
            return see
        return where(i_k >= 0, see, 0) if of.pattern.multiset else sp.And(i_k >= 0, see)

    def dropped(self, g: Builder, w: Val) -> Val:
        """w [rows over] times what each pair's bit leaves of its weight: 1 / (1 - rate), or 0."""
        if not self.drawn:
            return w
        of = self.of
        batch = [d for d in self.rows if d not in (*of.heads, of.query)]
        index = row_major((*batch, *of.heads, of.query, of.over))
        return g.map(kept(of.rate, of.op_id, index), x=w, **self.drawn, to=w.dims, dtype=w.dtype)

    def pull(self, g: Builder, d: Val, name: str) -> Val:
        """d(scores) -> d(dots) or d(near), through the score formula, whose slope may be anything where a key is not
        seen. d is 0 there, but where it is not normalised."""
        rate = diff(normal(self.score()), symbol(name))
        counted = not self.of.normalised and self.of.pattern.multiset
        formula = symbol("d") * rate * (symbol("times") if counted else 1)
        if not self.of.normalised or any(s.name[:2] != "n_" for s in rate.free_symbols):
            formula = where(self.see, formula, 0)
        return g.map(formula, d=d, dots=self.dots, **self.given, to=d.dims, dtype=d.dtype)


class Near:
    """A table of scores by distance, read at every pair: it takes the table's place among what scores are given."""

    def __init__(self, of: Scores, g: Builder):
        self.table: Val = of.given["near"]
        rest = [d for d in self.table.dims if d not in of.rows]
        need(len(rest) == 1, f"attend's near {self.table.type} has besides rows {of.rows} one dim, distance")
        (self.distance,) = rest
        i_q, i_k, _ = of.place.values()
        at = {m: of.given[m] for m in ("query_at", "key_at") if m in of.of.meta}
        to = union(*(v.dims for v in at.values()), (of.of.query, of.of.over))
        self.index = g.map(i_q - i_k - of.of.first, **at, to=to, dtype="i64")
        of.given["near"] = g.gather(self.table, self.index, at=(self.distance,))

    def pull(self, g: Builder, d: Val) -> Val:
        """The gradient of the table from that of what was read, over all pairs."""
        return g.cast(g.scatter(d, self.index, at=(self.distance,), to=self.table.dims), self.table.dtype)
