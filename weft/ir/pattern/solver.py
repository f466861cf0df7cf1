"""Solve a pattern into closed forms: the key blocks that each query block touches, for any block sizes and any length.

1. `rows` solves one row of blocks as strips and gaps, at a cost that does not grow with n.
2. Where no two strips of different slope meet (nor a strip and an edge), row i + T is row i with each strip moved T
   slopes on: T the least step for which that is a whole number of blocks and a translation the formula's congruences do
   not see; each part of a row has its own T. So T rows give all rows, affinely. The rows around a meeting are solved
   one by one, and joined where they continue affinely.
3. Counts are sums of floor(affine / step) over the rows of a group: O(log).

So the cost is that of the pieces in the answer and of the rows around meetings, and nothing larger than one block is
ever built. Where there is no short answer, atoms are given up as unknown, worst first: their blocks count as partial.
"""

import itertools
import math
from fractions import Fraction
from functools import lru_cache

from weft.ir.pattern.expression import congruences
from weft.ir.pattern.formula import (
    Atom,
    BatchCondition,
    Formula,
    Leaf,
    all_of,
    any_of,
    atoms,
    leaves,
    negate,
    replace,
    swapped,
)
from weft.ir.pattern.listing import solve_listed, split_listed
from weft.ir.pattern.pattern import Pattern
from weft.ir.pattern.plan import FULL, KeyBlocks, Plan, QueryBlocks, Shape, Stats, totals
from weft.ir.pattern.rows import Irregular, KeyRun, RowSolver, Strip, Track
from weft.ir.pattern.writing import describe

WORK = 180_000
"""Steps of walking before an atom is given up: some tenths of a second."""


def solve(
    pattern: Pattern | str, nq: int, nk: int | None = None, bm: int = 128, bn: int = 128, head: int | None = None
) -> Plan:
    """The blocks of bm queries by bn keys that `pattern` touches, for nq queries and nk keys (default: nq).

    Exact, unless the plan says otherwise. A pattern that differs by head needs `head`.
    """
    pattern = Pattern.parse(pattern) if isinstance(pattern, str) else pattern
    pattern = pattern.at(max(nq, nk or nq))
    f = pattern.only() if head is None else pattern.groups(head + 1)[-1][2]
    return solve_formula(f, Shape(nq, nk or nq, bm, bn))


@lru_cache(maxsize=512)
def solve_formula(f: Formula, shape: Shape) -> Plan:
    """`solve` for a bare formula."""
    listed = split_listed(f)
    if listed is not None:
        return solve_listed(*listed, shape, lambda: solve_formula(swapped(f), shape.swapped))
    given, relaxed = f, list[str]()
    while True:
        try:
            rows = RowSolver(given, shape, WORK >> 2 * len(relaxed))
            solver = _Solver(rows)
            groups = solver.groups()
            break
        except Irregular:
            worst = _worst(given)
            relaxed.append(describe(worst))
            given = _give_up(given, worst)
    full, partial, nnz = totals(groups)
    singles = sum(g.rows for g in groups if g.rows == 1)
    stats = Stats(rows.rows_solved, rows.leaves, singles, solver.surprises, tuple(relaxed))
    exact = len(leaves(given)) == len(atoms(given))
    return Plan(shape, groups, None, full, partial, nnz, exact, stats, lambda: solve_formula(swapped(f), shape.swapped))


def _worst(f: Formula) -> Atom:
    """The atom that repeats last: of those with remainders, the one of the largest period."""

    def period(a: Atom) -> int:
        return math.lcm(*[m for _, _, m in congruences(a.x)]) * max(1, abs(a.x.k))

    return max(atoms(f), key=period)


def _give_up(f: Formula, worst: Atom) -> Formula:
    """The formula with an atom, and its negation, unknown."""
    unknown = BatchCondition("given up", False)

    def by(leaf: Leaf) -> Formula:
        return unknown if isinstance(leaf, Atom) and leaf.x == worst.x else leaf

    return replace(f, by)


def same(f: Formula, g: Formula, nq: int, nk: int | None = None, block: int = 128) -> bool:
    """Do two formulas without opaque atoms agree on all of nq x nk, and so on every smaller sequence?"""
    differ = any_of(all_of(f, negate(g)), all_of(g, negate(f)))
    plan = solve_formula(differ, Shape(nq, nk or nq, block, block))
    return plan.exact and plan.nnz == 0


