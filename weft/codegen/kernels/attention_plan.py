"""From a part of a pattern to what the attention kernels walk: rows in memory, slots, plan constants, tables.

A solver's plan lists blocks by their number of visible pairs and row by row near edges; a kernel needs neither. `fold`
writes the same blocks as few entries (`attention_pieces.members`): constants that hold for every length up to the one
solved. Where that would be long, or the pattern is a static block set, the blocks go into an int32 table.
"""

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from weft.ir.pattern import Part, Pattern, Plan, is_causal, solve
from weft.ir.pattern.formula import Listed, leaves
from weft.ir.pattern.layout import core_text
from weft.ir.pattern.plan import Piece
from weft.ir.pattern.table import AnyTable

if TYPE_CHECKING:
    import numpy as np

    Ints = np.ndarray[Any, np.dtype[np.int32]]

ENTRIES = 8
"""Entries of a slot up to which a plan is constants; each costs some scalar instructions a program."""
TABLE = 1 << 22
"""Blocks up to which a table is written (16 MiB)."""
PACK = 24
"""Bits of the block in an entry of a packed table; the head in its group stands above."""
END = 1 << 30
FEW = 512
"""Rows that are looked at one by one before the plan's closed form is."""


@dataclass(frozen=True)
class Geometry:
    """Where the rows of a part lie, and its pattern, of row numbers (`rows`) and of positions (`keep`).

    q_at, k_at: (modulus, width, origin) as in attention_common. keep is None where every row pair is visible.
    """

    rows: Pattern
    keep: Pattern | None
    classes: int = 1
    q_at: tuple[int, int, int] = (1, 1, 0)
    k_at: tuple[int, int, int] = (1, 1, 0)

    def count(self, n: int, at: tuple[int, int, int]) -> int:
        """Rows of the longest class of a sequence of n."""
        modulus, width, origin = at
        whole, rest = divmod(max(n - origin, 0), modulus)
        return whole * width + min(rest, width)


@dataclass(frozen=True, eq=False)
class Walk:
    """What a kernel takes for one part: names of its `pieces` and `block` holes in attention_pieces, and their data.

    slots: the kernels' SLOTS. table: TAB's arrays (first, blocks), int32. keep: whether a keep hole is needed at all; a
    block listed several times counts so often. exact: no block is computed that the pattern does not touch.
    """

    pieces: str
    block: str | None
    slots: tuple[bool, ...]
    plan: Any = None
    table: "tuple[Ints, Ints] | None" = None
    packed: bool = False
    keep: bool = True
    exact: bool = True


DENSE = Walk("dense_pieces", None, (True, False), keep=False)
DENSE_BACK = Walk("dense_back", None, (True,), keep=False)
CAUSAL = Walk("causal_pieces", None, (True, False))
CAUSAL_BACK = Walk("causal_back", None, (False, True))
MASKED = Walk("dense_back", None, (False,), exact=False)
"""Every block, masked: right for any pattern, for either direction."""


def geometry(part: Part) -> Geometry:
    """How a part of a layout lies: residue classes and columns by strides, anything else as it is."""
    if part.layout == "residues":
        modulus = part.arg("modulus")
        at = (modulus, 1, part.arg("start"))
        inner, spread = core_text(part.inner, 1), core_text(part.inner, modulus)
        return Geometry(Pattern.parse(inner or "all"), Pattern.parse(spread) if spread else None, modulus, at, at)
    if part.layout == "columns":
        m, width = part.arg("modulus"), part.arg("width")
        rows = Pattern.parse(f"k < {width} * (q // {m})")
        return Geometry(rows, Pattern.parse(f"chunks_before({m})"), k_at=(m, width, part.arg("start")))
    return Geometry(part.term, None if part.layout == "dense" else part.term)


