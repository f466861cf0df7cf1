"""One row of blocks: which key blocks a query block touches, without looking at each.

An atom that reads k is undecided only in a strip of key blocks, x + s i <= j <= y + s i for query block i, of a width
that does not grow with n; anywhere else its truth is constant. An atom that does not read k's size but only its
remainders is periodic in k. So a row is strips, bisected with interval arithmetic down to single blocks, and gaps,
where the formula is constant or periodic. A single block is evaluated point by point, once for all blocks that the
formula's congruences make alike.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from weft.ir.pattern.expression import Box, bounds, coarse_bounds, congruences, residual
from weft.ir.pattern.formula import Atom, Formula, Leaf, all_of, atoms, leaves, relax, replace, visible_keys
from weft.ir.pattern.meaning import visible
from weft.ir.pattern.plan import EMPTY, FULL, PARTIAL, Shape


class KeyRun(NamedTuple):
    """Key blocks { j in [low, high) : (j - anchor) mod step < width } of one row, all of one class and count."""

    kind: int
    pairs: int
    low: int
    high: int
    step: int = 1
    anchor: int = 0
    width: int = 1

    def moved(self, by: int) -> "KeyRun":
        return self._replace(low=self.low + by, high=self.high + by, anchor=self.anchor + (by if self.step > 1 else 0))


class Strip(NamedTuple):
    """Undecided for key blocks x + slope i <= j <= y + slope i; with slope None, for all keys of query blocks x..y."""

    slope: Fraction | None
    x: Fraction
    y: Fraction


class BoxedFormula(NamedTuple):
    """A formula inside some box, with what the walk asks of it.

    kind: its class when no arithmetic is left to decide, else None. period: of the truth in key blocks, when no atom
    reads the size of k. opaque: has it atoms of which the truth is unknown when compiling?
    """

    id: int
    formula: Formula
    atoms: tuple[Atom, ...]
    congruences: tuple[tuple[int, int, int], ...]
    period: int | None
    kind: int | None
    opaque: bool


_LEVEL = Fraction(0)


class Irregular(Exception):
    """Out of work: there is no short closed form."""


class Track(NamedTuple):
    """Runs of one part of a row, the number of rows after which that part repeats, and how it has moved by then.

    After `period` rows the first key block of every run has moved by period * left, the last by period * right, and the
    anchor by period * anchor.
    """

    runs: tuple[KeyRun, ...]
    period: int
    left: Fraction
    right: Fraction
    anchor: Fraction


class RowSolver:
    """Solves single rows of blocks, remembering all that repeats.

    `work` falls as it goes; below 0 it raises Irregular.
    """

    def __init__(self, f: Formula, shape: Shape, work: int):
        self.shape, self.work = shape, work
        self.rows_solved = self.leaves = 0
        self._children: dict[tuple[int, ...], BoxedFormula] = {}
        self._leaves: dict[tuple[int, ...], tuple[int, int]] = {}
        self._nodes: dict[Formula, BoxedFormula] = {}
        self._walks: dict[tuple[int, ...], tuple[int, tuple[KeyRun, ...], int]] = {}
        self.root = self.node(all_of(f, visible_keys(shape.nk)) if shape.nk % shape.bn else f)
        found = [self.strip(a) for a in self.root.atoms]
        self.strips = [s for s in found if s is not None and s.slope is not None]
        self.level = [s for s in found if s is not None and s.slope is None]
        self._lines = [(_line(s.x, s.slope), _line(s.y, s.slope), s.slope) for s in self.strips if s.slope is not None]

    def strip(self, atom: Atom) -> Strip | None:
        """Where an atom is undecided."""
        x, (low, high), (_, _, bm, bn) = atom.x, residual(atom.x), self.shape
        a, b = Fraction(x.q, x.den), Fraction(x.k, x.den)
        above = -Fraction(high, x.den) - max(Fraction(0), a * (bm - 1))
        below = (-1 if atom.op == "ge" else 0) - Fraction(low, x.den) - min(Fraction(0), a * (bm - 1))
        if b:  # above <= a q0 + b k <= below for some k of the block
            u, v = sorted((above / (b * bn), below / (b * bn)))
            return Strip(-a * bm / (b * bn), u - Fraction(bn - 1, bn), v)
        if a:
            u, v = sorted((above / (a * bm), below / (a * bm)))
            return Strip(None, u, v)
        return None

    # ---- formulas, as far as they are undecided

    def node(self, f: Formula) -> BoxedFormula:
        if f not in self._nodes:
            known = atoms(f)
            lattice = tuple(sorted({c for a in known for c in congruences(a.x)}))
            free = all(a.x.k == 0 for a in known)
            period = math.lcm(*[m // math.gcd(b * self.shape.bn, m) for _, b, m in lattice]) if free else None
            kind = None if known else _kind(f)
            self._nodes[f] = BoxedFormula(
                len(self._nodes), f, known, lattice, period, kind, len(leaves(f)) > len(known)
            )
        return self._nodes[f]

    def restrict(self, node: BoxedFormula, box: Box, coarse: bool) -> BoxedFormula:
        """The formula on a box. Coarse: decided by plane and residual only, so alike for every coset."""
        states = [_decide(a, coarse_bounds(a.x, box) if coarse else bounds(a.x, box)) for a in node.atoms]
        key = (node.id, *states)
        if key not in self._children:
            truth = {a: s == 1 for a, s in zip(node.atoms, states) if s != -1}

            def by(leaf: Leaf) -> Formula:
                return truth.get(leaf, leaf) if isinstance(leaf, Atom) else leaf

            self._children[key] = self.node(replace(node.formula, by)) if truth else node
        return self._children[key]

    def corner(self, node: BoxedFormula, i: int, j: int) -> tuple[int, ...]:
        """What of a block's corner the formula can tell: its coset, and its offset to every plane."""
        q0, k0 = i * self.shape.bm, j * self.shape.bn
        coset = [(a * q0 + b * k0) % m for a, b, m in node.congruences]
        return (*coset, *[a.x.q * q0 + a.x.k * k0 for a in node.atoms if a.x.q or a.x.k])

    def period_along(self, slope: Fraction, node: BoxedFormula) -> int:
        """The least number of rows T such that T rows down and T slope blocks right changes nothing."""
        bm, bn = self.shape.bm, self.shape.bn
        return math.lcm(
            slope.denominator, *[((a * bm + b * slope * bn) / Fraction(m)).denominator for a, b, m in node.congruences]
        )

    def box(self, i: int, a: int, b: int) -> Box:
        """Of query block i and key blocks [a, b)."""
        nq, _, bm, bn = self.shape
        return i * bm, min(nq, (i + 1) * bm) - 1, a * bn, b * bn - 1

    def split(self, node: BoxedFormula, a: int, b: int) -> int:
        """Where to cut key blocks [a, b): in the middle, or where a remainder of k wraps, if one does near there."""
        bn = self.shape.bn
        for qs, ks, m in reversed(node.congruences):
            if qs == 0 and ks == 1 and m > 2 * bn:
                wrap = ((a + b) * bn // 2 + m // 2) // m * m
                for cut in (wrap // bn, wrap // bn + 1):
                    if a < cut < b:
                        return cut
        return (a + b) // 2

    # ---- walking

    def leaf(self, node: BoxedFormula, i: int, j: int) -> tuple[int, int]:
        """Class and count of one block, point by point."""
        nq, _, bm, bn = self.shape
        height = min(bm, nq - i * bm)
        key = (node.id, height, *self.corner(node, i, j))
        if key not in self._leaves:
            self.work -= 18 + bm * bn // 1300
            self.leaves += 1
            block = range(i * bm, i * bm + height), range(j * bn, (j + 1) * bn)
            least = visible(relax(node.formula, False), *block)
            most = visible(relax(node.formula, True), *block) if node.opaque else least
            kind = EMPTY if most == 0 else FULL if least == height * bn else PARTIAL
            self._leaves[key] = kind, most
        return self._leaves[key]

    def gap(self, i: int, a: int, b: int, left: Fraction, right: Fraction) -> Track:
        """Key blocks [a, b) where no atom that reads the size of k is undecided: constant, or periodic."""
        walk = _TrackWalk(self, i, math.lcm(left.denominator, right.denominator))
        box = self.box(i, a, b)
        node = self.restrict(self.root, box, coarse=True)
        if node.kind is not None:
            walk.constant(node.kind, box, a, b)
        elif node.period is None or node.period > max(self.shape.columns, 64):  # longer than the matrix is wide
            walk.period = self.shape.rows
            walk.bisect(a, b, node, lift=True)
        else:
            walk.periodic(a, b, node)
        return Track(tuple(walk.runs), walk.period, left, right, walk.slope)

    def cluster(self, i: int, a: int, b: int, slope: Fraction) -> Track:
        """Key blocks [a, b) of strips that overlap."""
        node = self.restrict(self.root, self.box(i, a, b), coarse=True)
        runs, period = self.remembered(i, a, b, node, lift=True)
        return Track(runs, math.lcm(period, self.period_along(slope, node)), slope, slope, slope)

    def remembered(self, i: int, a: int, b: int, node: BoxedFormula, lift: bool) -> tuple[tuple[KeyRun, ...], int]:
        """A walk (runs, period), done once for all corners alike, then moved to where it is asked for."""
        whole = self.shape.nq - i * self.shape.bm >= self.shape.bm
        key = (node.id, b - a, lift, whole, *self.corner(node, i, a))
        if key not in self._walks:
            walk = _TrackWalk(self, i, 1)
            walk.bisect(a, b, node, lift)
            self._walks[key] = a, tuple(walk.runs), walk.period
        at, runs, period = self._walks[key]
        return runs if at == a else tuple(r.moved(a - at) for r in runs), period

    def spans(self, i: int) -> Iterator[tuple[int, int, Fraction]]:
        """The strips in row i, as key blocks [x, y); an empty one too, where it is a boundary between two truths."""
        columns = self.shape.columns
        for (xi, xs, den), (yi, ys, dy), s in self._lines:
            x, y = -(-(xi + xs * i) // den), (yi + ys * i) // dy + 1
            if x == y and 0 < x < columns:
                yield x, x, s
            elif max(0, x) < min(columns, y):
                yield max(0, x), min(columns, y), s

    def row(self, i: int) -> list[Track]:
        """The tracks of row i, from left to right: gap, cluster of strips, gap, ..."""
        self.rows_solved += 1
        columns, clusters = self.shape.columns, list[tuple[int, int, Fraction]]()
        for x, y, s in sorted(self.spans(i)):
            if clusters and x < clusters[-1][1]:
                first, end, slope = clusters[-1]
                clusters[-1] = first, max(end, y), slope
            else:
                clusters.append((x, y, s))
        tracks, at, last = list[Track](), 0, _LEVEL
        for x, y, s in [*clusters, (columns, columns, _LEVEL)]:
            if at < x:
                tracks.append(self.gap(i, at, x, last, s))
            if x < y:
                tracks.append(self.cluster(i, x, y, s))
            at, last = y, s
        return tracks


class _TrackWalk:
    """Collects the runs of one track, the number of rows after which it repeats, and the slope of its anchors."""

    def __init__(self, rows: RowSolver, i: int, period: int):
        self.rows, self.i, self.period, self.slope = rows, i, period, _LEVEL
        self.runs: list[KeyRun] = []

    def emit(self, run: KeyRun) -> None:
        last = self.runs[-1] if self.runs else None
        if last and run.step == last.step == 1 and run[:2] == last[:2] and run.low == last.high:
            self.runs[-1] = last._replace(high=run.high)
        elif run.kind != EMPTY:
            self.runs.append(run)

    def constant(self, kind: int, box: Box, a: int, b: int) -> None:
        count = 0 if kind == EMPTY else (box[1] - box[0] + 1) * self.rows.shape.bn
        self.emit(KeyRun(kind, count, a, b))

    def bisect(self, a: int, b: int, node: BoxedFormula, lift: bool) -> None:
        """Halve [a, b) until the formula is decided, periodic (if `lift`), or one block."""
        rows, i = self.rows, self.i
        rows.work -= 1 + len(node.atoms)
        if rows.work < 0:
            raise Irregular
        box = rows.box(i, a, b)
        node = rows.restrict(node, box, coarse=False)
        if node.kind is not None:
            self.constant(node.kind, box, a, b)
        elif b - a == 1:
            self.emit(KeyRun(*rows.leaf(node, i, a), a, b))
        elif lift and node.period is not None and node.period < b - a:
            self.periodic(a, b, node)
        else:
            middle = rows.split(node, a, b)
            self.bisect(a, middle, node, lift)
            self.bisect(middle, b, node, lift)

    def periodic(self, a: int, b: int, node: BoxedFormula) -> None:
        """One period of a formula that is periodic in key blocks; the pattern may move with the row, along a slope."""
        rows, period = self.rows, node.period or 1
        slopes = {Fraction(0), Fraction(rows.shape.bm, rows.shape.bn), *[s.slope or Fraction(0) for s in rows.strips]}
        steps, _, self.slope = min((rows.period_along(s, node), s != 0, s) for s in slopes)
        base = math.floor(self.slope * self.i)
        runs, inner = rows.remembered(self.i, base, base + period, node, lift=False)
        self.period = math.lcm(self.period, steps, inner)
        for run in runs:
            if run.high - run.low == period:
                self.emit(KeyRun(run.kind, run.pairs, a, b))
            else:
                self.emit(KeyRun(run.kind, run.pairs, a, b, period, run.low, run.high - run.low))


def _kind(f: Formula) -> int:
    """The class of a formula without arithmetic: opaque atoms may be true or false."""
    return FULL if relax(f, False) is True else PARTIAL if relax(f, True) is True else EMPTY


def _decide(atom: Atom, interval: tuple[int, int]) -> int:
    """1 true, 0 false, -1 undecided on an interval of values."""
    low, high = interval
    if atom.op == "ge":
        return 1 if low >= 0 else 0 if high < 0 else -1
    if low > 0 or high < 0:
        return 1 if atom.op == "ne" else 0
    return -1 if low < high else 1 if atom.op == "eq" else 0


def _line(at: Fraction, slope: Fraction | None) -> tuple[int, int, int]:
    """(at, slope) over one denominator."""
    slope = slope or Fraction(0)
    den = math.lcm(at.denominator, slope.denominator)
    return at.numerator * (den // at.denominator), slope.numerator * (den // slope.denominator), den