class _Solver:
    """From single rows to groups of rows."""

    def __init__(self, rows: RowSolver):
        self.rows, self.count = rows, rows.shape.rows
        self.known: dict[int, list[Track]] = {}
        self.surprises = 0

    def row(self, i: int) -> list[Track]:
        if i not in self.known:
            self.known[i] = self.rows.row(i)
        return self.known[i]

    def groups(self) -> tuple[QueryBlocks, ...]:
        """All rows: between the meetings in closed form, around them one by one."""
        # rows i and i + step round every strip alike, so they have the same tracks
        step = math.lcm(*[s.slope.denominator for s in self.rows.strips if s.slope is not None])
        groups, single = list[QueryBlocks](), list[tuple[int, tuple[KeyRun, ...]]]()
        for first, end, near in self.ranges():
            if near or end - first < 4:
                single += [(i, tuple(r for t in self.row(i) for r in t.runs)) for i in range(first, end)]
                continue
            for start in range(first, min(first + step, end)):
                for track in range(len(self.row(start))):
                    self.track(start, end, step, track, groups, single)
        return tuple(sorted([*groups, *joined(single)]))

    def track(
        self,
        start: int,
        end: int,
        step: int,
        track: int,
        groups: list[QueryBlocks],
        single: list[tuple[int, tuple[KeyRun, ...]]],
    ) -> None:
        """One track of rows start, start + step, ...: as groups of every `period`-th row, or row by row if few."""
        period = math.lcm(step, self.row(start)[track].period)
        if end - start < 2 * period:
            single += [(i, self.row(i)[track].runs) for i in range(start, end, step)]
            return
        for i in range(start, start + period, step):
            pieces = moving(self.row(i)[track], period)
            last = (end - i - 1) // period
            if i == start and not alike(at(pieces, last), self.row(i + last * period)[track].runs):
                self.surprises += 1  # never seen; every row by itself is right in any case
                single += [(j, self.row(j)[track].runs) for j in range(start, end, step)]
                return
            if pieces:
                groups.append(QueryBlocks(i, end, period, pieces))

    def ranges(self) -> list[tuple[int, int, bool]]:
        """(first, end, is near a meeting of strips of different slope, or of a strip and an edge): all rows."""
        shape, half = self.rows.shape, Fraction(1, 2)
        near: list[tuple[Fraction | int, Fraction | int]] = [(s.x - 2, s.y + 2) for s in self.rows.level]
        if shape.nq % shape.bm:
            near.append((self.count - 1, self.count - 1))
        columns = Fraction(shape.columns)
        edges = [Strip(Fraction(0), -half, -half), Strip(Fraction(0), columns - half, columns - half)]
        for (s, x, y), (t, u, v) in itertools.combinations([*self.rows.strips, *edges], 2):
            if s is not None and t is not None and s != t:
                low, high = sorted(((u - y - 2) / (s - t), (v - x + 2) / (s - t)))
                near.append((low, high))
        out, position = list[tuple[int, int, bool]](), 0
        cut = [(max(0, math.floor(a)), min(self.count, math.ceil(b) + 1)) for a, b in near if a < self.count and b >= 0]
        for low, high in sorted(cut):
            out += [(position, low, False), (max(low, position), high, True)]
            position = max(position, high)
        return [x for x in [*out, (position, self.count, False)] if x[0] < x[1]]


def moving(track: Track, period: int) -> tuple[KeyBlocks, ...]:
    """The runs of a track as pieces of every `period`-th row."""
    left, right, anchor = (int(s * period) for s in (track.left, track.right, track.anchor))
    return tuple(
        KeyBlocks(r.kind == FULL, r.pairs, r.low, left, r.high, right, r.step, r.anchor, anchor * (r.step > 1), r.width)
        for r in track.runs
    )


def fit(here: tuple[KeyRun, ...], there: tuple[KeyRun, ...]) -> tuple[KeyBlocks, ...] | None:
    """Pieces affine in the row through two rows, or None if the rows differ by more than moves."""
    if len(here) != len(there):
        return None
    out: list[KeyBlocks] = []
    for a, b in zip(here, there):
        if (a.kind, a.pairs, a.step, a.width) != (b.kind, b.pairs, b.step, b.width):
            return None
        move = (a.low, b.low - a.low, a.high, b.high - a.high, a.step, a.anchor, b.anchor - a.anchor, a.width)
        out.append(KeyBlocks(a.kind == FULL, a.pairs, *move))
    return tuple(out)


def alike(some: tuple[KeyRun, ...], others: tuple[KeyRun, ...]) -> bool:
    """Are they the same sets of blocks? Anchors count modulo the step."""
    return len(some) == len(others) and all(
        a._replace(anchor=a.anchor % a.step) == b._replace(anchor=b.anchor % b.step) for a, b in zip(some, others)
    )


def at(pieces: tuple[KeyBlocks, ...], t: int) -> tuple[KeyRun, ...]:
    """The runs of row number t of a group."""
    return tuple(
        KeyRun(
            FULL if p.full else 1,
            p.pairs,
            p.low + t * p.low_move,
            p.high + t * p.high_move,
            p.step,
            p.anchor + t * p.anchor_move,
            p.width,
        )
        for p in pieces
    )


def joined(single: list[tuple[int, tuple[KeyRun, ...]]]) -> list[QueryBlocks]:
    """Rows solved one by one, joined where they continue affinely."""
    rows, out, z = sorted((r for r in single if r[1]), key=lambda r: r[0]), list[QueryBlocks](), 0
    while z < len(rows):
        i, runs = rows[z]
        n, pieces = 1, fit(runs, runs) or ()
        if z + 1 < len(rows) and rows[z + 1][0] == i + 1:
            through = fit(runs, rows[z + 1][1])
            if through is not None:
                pieces, n = through, 2
                while z + n < len(rows) and rows[z + n][0] == i + n and at(pieces, n) == rows[z + n][1]:
                    n += 1
        out.append(QueryBlocks(i, i + n, 1, pieces))
        z += n
    return out
