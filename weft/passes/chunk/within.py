"""WithinChunks a chunk of positions: decays between its places, and what its rows read of its keys."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from weft.ir.library import DecayedProduct
from weft.ir.ops.chunks import Chunk
from weft.ir.ops.regions import Loop
from weft.ir.types import Dims, Val, union
from weft.passes.chunk.forms import Outside
from weft.passes.chunk.states import LinearState


@dataclass(frozen=True)
class Decays:
    """before, after [.. row key?]: from a chunk's start to a place, and from it to the end. whole [.. key?]. pairs [..
    row column]: between two places, where keys have one decay in common. each [.. row key]: the decays, where not."""

    before: Val
    after: Val
    whole: Val
    pairs: Val | None
    each: Val | None


class WithinChunks:
    """One state, its chunks apart. dims: chunks, places in one, the same by two more names. last: is the state after
    the last position read?"""

    def __init__(self, out: Outside, state: LinearState, dims: Dims, last: bool) -> None:
        self.out, self.g, self.of, self.wants_last = out, out.g, state, last
        self.chunks, self.row, self.column, self.inner = dims
        self.dtype = state.state.dtype
        self.own = (*state.batch, self.chunks)
        asked = {d for e in state.readers for d in out.dims(e)} - {*state.state.dims}
        self.lead = (*state.batch, *out.ordered(asked), self.chunks)
        self.w = [self.placed(e, state.key) for e in state.readers]
        self.k = [self.placed(s.key, state.key) for s in state.sources]
        self.known: dict[tuple[int, int], Val] = {}

    def within(self, dims: Sequence[str]) -> Dims:
        """Those of the leading dims that are among these."""
        return tuple(d for d in self.lead if d in dims)

    def placed(self, e: Any, own: Dims, full: bool = False) -> Val:
        """A formula's values as [.. row own..] with leading dims first, all that the state has where `full`."""
        v = self.out.value(e, self.dtype, (*own, self.out.time))
        v = self.g.one(Chunk(self.out.time, self.chunks, self.row), v)
        lead = self.own if full else self.within(v.dims)
        return self.g.expand(v, to=(*lead, self.row, *own))

    def column_of(self, v: Val) -> Val:
        return self.g.rename(v, self.row, self.column)

    @cached_property
    def decays(self) -> Decays | None:
        """None where nothing is forgotten."""
        of, row = self.of, self.row
        if of.decay == 1:
            return None
        key = of.key if self.out.dims(of.decay) & set(of.key) else ()
        a = self.placed(of.decay, key, full=bool(key))
        if self.wants_last:
            inside = f"where(i_{self.chunks}*n_{row} + i_{row} < n_{self.out.time}, a, 1)"
            a = self.g.map(inside, a=a, to=(*self.within((*a.dims, self.chunks)), row, *key), dtype=self.dtype)
        lead = self.within(a.dims)
        whole, before = self.running(a, lead, key)
        if key:
            _, after = self.running(a, lead, key, reverse=True)
            return Decays(before, after, whole, None, a)
        end, pairs = self.between(a, lead)
        return Decays(before, self.g.rename(end, self.column, row), whole, pairs, None)

    def running(self, a: Val, lead: Dims, key: Dims, reverse: bool = False) -> tuple[Val, Val]:
        """The product of all decays of a chunk, and of those before each place."""
        start = self.g.map(1, to=(*lead, *key), dtype=self.dtype)
        b = self.g.body()
        p, a_t = b.input("passed", start.type), b.input("a", start.type)
        after = b.graph(b.map("p*a", p=p, a=a_t, to=start.dims, dtype=self.dtype))
        whole, before = self.g.many(Loop(self.row, after, 1, reverse), start, a)
        return whole, self.g.expand(before, to=(*lead, self.row, *key))

    def between(self, a: Val, lead: Dims) -> tuple[Val, Val]:
        """What is left of each place at the chunk's end [.. column], and between two places [.. row column]."""
        row, column = self.row, self.column
        place = self.g.map(f"i_{row}", to=(row,), dtype="i64")
        start = self.g.map(0, to=(*lead, column), dtype=self.dtype)
        b = self.g.body()
        p, a_t = b.input("passed", start.type), b.input("a", start.type.but(lead))
        t, formula = b.input("place", place.type.but(())), f"p*a + where(t == i_{column}, 1, 0)"
        after = b.graph(b.map(formula, p=p, a=a_t, t=t, to=start.dims, dtype=self.dtype))
        end, pairs = self.g.many(Loop(row, after, 1), start, a, place)
        return end, self.g.expand(pairs, to=(*lead, row, column))

    def pair(self, r: int, i: int) -> Val:
        """M[r, i], [.. row column]."""
        if (r, i) not in self.known:
            self.known[r, i] = self._pair(self.w[r], self.column_of(self.k[i]))
        return self.known[r, i]

    def _pair(self, w: Val, k: Val) -> Val:
        row, column, decays = self.row, self.column, self.decays
        if decays is not None and decays.each is not None:
            lead = self.within((*w.dims, *self.own))
            given = ((w, row), (k, column), (decays.each, row))
            w, k, a = (self.g.expand(v, to=(*lead, d, *self.of.key)) for v, d in given)
            return self.g.one(DecayedProduct(row, column, self.of.key), w, k, a)
        both = self.g.einsum(w, k, to=(*self.within(union(w.dims, k.dims)), row, column))
        if decays is None:
            formula = f"where(i_{row} > i_{column}, m, 0)"
            return self.g.map(formula, m=both, to=both.dims, dtype=self.dtype)
        assert decays.pairs is not None
        return self.times(both, decays.pairs, row, column)

    def times(self, x: Val, y: Val, *own: str) -> Val:
        """A product over leading dims and `own`."""
        return self.g.map("x*y", x=x, y=y, to=(*self.within(union(x.dims, y.dims)), *own), dtype=self.dtype)

    def plus(self, *terms: Val | None) -> Val | None:
        """A sum of values over the same dims but for leading ones."""
        there = [t for t in terms if t is not None]
        if len(there) < 2:
            return there[0] if there else None
        names: dict[str, Any] = {f"t{i}": t for i, t in enumerate(there)}
        own = [d for d in there[0].dims if d not in self.lead]
        to = (*self.within(union(*(t.dims for t in there))), *own)
        return self.g.map(" + ".join(names), to=to, dtype=self.dtype, **names)

    def mixed(self, m: Val | None, x: Val | None) -> Val | None:
        """m [.. row column] times x [.. row own..]; None where one is missing."""
        if m is None or x is None:
            return None
        own = [d for d in x.dims if d not in (*self.lead, self.row)]
        to = (*self.within(union(m.dims, x.dims)), self.row, *own)
        return self.g.einsum(m, self.column_of(x), to=to)

    def squared(self, x: Val, y: Val) -> Val:
        """The product of two matrices [.. row column]."""
        x, y = self.g.rename(x, self.column, self.inner), self.g.rename(y, self.row, self.inner)
        return self.g.einsum(x, y, to=(*self.within(union(x.dims, y.dims)), self.row, self.column))

    def weights(self, r: int) -> Val:
        """The weights of a read of the state before the chunk, [.. row key..]."""
        return self.w[r] if self.decays is None else self.times(self.w[r], self.decays.before, self.row, *self.of.key)

    def written(self, i: int) -> Val:
        """The keys of a source, with what is left of them at the chunk's end, [.. row key..]."""
        return self.k[i] if self.decays is None else self.times(self.k[i], self.decays.after, self.row, *self.of.key)
