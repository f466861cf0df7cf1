"""A linear state in chunks: products within a chunk, a short loop from chunk to chunk.

With D[t, j] the decay between the places j and t of a chunk, S the state before it and M[r, i][t, j] = <w_r[t], D[t, j]
k_i[j]> below the diagonal,

    read_r[t] = <w_r[t] * before[t], S> + sum over i, j of M[r, i][t, j] v_i[j]
    S' = whole * S + sum over i, t of (k_i[t] * after[t]) v_i[t]

where `before`, `after` and `whole` are decays from the chunk's start, to its end, and over all of it. A source that
reads the state has v = y + C (what it reads), which is a triangular system in the places of a chunk: its inverse is
taken once, and v = plain + x <.., S>. No logarithm, no exponential, no division.

Source: chunks of linear attention (Hua et al. 2022, Sun et al. 2023, Yang et al. 2023), the state space dual (Dao and
Gu 2024, section 6), the delta rule's triangular form (Yang et al. 2024); decays by products, for all of them at once.
"""

from collections.abc import Callable, Sequence
from typing import Any

from weft.ir.library import UnitInverse
from weft.ir.ops.chunks import Unchunk
from weft.ir.ops.regions import Loop
from weft.ir.types import Val, union
from weft.passes.chunk.within import WithinChunks

Parts = list[Val | None]
"""By source: what it writes, [.. row value..], or what it reads of the state before the chunk, [.. row key..]."""


class Chunked(WithinChunks):
    """One state in chunks."""

    def build(self, first: Val, wanted: Sequence[int]) -> tuple[dict[int, Val], Val]:
        """What the readers `wanted` read at each position, and the last value of the state."""
        of = self.of
        plain: Parts = [None if s.plain == 0 else self.placed(s.plain, of.value) for s in of.sources]
        reading: Parts = [None] * len(plain)
        if of.active:
            self.solve(plain, reading)
        before, values, last = self.loop(first, plain, reading)
        return {r: self.read(r, before, values) for r in wanted}, last

    def solve(self, plain: Parts, reading: Parts) -> None:
        """Fill in what the sources that read the state write: `plain`, and `reading` times the state before the chunk.

        They are unknowns of a triangular system, whose every block is below the diagonal in the places: eliminated
        source by source, each with an inverse of its own."""
        of, active = self.of, self.of.active
        scale = {(i, r): self.placed(c, ()) for i in active for r, c in of.sources[i].reads.items()}

        def through(i: int, make: Callable[[int], Val]) -> Val | None:
            """What source i writes of what its readers have."""
            own = {r: make(r) for r in of.sources[i].reads}
            each = [self.times(scale[i, r], v, *(d for d in v.dims if d not in self.lead)) for r, v in own.items()]
            return self.plus(*each)

        block = {(i, j): through(i, lambda r, j=j: self.pair(r, j)) for i in active for j in range(len(plain))}
        for i in active:
            known = [self.mixed(block[i, j], y) for j, y in enumerate(plain) if j not in active and y is not None]
            plain[i] = self.plus(plain[i], *known)
            reading[i] = through(i, self.weights)
        inverse: dict[int, Val] = {}
        for at, p in enumerate(active):
            inverse[p] = self.g.one(UnitInverse(self.row, self.column, self.inner), there(block[p, p]))
            for q in active[at + 1 :]:
                left = self.squared(there(block[q, p]), inverse[p])
                for j in active[at + 1 :]:
                    block[q, j] = self.plus(block[q, j], self.squared(left, there(block[p, j])))
                for side in (plain, reading):
                    side[q] = self.plus(side[q], self.mixed(left, side[p]))
        for at, p in reversed(list(enumerate(active))):
            for side in (plain, reading):
                total = self.plus(side[p], *(self.mixed(block[p, q], side[q]) for q in active[at + 1 :]))
                side[p] = self.mixed(inverse[p], total)

    def loop(self, first: Val, plain: Parts, reading: Parts) -> tuple[Val, Parts, Val]:
        """From chunk to chunk: the state before each, what every source writes in it, and the state after the last."""
        of, places = self.of, (self.row, *self.of.value)
        dims = (*of.batch, *of.key, *of.value)
        b, given = self.g.body(), list[Val]()
        start = self.g.expand(first, to=dims)
        state = b.input("state", start.type)

        def inner(v: Val) -> Val:
            given.append(v)
            return b.input(v.name, v.type.but(d for d in v.dims if d != self.chunks))

        made, terms = list[Val](), [state]
        if self.decays is not None:
            terms = [b.map("w*s", w=inner(self.decays.whole), s=state, to=dims, dtype=self.dtype)]
        if (fixed := self.fixed(plain, reading)) is not None:
            terms.append(inner(fixed))
        for i, (y, x) in enumerate(zip(plain, reading)):
            if x is not None:
                v = b.einsum(inner(x), state, to=(*of.batch, *places))
                v = v if y is None else b.map("v + y", v=v, y=inner(y), to=v.dims, dtype=self.dtype)
                made.append(v)
                terms.append(b.einsum(inner(self.written(i)), v, to=dims))
        named: dict[str, Any] = {f"t{i}": t for i, t in enumerate(terms)}
        after = b.map(" + ".join(named), to=dims, dtype=self.dtype, **named)
        last, *stacks = self.g.many(Loop(self.chunks, b.graph(after, *made), 1), start, *given)
        found = (self.g.expand(v, to=(*self.own, *places)) for v in stacks)
        values = [y if x is None else next(found) for y, x in zip(plain, reading)]
        before = self.g.expand(stacks[-1], to=(*self.own, *of.key, *of.value))
        return before, values, self.g.expand(last, to=of.state.dims)

    def fixed(self, plain: Parts, reading: Parts) -> Val | None:
        """What a chunk adds to the state whatever that is."""
        of, terms = self.of, list[Val]()
        for i, (y, x) in enumerate(zip(plain, reading)):
            if x is None and y is not None:
                k = self.written(i)
                terms.append(self.g.einsum(k, y, to=(*self.within(union(k.dims, y.dims)), *of.key, *of.value)))
        return self.plus(*terms)

    def read(self, r: int, before: Val, values: Parts) -> Val:
        """What a reader reads, [.. time value..]."""
        own, w = (self.row, *self.of.value), self.weights(r)
        terms = [self.g.einsum(w, before, to=(*self.within(union(w.dims, before.dims)), *own))]
        terms += [there(self.mixed(self.pair(r, i), v)) for i, v in enumerate(values) if v is not None]
        out = there(self.plus(*terms))
        out = self.g.expand(out, to=(*self.within((*out.dims, *self.own)), *own))
        return self.g.one(Unchunk(self.chunks, self.row, self.out.time), out)


def there(v: Val | None) -> Val:
    """A value that is there."""
    assert v is not None
    return v
