"""A solver's plan as few entries: constants that hold for every length up to the one solved."""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from weft.ir.pattern import Plan
from weft.ir.pattern.plan import KeyBlocks

END = 1 << 30
FEW = 512
"""Rows that are looked at one by one before the plan's closed form is."""


class FoldRun(NamedTuple):
    """Blocks { j in [low, high) : (j - anchor) mod step < width }."""

    low: int
    high: int
    step: int = 1
    anchor: int = 0
    width: int = 1


class FoldEntry(NamedTuple):
    """Rows i of [first, end) with (i - first) mod every < span, and their run, moved (i - first) // every times."""

    first: int
    end: int
    every: int
    span: int
    low: int
    low_move: int
    high: int
    high_move: int
    step: int
    anchor: int
    anchor_move: int
    width: int

    @property
    def run(self) -> tuple[int, ...]:
        return self[4:]


def fold(plan: Plan, kinds: tuple[bool, ...], rows: int) -> tuple[tuple[FoldEntry, ...], bool]:
    """The blocks of some kinds (full or not) of the first `rows` rows, as entries; and whether no row has two.

    What the first FEW rows follow is tried on the ends of the plan's groups; between them both are affine.
    """
    some = _fold(plan, kinds, range(min(rows, FEW)))
    if rows <= FEW:
        return some
    marks = {i for g in plan.groups for t in (g.first, g.end) for i in range(t - 2 * g.every, t + 2 * g.every)}
    probes = sorted(i for i in marks | {rows - 1} if FEW <= i < rows)
    actual = _rows(plan, kinds, probes)
    if all(canonical(_entered(some[0], i), plan.shape.columns) == actual[i] for i in probes):
        return some
    return _fold(plan, kinds, range(rows))


