"""From a part of a pattern to what the attention kernels walk: rows in memory, slots, plan constants, tables.

A solver's plan lists blocks by their number of visible pairs and row by row near edges; a kernel needs neither. `fold`
writes the same blocks as few entries (`attention_pieces.members`): constants that hold for every length up to the one
solved. Where that would be long, or the pattern is a static block set, the blocks go into an int32 table.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from weft.ir.pattern import Pattern, is_causal, solve
from weft.ir.pattern.formula import Listed, leaves
from weft.ir.pattern.layout import Part, core_text
from weft.ir.pattern.plan import Piece, Plan

if TYPE_CHECKING:
    import numpy as np

    Ints = np.ndarray[Any, np.dtype[np.int32]]

ENTRIES = 12
"""Entries of a slot up to which a plan is constants; each costs some scalar instructions a program."""
TABLE = 1 << 22
"""Blocks up to which a table is written (16 MiB)."""
PACK = 24
"""Bits of the block in an entry of a packed table; the head in its group stands above."""
END = 1 << 30


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

    exact: the kernel computes only blocks the pattern touches. table: TAB's arrays (first, blocks), int32.
    """

    pieces: str
    block: str | None
    slots: tuple[bool, ...]
    plan: Any = None
    table: "tuple[Ints, Ints] | None" = None
    packed: bool = False
    exact: bool = True


DENSE = Walk("dense_pieces", None, (True, False))
DENSE_BACK = Walk("dense_back", None, (True,))
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