def walk(
    pattern: Pattern,
    nq: int,
    nk: int,
    bm: int,
    bn: int,
    back: bool = False,
    head: int | None = None,
    loops: int = 2,
) -> Walk:
    """How a kernel with blocks of bm queries and bn keys walks a pattern of up to nq rows and nk keys.

    back: over the query blocks of key blocks. head: of a pattern that differs by head. loops: 2, full blocks without
    masks and partial ones with them; 1, all with masks, which takes fewer registers. Holds for every shorter length
    too, if the pattern does (a static block set is for its own length).
    """
    if pattern.text == "all" and loops == 2:
        return DENSE_BACK if back else DENSE
    if pattern.text in ("causal", "k <= q") and loops == 2:
        return CAUSAL_BACK if back else CAUSAL
    if any(isinstance(leaf, Listed) for leaf in leaves(pattern.formula)):
        return tabulate(pattern, nq, nk, bm, bn, back, (head,), loops=loops)
    whole = math.lcm(bm, bn)
    plan = _solved(pattern, -(-nq // whole) * whole, -(-nk // whole) * whole, bm, bn, back, head)
    rows = -(-nk // bn) if back else -(-nq // bm)
    kinds = ((True,), (False,)) if loops == 2 else ((), (True, False))
    folded = [fold(plan, kind, rows) for kind in kinds]
    if any(len(entries) > ENTRIES for entries, _ in folded):
        listable = plan.full + plan.partial <= TABLE
        return tabulate(pattern, nq, nk, bm, bn, back, (head,), loops=loops) if listable else MASKED
    cut = bool(folded[0][0]) and not (back or _causal(pattern, nq, nk, head))
    kept = [(full, *f) for full, f in zip((True, False), folded) if f[0] or (cut and not full)] or [(False, (), True)]
    slots, entries, single = zip(*kept)
    entries = tuple(tuple(map(tuple, e)) for e in entries)  # plain, as they become literals
    runs = tuple(one and not (cut and not full) for full, one in zip(slots, single))
    return Walk("plan_pieces", "plan_block", slots, (entries, runs, cut), keep=False in slots)


def tabulate(
    pattern: Pattern,
    nq: int,
    nk: int,
    bm: int,
    bn: int,
    back: bool = False,
    heads: Sequence[int | None] = (None,),
    group: int = 1,
    loops: int = 2,
) -> Walk:
    """A walk by table: one list of blocks for each of `heads` (of a pattern that differs by head), or one for all.

    The blocks of a static set that the kernel's divide are listed as often as they count, and need no keep. With back,
    `group` heads share a key head and one packed list.
    """
    import numpy as np

    rows = -(-(nk if back else nq) // (bn if back else bm))
    found = [_lists(pattern, nq, nk, bm, bn, back, h) for h in heads]
    split = loops == 2 and (back or all(_causal(pattern, nq, nk, h) for h in heads))  # else the end may cut a full one
    kinds = ((True,), (False,)) if split else ((True, False),)
    packed = back and group > 1
    first, blocks = [0], list[int]()
    for members in (
        found[z : z + group] if packed else [found[z]] for z in range(0, len(found), group if packed else 1)
    ):
        for i, kind in itertools.product(range(rows), kinds):
            for g, lists in enumerate(members):
                blocks += [(g << PACK) + j for full in kind for j in lists.get((i, full), ())]
            first.append(len(blocks))
    table = np.array(first, np.int32), np.array(blocks or [0], np.int32)
    plan = (len(found) // (group if packed else 1), rows, len(kinds))
    keep = any(not full for lists in found for _, full in lists)
    return Walk("table_pieces", "table_block", (True, False) if split else (False,), plan, table, packed, keep)


Lists = dict[tuple[int, bool], list[int]]


def _lists(pattern: Pattern, nq: int, nk: int, bm: int, bn: int, back: bool, head: int | None) -> Lists:
    """(row, full) -> blocks, listed as often as they count."""
    out: Lists = {}
    f = pattern.groups((head or 0) + 1)[-1][2]
    if isinstance(f, Listed) and not f.negated and f.table.block % bm == f.table.block % bn == 0:
        return _whole(f.table.at(max(nq, nk)), -(-nq // bm), -(-nk // bn), bm, bn, back, head or 0)
    plan = _solved(pattern, nq, nk, bm, bn, back, head)
    for i in range(plan.shape.rows):
        for j, full, _ in plan.blocks(i):  # of a multiset no block is full: keep has to count
            out.setdefault((i, full and not pattern.multiset), []).append(j)
    return out


def _whole(table: AnyTable, rows: int, columns: int, bm: int, bn: int, back: bool, head: int) -> Lists:
    """The blocks of a static set, each cut into the kernel's."""
    out: Lists = {}
    for a, b in zip(*(x.tolist() for x in table.entries(head))):
        for i in range(a * table.block // bm, min(rows, (a + 1) * table.block // bm)):
            for j in range(b * table.block // bn, min(columns, (b + 1) * table.block // bn)):
                row, column = (j, i) if back else (i, j)
                out.setdefault((row, True), []).append(column)
    return out


def _solved(pattern: Pattern, nq: int, nk: int, bm: int, bn: int, back: bool, head: int | None) -> Plan:
    plan = solve(pattern, nq, nk, bm, bn, head if pattern.per_head else None)
    return plan.transposed() if back else plan


def _causal(pattern: Pattern, nq: int, nk: int, head: int | None) -> bool:
    """Is no full block ever cut by the end of the keys?"""
    return nq == nk and is_causal(pattern, max(nq, 2), (head or 0) + 1)


# Folding


class Run(NamedTuple):
    """Blocks { j in [low, high) : (j - anchor) mod step < width }."""

    low: int
    high: int
    step: int = 1
    anchor: int = 0
    width: int = 1


class Entry(NamedTuple):
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


def fold(plan: Plan, kinds: tuple[bool, ...], rows: int) -> tuple[tuple[Entry, ...], bool]:
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


def _fold(plan: Plan, kinds: tuple[bool, ...], rows: range) -> tuple[tuple[Entry, ...], bool]:
    lists, best = list(_rows(plan, kinds, rows).values()), None
    for every in sorted({1, math.lcm(*[g.every for g in plan.groups])}):
        if every > max(1, len(rows) // 2):
            continue
        segments = [s for c in range(every) for s in _segments(lists[c::every], c, every, plan.shape.columns)]
        found = _joined([e for s in segments for e in s])
        if best is None or len(found) < len(best[0]):
            best = found, all(len(s) <= 1 and all(e.step == 1 for e in s) for s in segments)
    return best or ((), True)


def _entered(entries: tuple[Entry, ...], i: int) -> list[Run]:
    """The runs of row i as entries have them."""
    out: list[Run] = []
    for e in entries:
        t, rest = divmod(i - e.first, e.every)
        if e.first <= i < e.end and rest < e.span:
            low, high, anchor = (
                x + t * by for x, by in ((e.low, e.low_move), (e.high, e.high_move), (e.anchor, e.anchor_move))
            )
            out.append(Run(low, high, e.step, anchor, e.width))
    return out


def _rows(plan: Plan, kinds: tuple[bool, ...], rows: Sequence[int]) -> dict[int, tuple[Run, ...]]:
    """The runs of some rows, in order."""
    out: dict[int, list[Run]] = {i: [] for i in rows}
    for g in plan.groups:
        pieces = [p for p in g.pieces if p.full in kinds]
        for i in bounded(rows, g.first, g.end) if pieces else ():
            if (i - g.first) % g.every == 0:
                out[i] += [_at(p, (i - g.first) // g.every) for p in pieces]
    return {i: canonical(r, plan.shape.columns) for i, r in out.items()}


def bounded(rows: Sequence[int], first: int, end: int) -> Sequence[int]:
    """Those of sorted rows in [first, end)."""
    return rows[bisect_left(rows, first) : bisect_left(rows, end)]


def _at(p: Piece, t: int) -> Run:
    return Run(p.low + t * p.low_move, p.high + t * p.high_move, p.step, p.anchor + t * p.anchor_move, p.width)


def canonical(runs: Sequence[Run], end: int) -> tuple[Run, ...]:
    """The same blocks below `end`: runs cut, shrunk to their members, sorted, neighbours joined."""
    out: list[Run] = []
    for run in sorted(filter(None, (_shrunk(r, end) for r in runs))):
        last = out[-1] if out else None
        if last and last.step == run.step == 1 and last.high == run.low:
            out[-1] = last._replace(high=run.high)
        else:
            out.append(run)
    return tuple(out)


def _shrunk(r: Run, end: int) -> Run | None:
    low, high = max(r.low, 0), min(r.high, end)
    if r.width < r.step:
        anchor = r.anchor % r.step
        members = [j for j in range(low, min(high, low + r.step)) if (j - anchor) % r.step < r.width]
        last = [j for j in range(max(low, high - r.step), high) if (j - anchor) % r.step < r.width]
        low, high = (members[0], last[-1] + 1) if members else (0, 0)
        if high - low > r.width:
            return Run(low, high, r.step, anchor, r.width)
    return Run(low, high) if low < high else None


def _segments(lists: Sequence[tuple[Run, ...]], first: int, every: int, end: int) -> Iterator[list[Entry]]:
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
            Entry(
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


Moves = tuple[tuple[Run, tuple[int, int, int]], ...]


def _moves(here: tuple[Run, ...], there: tuple[Run, ...]) -> Moves | None:
    """How the runs of one row become those of the next; None: not by moving."""
    if [(r.step, r.width) for r in here] != [(r.step, r.width) for r in there]:
        return None
    return tuple((a, (b.low - a.low, b.high - a.high, b.anchor - a.anchor)) for a, b in zip(here, there))


def _moved(moves: Moves, t: int) -> tuple[Run, ...]:
    return tuple(
        Run(r.low + t * low, r.high + t * high, r.step, r.anchor + t * anchor, r.width)
        for r, (low, high, anchor) in moves
    )


def _joined(entries: list[Entry]) -> tuple[Entry, ...]:
    """Entries of neighbouring rows with the same run as one that spans them."""
    out: list[Entry] = []
    for e in sorted(entries, key=lambda e: (e.run, e.every, e.first)):
        last = out[-1] if out else None
        if last and _continues(last, e):
            out[-1] = last._replace(span=last.span + 1, end=e.end)
        else:
            out.append(e)
    return tuple(sorted(out))


def _continues(a: Entry, b: Entry) -> bool:
    """Are the rows of b those after the rows of a, with the same run?"""
    ends = a.end == b.end == END or b.end == a.end + 1 < END
    return (a.run, a.every) == (b.run, b.every) and b.first == a.first + a.span < a.first + a.every and ends
