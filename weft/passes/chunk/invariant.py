"""A fixed state in one of its exact forms, by price: chunks that hand on a state, or one long convolution.

With P[l] = A^l, W, K and A as in `fixed`, and m[l] = Re sum over keys of W K P[l] the kernel,

    chunks of n:  y[t] = sum over j < t of m[t - j - 1] u[j] + Re <W P[t], z>
                  z' = A^n z + sum over j of K P[n - 1 - j] u[j]
    convolution:  y = m * u over all positions, m of two levels of powers, P[n i + j] = (A^n)^i P[j]

The first is the semiseparable form with its state passed from chunk to chunk; it begins in any state and says in which
it ends. The second needs neither. Powers by doubling: no logarithm, exact for any A; all numbers are real.

Source: kernels of diagonal state spaces (Gupta et al. 2022, Gu et al. 2022), state passing (Fu et al. 2023, section
4.2), the semiseparable form (Dao and Gu 2024).
"""

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

from weft.ir.builder import Builder
from weft.ir.library import LongConvolve, Powers
from weft.ir.ops.chunks import Chunk, Unchunk
from weft.ir.ops.primitives import Einsum, Gather
from weft.ir.ops.regions import Loop
from weft.ir.types import Dims, Val, union
from weft.passes.chunk.fixed import Complex, FixedState, product
from weft.passes.chunk.forms import Outside

Parts = tuple[Val | None, Val | None]
"""The values of complex numbers; None: 0."""


def left(formulas: Sequence[str], names: Collection[str]) -> list[str]:
    """Sums of products without the terms that read other names."""
    return [" + ".join(t for t in f.split(" + ") if set(t.lstrip("-").split("*")) <= set(names)) for f in formulas]


class FixedForms:
    """One fixed state. dims: chunks, places in one, the same by another name; all positions by another name."""

    def __init__(self, out: Outside, state: FixedState, dims: Dims) -> None:
        self.out, self.g, self.of = out, out.g, state
        self.chunks, self.row, self.column, _, *self.before = dims
        first = state.carries[0]
        self.batch, self.dtype = first.dims[0], first.dtype
        self.order = (*state.lead, self.batch, *state.value, self.chunks, *state.key, self.row, self.column)

    def sorted(self, *x: Val | None, but: Dims = (), more: Dims = ()) -> Dims:
        """The dims of values, in the order of all."""
        dims = {*union(*(v.dims for v in x if v is not None)), *more} - {*but}
        return tuple(d for d in self.order if d in dims)

    def values(self, x: Complex, *also: str) -> Parts:
        """The values of formulas, both over the same dims and `also` these."""
        dims = [d for e in x for d in self.out.dims(e)]
        re, im = (None if e == 0 else self.out.value(e, self.dtype, (*dims, *also)) for e in x)
        return (self.ordered(re), self.ordered(im))

    def ordered(self, v: Val | None) -> Val | None:
        return v and self.g.expand(v, to=self.sorted(v))

    def maps(self, name: str, formulas: Sequence[str], **given: Val | None) -> Parts:
        """Two formulas over values, called `name`; terms without one of them are missing, or all of one."""
        there = {n: v for n, v in given.items() if v is not None}
        texts, to = left(formulas, there), self.sorted(*there.values())
        some = {f"{name}_{part}": t for part, t in zip(("real", "imag"), texts) if t}
        made = iter(self.g.maps(some.values(), there, to=to, dtype=self.dtype, names=list(some)) if some else ())
        re, im = (next(made) if t else None for t in texts)
        return re, im

    def times(self, name: str, x: Parts, y: Parts) -> Parts:
        """Products of complex numbers."""
        return self.maps(name, ["a*c + -b*d", "a*d + b*c"], a=x[0], b=x[1], c=y[0], d=y[1])

    def summed(self, name: str, *x: Val, to: Dims) -> Val:
        """A product, summed over what `to` leaves out."""
        return self.g.one(Einsum(to), *x, names=[name])

    def read(self, name: str, x: Parts, y: Parts) -> Val:
        """The real part of the products, summed over keys."""
        to = self.sorted(*x, *y, but=self.of.key)
        both = [self.summed(name, a, b, to=to) for a, b in zip(x, y) if a is not None and b is not None]
        if len(both) == 1:
            return both[0]
        return self.g.map("a - b", a=both[0], b=both[1], to=to, dtype=self.dtype, names=[name])

    def taken(self, name: str, x: Parts, at: Val, dim: str) -> Parts:
        """Values at coordinates of a dim; 0 outside."""
        names = f"{name}_real", f"{name}_imag"
        re, im = (v and self.ordered(self.g.one(Gather((dim,)), v, at, names=[n])) for n, v in zip(names, x))
        return re, im

    @cached_property
    def decay(self) -> Parts:
        re, im = self.values(self.of.decay)
        return re or self.g.map(0, to=im.dims if im else (), dtype=self.dtype), im

    def powers(self, x: Parts, at: str) -> Parts:
        given = [v for v in x if v is not None]
        found = self.g.many(Powers(at), *given, names=("powers_real", "powers_imag")[: len(given)])
        re, im = [*map(self.ordered, found), None][:2]
        return re, im

    @cached_property
    def power(self) -> Parts:
        """P, along `row`."""
        return self.powers(self.decay, self.row)

    @cached_property
    def whole(self) -> Parts:
        """What is left of a state after a chunk."""
        last = self.g.map(f"n_{self.row} - 1", to=(), dtype="i64")
        return self.times("whole", self.taken("last", self.power, last, self.row), self.decay)

    def placed(self, y: Any) -> Val:
        """What is written at each position, in chunks."""
        v = self.out.value(y, self.dtype, (self.batch, self.out.time))
        v = self.g.one(Chunk(self.out.time, self.chunks, self.row), v, names=["given"])
        return self.g.expand(v, to=self.sorted(v))

    def weights(self, reader: int, key: Complex | None = None) -> Parts:
        """The weights of a read, times a key; over all keys."""
        w = self.of.readers[reader]
        return self.values(w if key is None else product(w, key), *self.of.key)

    def kernel(self, reader: int, key: Complex) -> Val:
        """m, along `row`."""
        return self.read("kernel", self.weights(reader, key), self.power)