def walk(pattern: Pattern, nq: int, nk: int, bm: int, bn: int, back: bool = False, head: int | None = None) -> Walk:
    """How a kernel with blocks of bm queries and bn keys walks a pattern of up to nq rows and nk keys.

    back: over the query blocks of key blocks. head: of a pattern that differs by head; heads that share their walk can
    share a launch. Holds for every shorter length too, if the pattern does (static block sets are for their length).
    """
    if pattern.text == "all":
        return DENSE_BACK if back else DENSE
    if pattern.text in ("causal", "k <= q"):
        return CAUSAL_BACK if back else CAUSAL
    if any(isinstance(leaf, Listed) for leaf in leaves(pattern.formula)):
        return tabulate([pattern], nq, nk, bm, bn, back)
    whole = math.lcm(bm, bn)
    plan = _solved(pattern, -(-nq // whole) * whole, -(-nk // whole) * whole, bm, bn, back)
    causal = nq == nk and is_causal(pattern, max(nq, 2))
    rows, columns = (nk, bn) if back else (nq, bm), plan.shape.columns
    slots = [fold(plan, full, -(-rows[0] // rows[1])) for full in (True, False)]
    if any(len(s) > ENTRIES for s in slots):
        return tabulate([pattern], nq, nk, bm, bn, back) if _blocks(plan) <= TABLE else MASKED
    cut = not (back or causal) and bool(slots[0])
    kept = tuple((full, s) for full, s in zip((True, False), slots) if s or (cut and not full))
    kept = kept or ((False, ()),)
    runs = tuple(_run(s, columns) and not (cut and not full) for full, s in kept)
    entries = tuple(s for _, s in kept)
    return Walk("plan_pieces", "plan_block", tuple(full for full, _ in kept), (entries, runs, cut))


def tabulate(
    heads: Sequence[Pattern], nq: int, nk: int, bm: int, bn: int, back: bool = False, group: int = 1
) -> Walk:
    """A walk by table, one list of blocks for each of `heads` patterns (one: for all heads).

    A multiset whose blocks the kernel's divide lists a block as often as it counts, and needs no keep. With back,
    `group` heads share a key head and one packed list.
    """
    import numpy as np

    rows, first, blocks = -(-(nk if back else nq) // (bn if back else bm)), [0], list[Any]()
    lists = [_lists(p, nq, nk, bm, bn, back) for p in heads]
    causal = nq == nk and all(is_causal(p, max(nq, 2)) for p in heads)
    split = causal or back
    groups = [lists[z : z + group] for z in range(0, len(lists), group)] if back and group > 1 else [[x] for x in lists]
    for members in groups:
        for i in range(rows):
            for kinds in ((True,), (False,)) if split else ((True, False),):
                row = [
                    [(g << PACK) + j for g, x in enumerate(members) for full in kinds for j in sorted(x.get((i, full), []))]
                ]
                blocks += row
                first.append(first[-1] + len(row[0]))
    flat = np.fromiter(itertools.chain.from_iterable(blocks), np.int32)
    plan = (len(groups), rows, 2 if split else 1)
    table = np.array(first, np.int32), flat if len(flat) else np.zeros(1, np.int32)
    return Walk("table_pieces", "table_block", (True, False) if split else (False,), plan, table, back and group > 1)


def _lists(pattern: Pattern, nq: int, nk: int, bm: int, bn: int, back: bool) -> dict[tuple[int, bool], list[int]]:
    """(row, full) -> blocks, listed as often as they count."""
    out: dict[tuple[int, bool], list[int]] = {}
    plan = _solved(pattern, nq, nk, bm, bn, back)
    for i in range(plan.shape.rows):
        for j, full, _ in plan.blocks(i):
            out.setdefault((i, full), []).append(j)
    return out


def _solved(pattern: Pattern, nq: int, nk: int, bm: int, bn: int, back: bool) -> Plan:
    plan = solve(pattern, nq, nk, bm, bn)
    return plan.transposed() if back else plan


def _blocks(plan: Plan) -> int:
    return plan.full + plan.partial


# Folding


class Run(NamedTuple):
    """Blocks { j in [low, high) : (j - anchor) mod step < width }."""

    low: int
    high: int
    step: int = 1
    anchor: int = 0
    width: int = 1


Entry = tuple[int, ...]


def fold(plan: Plan, full: bool, rows: int) -> tuple[Entry, ...]:
    """The full, or the partial, blocks of the first `rows` rows, as entries of `attention_pieces.members`."""
    lists = _rows(plan, full, rows)
    best: tuple[Entry, ...] | None = None
    for every in sorted({1, math.lcm(*[g.every for g in plan.groups])}):
        if every > max(1, rows // 2):
            continue
        found = tuple(e for c in range(every) for e in _segments(lists[c::every], c, every, plan.shape.columns))
        if best is None or len(found) < len(best):
            best = found
    return best or ()


def _rows(plan: Plan, full: bool, rows: int) -> list[tuple[Run, ...]]:
    """The runs of each row."""
    out: list[list[Run]] = [[] for _ in range(rows)]
    for g in plan.groups:
        pieces = [p for p in g.pieces if p.full == full]
        for t, i in enumerate(range(g.first, min(g.end, rows), g.every) if pieces else ()):
            out[i] += [_at(p, t) for p in pieces]
    return [canonical(r, plan.shape.columns) for r in out]


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
    if r.step > 1 and r.width < r.step:
        anchor = r.anchor % r.step
        low = next((j for j in range(low, min(high, low + r.step)) if (j - anchor) % r.step < r.width), high)
        high = next((j + 1 for j in range(high - 1, max(low, high - r.step) - 1, -1) if (j - anchor) % r.step < r.width), low)
        if high - low > r.width:
            return Run(low, high, r.step, anchor, r.width)
    return Run(low, high) if low < high else None


def _segments(lists: Sequence[tuple[Run, ...]], first: int, every: int, end: int) -> Iterator[Entry]:
    """Entries for rows first, first + every, ...: the longest affine stretch through the middle, then the rest."""
    todo = [(0, len(lists))]
    while todo:
        low, high = todo.pop()
        if low >= high:
            continue
        z = (low + high) // 2
        moves = _moves(lists[z], lists[z + 1]) if z + 1 < high else None
        if moves is None:
            moves = tuple((r, (0, 0, 0)) for r in lists[z])
        start = stop = z
        while start > low and canonical(_moved(moves, start - 1 - z), end) == lists[start - 1]:
            start -= 1
        while stop < high and canonical(_moved(moves, stop - z), end) == lists[stop]:
            stop += 1
        rows = (first + start * every, first + (stop - 1) * every + 1, every)
        for r, (by_low, by_high, by_anchor) in zip(_moved(moves, start - z), (m for _, m in moves)):
            high_now = END if r.high == end and by_high == 0 else r.high
            yield (*rows, r.low, by_low, high_now, by_high, r.step, r.anchor, by_anchor, r.width)
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


def _run(entries: tuple[Entry, ...], end: int) -> bool:
    """Has every row at most one entry, and that of step 1?"""
    apart = all(
        a[1] <= b[0] or b[1] <= a[0] or (a[0] - b[0]) % math.gcd(a[2], b[2]) != 0
        for a, b in itertools.combinations(entries, 2)
    )
    return apart and all(e[7] == 1 for e in entries)
