"""Plans of static block sets: the blocks themselves, in rows, instead of a closed form."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weft.ir.pattern.expression import Box, coarse_bounds
from weft.ir.pattern.formula import Atom, Formula, InTable, Junction, all_of, opaque, relax
from weft.ir.pattern.plan import FULL, Plan, Shape, Stats
from weft.ir.pattern.rows import RowSolver
from weft.ir.pattern.table import AnyTable

if TYPE_CHECKING:
    from weft.ir.pattern.table import Bools, Ints


@dataclass(frozen=True, eq=False)
class Listing:
    """Row i of blocks is entries start[i] to start[i + 1] - 1: key block, full, visible pairs. A block listed twice is
    here once: how often it counts is the table's to say."""

    start: "Ints"
    key: "Ints"
    full: "Bools"
    count: "Ints"

    def row(self, i: int) -> Iterator[tuple[int, bool, int]]:
        for e in range(int(self.start[i]), int(self.start[i + 1])):
            yield int(self.key[e]), bool(self.full[e]), int(self.count[e])


def split_listed(f: Formula) -> tuple[AnyTable, Formula] | None:
    """(table, rest) of a formula that is one static table, or one table and a rest without any; else None."""
    parts = f.parts if isinstance(f, Junction) and f.op == "and" else (f,)
    tables = [p.table for p in parts if isinstance(p, InTable) and not p.negated]
    rest = all_of(*(p for p in parts if not (isinstance(p, InTable) and not p.negated)))
    if len(tables) != 1 or any(isinstance(leaf, InTable) for leaf in opaque(rest)):
        return None
    return tables[0], rest


def solve_listed(table: AnyTable, rest: Formula, shape: Shape, transpose: Callable[[], Plan]) -> Plan:
    """Every block the table lists, where `rest` may hold. numpy arrays as long as the list."""
    import numpy as np  # the IR itself does without NumPy

    rows, keys, count = _covered(table, shape)
    nq, nk, bm, bn = shape
    height = np.minimum(bm, nq - rows * bm)
    box = (rows * bm, rows * bm + height - 1, keys * bn, keys * bn + bn - 1)
    yes, no = _decide(rest, box)
    whole = count == height * np.minimum(bn, nk - keys * bn)
    solver = RowSolver(relax(rest, True), shape, 1 << 40)
    exact = not opaque(rest)
    for e in np.flatnonzero(~yes & ~no):
        kind, visible = solver.leaf(solver.root, int(rows[e]), int(keys[e]))
        yes[e], no[e] = kind == FULL and exact, kind == 0
        exact = exact and bool(whole[e] or no[e])  # a part of the block, and a part of the rest: an upper bound
        count[e] = min(visible, count[e])
    full = (yes & (count == height * bn))[~no]
    rows, keys, count = rows[~no], keys[~no], count[~no]
    start = np.searchsorted(rows, np.arange(shape.rows + 1))
    total = int(np.count_nonzero(full))
    stats = Stats(rows_solved=shape.rows, leaves=solver.leaves)
    listing = Listing(start, keys, full, count)
    return Plan(shape, (), listing, total, len(keys) - total, int(count.sum()), exact, stats, transpose)


def _covered(table: AnyTable, shape: Shape) -> "tuple[Ints, Ints, Ints]":
    """Blocks of the plan that the table's blocks touch (row, key block), in order, and how many pairs of each."""
    import numpy as np  # the IR itself does without NumPy

    nq, nk, bm, bn = shape
    queries, keys = table.at(max(nq, nk)).entries()
    queries, keys = np.divmod(np.unique(queries * (1 << 32) + keys), 1 << 32)
    rows, high, entry = _split(queries, table.block, bm, nq)
    columns, width, part = _split(keys[entry], table.block, bn, nk)
    flat, inverse = np.unique(rows[part] * shape.columns + columns, return_inverse=True)
    pairs = np.bincount(inverse, weights=high[part] * width, minlength=len(flat)).astype(np.int64)
    return flat // shape.columns, flat % shape.columns, pairs


def _split(block: "Ints", size: int, into: int, n: int) -> "tuple[Ints, Ints, Ints]":
    """Runs of `size` positions cut at multiples of `into` and at n: (piece, its length, the run it comes from)."""
    import numpy as np  # the IR itself does without NumPy

    first, end = block * size, np.minimum((block + 1) * size, n)
    low, high = first // into, -(-end // into)
    run = np.repeat(np.arange(len(block)), np.where(end > first, high - low, 0))
    piece = low[run] + np.arange(len(run)) - np.searchsorted(run, run)
    length = np.minimum(end[run], (piece + 1) * into) - np.maximum(first[run], piece * into)
    return piece, length, run


def _decide(f: Formula, box: Box) -> "tuple[Bools, Bools]":
    """Where on arrays of boxes the formula surely holds, and where it surely does not."""
    import numpy as np  # the IR itself does without NumPy

    never = np.zeros(len(box[0]), bool)
    if isinstance(f, bool):
        return (~never, never) if f else (never, ~never)
    if isinstance(f, Junction):
        yes, no = _decide(f.parts[0], box)
        for part in f.parts[1:]:
            also_yes, also_no = _decide(part, box)
            yes, no = (yes & also_yes, no | also_no) if f.op == "and" else (yes | also_yes, no & also_no)
        return yes, no
    if not isinstance(f, Atom):
        return never, never
    low, high = (never + x for x in coarse_bounds(f.x, box))
    if f.op == "ge":
        return low >= 0, high < 0
    zero, apart = (low == 0) & (high == 0), (low > 0) | (high < 0)
    return (zero, apart) if f.op == "eq" else (apart, zero)