def _fold(plan: Plan, kinds: tuple[bool, ...], rows: range) -> tuple[tuple[FoldEntry, ...], bool]:
    lists, best = list(_rows(plan, kinds, rows).values()), None
    for every in sorted({1, math.lcm(*[g.every for g in plan.groups])}):
        if every > max(1, len(rows) // 2):
            continue
        segments = [s for c in range(every) for s in _segments(lists[c::every], c, every, plan.shape.columns)]
        found = _joined([e for s in segments for e in s])
        if best is None or len(found) < len(best[0]):
            best = found, all(len(s) <= 1 and all(e.step == 1 for e in s) for s in segments)
    return best or ((), True)


def _entered(entries: tuple[FoldEntry, ...], i: int) -> list[FoldRun]:
    """The runs of row i as entries have them."""
    out: list[FoldRun] = []
    for e in entries:
        t, rest = divmod(i - e.first, e.every)
        if e.first <= i < e.end and rest < e.span:
            low, high, anchor = (
                x + t * by for x, by in ((e.low, e.low_move), (e.high, e.high_move), (e.anchor, e.anchor_move))
            )
            out.append(FoldRun(low, high, e.step, anchor, e.width))
    return out


def _rows(plan: Plan, kinds: tuple[bool, ...], rows: Sequence[int]) -> dict[int, tuple[FoldRun, ...]]:
    """The runs of some rows, in order."""
    out: dict[int, list[FoldRun]] = {i: [] for i in rows}
    for g in plan.groups:
        pieces = [p for p in g.pieces if p.full in kinds]
        for i in bounded(rows, g.first, g.end) if pieces else ():
            if (i - g.first) % g.every == 0:
                out[i] += [_at(p, (i - g.first) // g.every) for p in pieces]
    return {i: canonical(r, plan.shape.columns) for i, r in out.items()}


def bounded(rows: Sequence[int], first: int, end: int) -> Sequence[int]:
    """Those of sorted rows in [first, end)."""
    return rows[bisect_left(rows, first) : bisect_left(rows, end)]


def _at(p: KeyBlocks, t: int) -> FoldRun:
    return FoldRun(p.low + t * p.low_move, p.high + t * p.high_move, p.step, p.anchor + t * p.anchor_move, p.width)


def canonical(runs: Sequence[FoldRun], end: int) -> tuple[FoldRun, ...]:
    """The same blocks below `end`: runs cut, shrunk to their members, sorted, neighbours joined."""
    out: list[FoldRun] = []
    for run in sorted(filter(None, (_shrunk(r, end) for r in runs))):
        last = out[-1] if out else None
        if last and last.step == run.step == 1 and last.high == run.low:
            out[-1] = last._replace(high=run.high)
        else:
            out.append(run)
    return tuple(out)


def _shrunk(r: FoldRun, end: int) -> FoldRun | None:
    low, high = max(r.low, 0), min(r.high, end)
    if r.width < r.step:
        anchor = r.anchor % r.step
        members = [j for j in range(low, min(high, low + r.step)) if (j - anchor) % r.step < r.width]
        last = [j for j in range(max(low, high - r.step), high) if (j - anchor) % r.step < r.width]
        low, high = (members[0], last[-1] + 1) if members else (0, 0)
        if (low - anchor) % r.step + high - low > r.width:  # they are not beside each other
            return FoldRun(low, high, r.step, anchor, r.width)
    return FoldRun(low, high) if low < high else None


def _segments(lists: Sequence[tuple[FoldRun, ...]], first: int, every: int, end: int) -> Iterator[list[FoldEntry]]:
    """Rows first, first + every, ... as stretches: one that moves evenly through the middle row, then the rest."""
    todo = [(0, len(lists))]
    while todo:
        low, high = todo.pop()
        if low >= high:
            continue
        z = (low + high) // 2
        moves = _moves(lists[z], lists[z + 1]) if z + 1 < high else None
        moves = moves or tuple((r, (0, 0, 0)) for r in lists[z])
        start = stop = z
        while start > low and canonical(_moved(moves, start - 1 - z), end) == lists[start - 1]:
            start -= 1
        while stop < high and canonical(_moved(moves, stop - z), end) == lists[stop]:
            stop += 1
        rows = first + start * every, END if stop == len(lists) else first + (stop - 1) * every + 1, every, 1
        yield [
            FoldEntry(
                *rows,
                r.low,
                by[0],
                END if r.high == end and by[1] == 0 else r.high,
                by[1],
                r.step,
                r.anchor,
                by[2],
                r.width,
            )
            for r, by in zip(_moved(moves, start - z), (m for _, m in moves))
        ]
        todo += [(low, start), (stop, high)]


Moves = tuple[tuple[FoldRun, tuple[int, int, int]], ...]


def _moves(here: tuple[FoldRun, ...], there: tuple[FoldRun, ...]) -> Moves | None:
    """How the runs of one row become those of the next; None: not by moving."""
    if [(r.step, r.width) for r in here] != [(r.step, r.width) for r in there]:
        return None
    return tuple((a, (b.low - a.low, b.high - a.high, b.anchor - a.anchor)) for a, b in zip(here, there))


def _moved(moves: Moves, t: int) -> tuple[FoldRun, ...]:
    return tuple(
        FoldRun(r.low + t * low, r.high + t * high, r.step, r.anchor + t * anchor, r.width)
        for r, (low, high, anchor) in moves
    )


def _joined(entries: list[FoldEntry]) -> tuple[FoldEntry, ...]:
    """Entries of neighbouring rows with the same run as one that spans them."""
    out: list[FoldEntry] = []
    for e in sorted(entries, key=lambda e: (e.run, e.every, e.first)):
        last = out[-1] if out else None
        if last and _continues(last, e):
            out[-1] = last._replace(span=last.span + 1, end=e.end)
        else:
            out.append(e)
    return tuple(sorted(out))


def _continues(a: FoldEntry, b: FoldEntry) -> bool:
    """Are the rows of b those after the rows of a, with the same run?"""
    ends = a.end == b.end == END or b.end == a.end + 1 < END
    return (a.run, a.every) == (b.run, b.every) and b.first == a.first + a.span < a.first + a.every and ends
