"""The solver's answer: the blocks of keys that each block of queries touches, as closed forms in the block's index."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from weft.ir.pattern.listing import Listing

EMPTY, PARTIAL, FULL = 0, 1, 2


class KeyBlocks(NamedTuple):
    """Key blocks { j in [low, high) : (j - anchor) mod step < width }, all alike.

    `*_move`: the change from one row of the group to the next. full: every pair of a block is visible. pairs: visible
    ones in each block.
    """

    full: bool
    pairs: int
    low: int
    low_move: int
    high: int
    high_move: int
    step: int
    anchor: int
    anchor_move: int
    width: int


class QueryBlocks(NamedTuple):
    """Query blocks first, first + every, ... below end; number t of them has every piece moved t times."""

    first: int
    end: int
    every: int
    pieces: tuple[KeyBlocks, ...]

    @property
    def rows(self) -> int:
        return len(range(self.first, self.end, self.every))


class Shape(NamedTuple):
    """Queries, keys, queries per block, keys per block."""

    nq: int
    nk: int
    bm: int
    bn: int

    @property
    def rows(self) -> int:
        """Blocks of queries."""
        return -(-self.nq // self.bm)

    @property
    def columns(self) -> int:
        """Blocks of keys."""
        return -(-self.nk // self.bn)

    @property
    def swapped(self) -> "Shape":
        return Shape(self.nk, self.nq, self.bn, self.bm)


@dataclass(frozen=True)
class Stats:
    """What solving took.

    single_rows: rows with a group of their own. surprises: parts whose last row was not the one foretold, so solved row
    by row. relaxed: atoms given up as unknown, in words; then the plan is conservative, not exact.
    """

    rows_solved: int = 0
    leaves: int = 0
    single_rows: int = 0
    surprises: int = 0
    relaxed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Blocks touched by a pattern. Keys from nk on are invisible, queries from nq on do not count.

    full, partial: how many blocks. nnz: visible pairs; if not `exact` (an atom is unknown when compiling: metadata, or
    given up), an upper bound, and a partial block may turn out full or empty.
    """

    shape: Shape
    groups: tuple[QueryBlocks, ...]
    listing: "Listing | None"
    full: int
    partial: int
    nnz: int
    exact: bool
    stats: Stats
    _transpose: "Callable[[], Plan]" = field(repr=False, compare=False)

    @property
    def empty(self) -> int:
        """Blocks of which nothing is visible."""
        return self.shape.rows * self.shape.columns - self.full - self.partial

    @property
    def touched(self) -> int:
        """Pairs in the blocks that are computed."""
        return (self.full + self.partial) * self.shape.bm * self.shape.bn

    @property
    def density(self) -> float:
        """Visible pairs of all pairs."""
        return self.nnz / max(1, self.shape.nq * self.shape.nk)

    @property
    def pieces(self) -> int:
        """How long the closed form is."""
        return sum(len(g.pieces) for g in self.groups)

    def blocks(self, i: int) -> Iterator[tuple[int, bool, int]]:
        """(key block, full, visible pairs) of query block i, by the arithmetic that a kernel uses."""
        if self.listing is not None:
            yield from self.listing.row(i)
        for g in self.groups:
            t, off = divmod(i - g.first, g.every)
            if off or not g.first <= i < g.end:
                continue
            for p in g.pieces:
                anchor = p.anchor + t * p.anchor_move
                for m in range(_rank(p, p.low + t * p.low_move, anchor), _rank(p, p.high + t * p.high_move, anchor)):
                    yield anchor + m // p.width * p.step + m % p.width, p.full, p.pairs

    def transposed(self) -> "Plan":
        """For every block of keys, the blocks of queries that touch it: what a backward for keys and values walks."""
        return self._transposed

    @cached_property
    def _transposed(self) -> "Plan":
        return self._transpose()


def _rank(p: KeyBlocks, x: int, anchor: int) -> int:
    """How many members of the periodic set lie in [anchor, x)."""
    return (x - anchor) // p.step * p.width + min((x - anchor) % p.step, p.width)


def totals(groups: tuple[QueryBlocks, ...]) -> tuple[int, int, int]:
    """(full blocks, partial blocks, visible pairs), in closed form."""
    full = partial = nnz = 0
    for g in groups:
        for p in g.pieces:
            n = piece_blocks(p, g.rows)
            nnz += n * p.pairs
            full, partial = (full + n, partial) if p.full else (full, partial + n)
    return full, partial, nnz


def piece_blocks(p: KeyBlocks, rows: int) -> int:
    """Blocks of a piece, summed over the rows of its group."""
    if p.step == 1:
        return rows * (p.high - p.low) + (p.high_move - p.low_move) * rows * (rows - 1) // 2
    high, low = p.high - 1 - p.anchor, p.low - 1 - p.anchor
    return sum(
        floor_sum(rows, p.step, p.high_move - p.anchor_move, high - w)
        - floor_sum(rows, p.step, p.low_move - p.anchor_move, low - w)
        for w in range(p.width)
    )


def floor_sum(n: int, m: int, a: int, b: int) -> int:
    """Sum over 0 <= t < n of (a t + b) // m, for any integers a and b, in O(log) steps."""
    s = 0
    while n > 0:
        s += (a // m) * n * (n - 1) // 2 + (b // m) * n
        a, b = a % m, b % m
        y = a * n + b
        if y < m:
            return s
        n, b = divmod(y, m)
        m, a = a, m
    return s
