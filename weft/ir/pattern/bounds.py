"""What a whole pattern guarantees: is it causal, how far back it looks, which rows see nothing, how fast it grows.

Metadata can only hide keys that a formula shows, or be unknown: every answer here is for the superset in which every
unknown condition holds, so a guarantee stays one.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from weft.ir.pattern.expression import K, Q, const, sub
from weft.ir.pattern.formula import Formula, InTable, all_of, compare, moved, negate, opaque, relax
from weft.ir.pattern.meaning import holds_formula
from weft.ir.pattern.pattern import Pattern
from weft.ir.pattern.plan import KeyBlocks, QueryBlocks, Shape
from weft.ir.pattern.shapes import numbers_in
from weft.ir.pattern.solver import solve_formula

if TYPE_CHECKING:
    from weft.ir.pattern.table import Bools, Ints

PROVED = 1 << 20
"""Guarantees are shown for sequences up to this length; for a static table, up to its own."""
BLOCK, FEW = 128, 64


def _formulas(pattern: Pattern, n: int, heads: int) -> tuple[tuple[Formula, ...], int]:
    """The formulas of all heads with unknown metadata taken to hold, and the length to show things for."""
    pattern = pattern.at(n)
    found = {f: None for _, _, f in pattern.groups(heads)}
    tables = any(isinstance(leaf, InTable) for f in found for leaf in opaque(f))
    metadata = frozenset(leaf for f in found for leaf in opaque(f) if not isinstance(leaf, InTable))
    return tuple(relax(f, True, metadata) for f in found), n if tables else max(n, PROVED)


@lru_cache(maxsize=256)
def is_causal(pattern: Pattern, n: int = PROVED, heads: int = 1) -> bool:
    """Does no query see a key after itself, on any head, at any length up to a million (or n)?

    False may mean that it could not be shown.
    """
    formulas, length = _formulas(pattern, n, heads)
    return all(_empty(all_of(f, compare("<", Q, K)), length) for f in formulas)


@lru_cache(maxsize=256)
def max_distance(pattern: Pattern, n: int = PROVED, heads: int = 1) -> int | None:
    """The greatest q - k of a visible pair, on any head: how many keys before its own a query can need.

    None: it grows with the length. -1: nothing at or before the query is visible. It may come out too great (or None)
    where the solver's answer is conservative, never too small.
    """
    formulas, length = _formulas(pattern, n, heads)
    found = [_distance(f, length) for f in formulas]
    return None if None in found else max((d for d in found if d is not None), default=-1)


def _distance(f: Formula, n: int) -> int | None:
    def beyond(distance: int) -> bool:
        return not _empty(all_of(f, compare(">", sub(Q, K), const(distance))), n)

    low, high = -1, n // 2 - 1 if n > 2 * BLOCK else n - 1
    if not beyond(low):
        return low
    if beyond(high):
        return None
    near = {d for v in numbers_in(f).high for d in (v, v - 1)} | {m - 1 for m in numbers_in(f).moduli}
    for guess in sorted(near):  # most often the answer stands in the formula
        if low < guess < high:
            low, high = (guess, high) if beyond(guess) else (low, guess)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if beyond(middle) else (low, middle)
    return high


def _empty(f: Formula, n: int) -> bool:
    """Surely no pair at all, at any length up to n."""
    if f is False:
        return True
    size = _side(f, n)
    return solve_formula(f, Shape(n, n, size, size)).nnz == 0


def _side(f: Formula, n: int) -> int:
    """Of blocks to solve in: a static table is exact in its own."""
    return min([BLOCK, n, *(leaf.table.block for leaf in opaque(f) if isinstance(leaf, InTable))])


@lru_cache(maxsize=256)
def rows_seeing_nothing(pattern: Pattern, n: int, heads: int = 1, nk: int | None = None) -> tuple[tuple[int, int], ...]:
    """Ranges (first, end) of queries that, on some head, see no key at all. Metadata may hide more."""
    keys = nk or n
    asked = [f for f in _formulas(pattern, max(n, keys), heads)[0] if n > keys or not _sees_itself(f, n)]
    if not asked:
        return ()
    import numpy as np  # the IR itself does without NumPy

    none = np.zeros(n, bool)
    for f in asked:
        none |= ~_seeing(f, n, keys)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], none, [False]]).astype(np.int8)))
    return tuple((int(a), int(b)) for a, b in zip(edges[::2], edges[1::2]))


def _sees_itself(f: Formula, n: int) -> bool:
    """Surely every query its own key; that a formula of k = q alone is true often shows without solving any."""
    return moved(f, Q, Q) is True or _empty(all_of(negate(f), compare("==", Q, K)), n)


def _seeing(f: Formula, n: int, keys: int) -> "Bools":
    """Which queries see any key. Blocks with a full block of keys are done at once, a few others row by row."""
    import numpy as np  # the IR itself does without NumPy

    side, side_k = _side(f, n), _side(f, keys)
    blocks = np.zeros(-(-n // side), np.int64)
    plan = solve_formula(f, Shape(n, keys, side, side_k))
    if plan.listing is not None:
        rows = np.repeat(np.arange(len(blocks)), np.diff(plan.listing.start))
        np.add.at(blocks, rows, plan.listing.full)
    for group in plan.groups:
        for piece in group.pieces:
            if piece.full:
                _mark(blocks, group, piece)
    seeing = np.repeat(blocks > 0, side)[:n]
    left = np.flatnonzero(blocks == 0)
    if len(left) <= FEW or plan.listing is not None:
        for i in left.tolist():
            rows = slice(i * side, min(n, (i + 1) * side))
            for j, _, _ in plan.blocks(i):
                q, k = np.arange(rows.start, rows.stop)[:, None], np.arange(j * side_k, min(keys, (j + 1) * side_k))
                seeing[rows] |= np.asarray(holds_formula(f, q, k)).any(1)
                if seeing[rows].all():
                    break
        return seeing
    counts = np.zeros(n, np.int64)
    plan = solve_formula(f, Shape(n, keys, 1, side_k))
    for group in plan.groups:
        for piece in group.pieces:
            _mark(counts, group, piece)
    return counts > 0


def _mark(seeing: "Ints", group: QueryBlocks, p: KeyBlocks) -> None:
    """Add to every block of rows of the group how many key blocks of a piece it has."""
    import numpy as np  # the IR itself does without NumPy

    t = np.arange(group.rows)
    anchor = p.anchor + t * p.anchor_move

    def rank(x: "Ints") -> "Ints":
        return (x - anchor) // p.step * p.width + np.minimum((x - anchor) % p.step, p.width)

    seeing[group.first : group.end : group.every] += rank(p.high + t * p.high_move) - rank(p.low + t * p.low_move)


class Growth(NamedTuple):
    """Visible pairs at some lengths, and the slope of their logarithms: 2 is O(n²), 1.5 is O(n sqrt n), 1 is O(n)."""

    lengths: tuple[int, ...]
    nnz: tuple[int, ...]
    density: tuple[float, ...]
    exponent: float


def growth(family: Callable[[int], Pattern], lengths: Sequence[int] = tuple(1 << i for i in range(12, 21))) -> Growth:
    """How the pairs of `family(n)` grow: a constant stride is O(n²), only one near sqrt(n) is O(n sqrt n)."""
    nnz: list[int] = []
    for n in lengths:
        groups = family(n).at(n).groups()
        nnz.append(sum(solve_formula(f, Shape(n, n, BLOCK, BLOCK)).nnz for _, _, f in groups))
    xs, ys = [math.log(n) for n in lengths], [math.log(max(1, v)) for v in nnz]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    slope = sum((a - x) * (b - y) for a, b in zip(xs, ys)) / sum((a - x) ** 2 for a in xs)
    return Growth(tuple(lengths), tuple(nnz), tuple(v / n**2 for v, n in zip(nnz, lengths)), slope)