class InChunks(FixedForms):
    """Chunks that hand on a state."""

    def build(self, starts: Sequence[Val]) -> list[Val]:
        """What each reader reads, [.. time]."""
        self.given = [(key, self.placed(y)) for key, y in self.of.sources]
        self.state = self.loop(starts)
        return [self.reads(r) for r in range(len(self.of.readers))]

    def loop(self, starts: Sequence[Val]) -> Parts:
        """The states before each chunk."""
        of, names = self.of, ("re", "im")[: len(starts)]
        dims = (*of.lead, self.batch, *of.value, *of.key)
        turned = self.g.map(f"n_{self.row} - 1 - i_{self.row}", to=(self.row,), dtype="i64")
        back = self.taken("to_end", self.power, turned, self.row)
        added = self.plus([self.into(key, back, u) for key, u in self.given], (*dims, self.chunks))
        b, outer = Builder(), list[Val]()
        carried: dict[str, Val] = {n: b.input(n, v.type.but(dims)) for n, v in zip(names, starts)}

        def inner(v: Val | None, name: str) -> Val | None:
            if v is None:
                return None
            outer.append(v)
            return b.input(name, v.type.but(d for d in v.dims if d != self.chunks))

        given = dict(zip(("a", "b", "x", "y"), map(inner, (*self.whole, *added), ("a", "b", "x", "y"))))
        there = {**carried, **{n: v for n, v in given.items() if v is not None}}
        texts = left(["a*re + -b*im + x", "a*im + b*re + y"][: len(names)], there)
        after = b.maps(texts, there, to=dims, dtype=self.dtype, names=[f"{n}_after" for n in names])
        first = [self.g.expand(v, to=dims) for v in starts]
        found = self.g.many(Loop(self.chunks, b.graph(*after), len(names)), *first, *outer)[len(names) :]
        re, im = [*map(self.ordered, found), None][:2]
        return re, im

    def into(self, key: Complex, powers: Parts, u: Val) -> Parts:
        """What u [.. row] comes to in the state, each place times a power and the key."""
        found = powers if key == (1, 0) else self.times("written", self.values(key, *self.of.key), powers)
        re, im = (v and self.summed("added", v, u, to=self.sorted(v, u, but=(self.row,))) for v in found)
        return re, im

    def plus(self, parts: Sequence[Parts], to: Dims) -> Parts:
        """Sums of complex numbers, over all these dims."""

        def one(terms: Sequence[Val]) -> Val | None:
            if not terms:
                return None
            names: dict[str, Any] = {f"t{i}": v for i, v in enumerate(terms)}
            dims = tuple(d for d in self.order if d in to)
            if len(terms) == 1:
                return self.g.expand(terms[0], to=dims)
            return self.g.map(" + ".join(names), to=dims, dtype=self.dtype, **names)

        re, im = (one([v for v in some if v is not None]) for some in zip(*parts))
        return re, im

    def reads(self, r: int) -> Val:
        terms = [self.read("far", self.times("read", self.weights(r), self.power), self.state)]
        places = f"i_{self.row} - i_{self.column} - 1"
        lag = self.g.map(places, to=(self.row, self.column), dtype="i64", names=["lag"])
        for key, u in self.given:
            (table, _) = self.taken("table", (self.kernel(r, key), None), lag, self.row)
            assert table is not None
            u = self.g.rename(u, self.row, self.column)
            terms.append(self.summed("near", table, u, to=self.sorted(table, u, but=(self.column,))))
        own = (*self.of.lead, self.batch, *self.of.value, self.chunks, self.row)
        (total, _) = self.plus([(t, None) for t in terms], own)
        assert total is not None
        return self.g.one(Unchunk(self.chunks, self.row, self.out.time), total)

    def last(self, lengths: Val | None) -> list[Val]:
        """The parts of the state behind the last position, or behind as many as each row has."""
        row, of = self.row, self.of
        if lengths is None:
            at = self.g.map(f"n_{self.chunks} - 1", to=(), dtype="i64")
            have = self.g.map(f"n_{self.out.time} - (n_{self.chunks} - 1)*n_{row}", to=(), dtype="i64")
        else:
            at = self.g.map(f"max(n - 1, 0) // n_{row}", n=lengths, dtype="i64")
            have = self.g.map(f"n - q*n_{row}", n=lengths, q=at, dtype="i64")
        less = self.g.map("n - 1", n=have, dtype="i64")
        turned = self.g.map(f"n - 1 - i_{row}", n=have, to=(*have.dims, row), dtype="i64")
        stays = self.chosen(have, self.times("left", self.taken("left", self.power, less, row), self.decay))
        parts = [self.times("stays", stays, self.taken("before", self.state, at, self.chunks))]
        for key, u in self.given:
            (u, _) = self.taken("given", (u, None), at, self.chunks)
            assert u is not None
            parts.append(self.into(key, self.taken("to_end", self.power, turned, row), u))
        dims = (*of.lead, self.batch, *of.value, *of.key)
        found = self.plus(parts, dims)
        there = (v if v is not None else self.g.map(0, to=dims, dtype=self.dtype) for v in found)
        return [self.g.expand(v, to=of.carries[0].dims) for v, _ in zip(there, of.carries)]

    def chosen(self, have: Val, part: Parts) -> Parts:
        """What is left of a state, all of it where there is no position."""

        def one(v: Val | None, none: int) -> Val | None:
            if v is None:
                return None
            return self.g.map(f"where(n > 0, v, {none})", n=have, v=v, to=self.sorted(v, have), dtype=self.dtype)

        return one(part[0], 1), one(part[1], 0)


class AtOnce(FixedForms):
    """One convolution over all positions."""

    def build(self) -> list[Val]:
        """What each reader reads, [.. time]."""
        return [self.reads(r) for r in range(len(self.of.readers))]

    def reads(self, r: int) -> Val:
        time, of = self.out.time, self.of
        dims = (self.batch, *of.value, *of.lead, time)
        high = self.powers(self.whole, self.chunks)
        terms: dict[str, Any] = {}
        for i, (key, y) in enumerate(of.sources):
            k = self.read("kernel", self.times("read", self.weights(r, key), high), self.power)
            k = self.g.one(Unchunk(self.chunks, self.row, time), self.g.expand(k, to=(*of.lead, self.chunks, self.row)))
            u = self.g.expand(self.out.value(y, self.dtype, (self.batch, time)), to=dims)
            terms[f"t{i}"] = self.g.one(LongConvolve(time, self.before[0]), u, k, names=["convolved"])
        if len(terms) == 1:
            return terms["t0"]
        return self.g.map(" + ".join(terms), to=dims, dtype=self.dtype, **terms)
