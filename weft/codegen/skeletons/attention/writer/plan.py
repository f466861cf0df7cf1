"""From a part of a pattern to what the attention kernels walk: rows in memory, slots, plan constants, tables.

A solver's plan lists blocks by their number of visible pairs and row by row near edges; a kernel needs neither. `fold`
writes the same blocks as few entries (`pieces.members`): constants that hold for every length up to the one
solved. Where that would be long, or the pattern is a static block set, the blocks go into an int32 table.
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.codegen.skeletons.attention.writer.fold import fold
from weft.ir.pattern import LayoutPart, Pattern, Plan, is_causal, solve
from weft.ir.pattern.formula import InTable, leaves
from weft.ir.pattern.layout import core_text
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
ELSEWHERE = -1
"""In place of a head that another part serves: its list is empty."""


@dataclass(frozen=True)
class Geometry:
    """Where the rows of a part lie, and its pattern, of row numbers (`rows`) and of positions (`keep`).

    q_at, k_at: (modulus, width, origin) as in `tiles`. keep is None where every row pair is visible.
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
class PartWalk:
    """What a kernel takes for one part: names of its `pieces` and `block` holes in `pieces`, and their data.

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


DENSE = PartWalk("dense_pieces", None, (True, False), keep=False)
DENSE_BACK = PartWalk("dense_back", None, (True,), keep=False)
CAUSAL = PartWalk("causal_pieces", None, (True, False))
CAUSAL_BACK = PartWalk("causal_back", None, (False, True))
MASKED = PartWalk("dense_back", None, (False,), exact=False)
"""Every block, masked: right for any pattern, for either direction."""
CLOSED = {
    ("all", False): (DENSE, PartWalk("dense_back", None, (False,), keep=False)),
    ("all", True): (DENSE_BACK, PartWalk("dense_back", None, (False,), keep=False)),
    ("causal", False): (CAUSAL, PartWalk("causal_masked", None, (False,))),
    ("causal", True): (CAUSAL_BACK, PartWalk("causal_masked_back", None, (False,))),
}
"""Of a pattern, back or not: the walks in two loops and in one that hold for blocks of any size."""


def static_block(pattern: Pattern) -> int:
    """The block that the blocks of kernels must divide, of the static sets of a pattern; 0: it has none."""
    return math.gcd(*(leaf.table.block for leaf in leaves(pattern.formula) if isinstance(leaf, InTable)))


def closed(pattern: Pattern, back: bool = False) -> tuple[PartWalk, PartWalk] | None:
    """The walks of a pattern that hold for blocks of any size, in two loops and in one; None: it has none."""
    if found := re.fullmatch(r"window\((\d+)\)|band\((\d+), (\d+)\)", pattern.text):
        behind, ahead = (int(found[1]) - 1, 0) if found[1] else (int(found[2]), int(found[3]))
        plan = (ahead, behind) if back else (behind, ahead)
        two = PartWalk("band_pieces", "band_block", (True, False), plan)
        return two, PartWalk("band_masked", None, (False,), plan)
    return CLOSED.get(("causal" if pattern.text == "k <= q" else pattern.text, back))


def geometry(part: LayoutPart) -> Geometry:
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
) -> PartWalk:
    """How a kernel with blocks of bm queries and bn keys walks a pattern of up to nq rows and nk keys.

    back: over the query blocks of key blocks. head: of a pattern that differs by head. loops: 2, full blocks without
    masks and partial ones with them; 1, all with masks, which takes fewer registers. Holds for every shorter length
    too, if the pattern does (a static block set is for its own length).
    """
    if both := closed(pattern, back):
        return both[2 - loops]
    if any(isinstance(leaf, InTable) for leaf in leaves(pattern.formula)):
        return tabulate(pattern, nq, nk, bm, bn, back, (head,), loops=loops)
    if found := planned(pattern, nq, nk, bm, bn, back, head, loops):
        return found
    plan = _solved(pattern, nq, nk, bm, bn, back, head)
    listable = plan.full + plan.partial <= TABLE
    return tabulate(pattern, nq, nk, bm, bn, back, (head,), loops=loops) if listable else MASKED


def planned(
    pattern: Pattern,
    nq: int,
    nk: int,
    bm: int,
    bn: int,
    back: bool = False,
    head: int | None = None,
    loops: int = 2,
) -> PartWalk | None:
    """The walk by a solver's plan, as in `walk`; None where that would be long."""
    whole = math.lcm(bm, bn)
    plan = _solved(pattern, -(-nq // whole) * whole, -(-nk // whole) * whole, bm, bn, back, head)
    rows = -(-nk // bn) if back else -(-nq // bm)
    kinds = ((True,), (False,)) if loops == 2 else ((), (True, False))
    folded = [fold(plan, kind, rows) for kind in kinds]
    if any(len(entries) > ENTRIES for entries, _ in folded):
        return None
    cut = bool(folded[0][0]) and not (back or _causal(pattern, nq, nk, head))
    kept = [(full, *f) for full, f in zip((True, False), folded) if f[0] or (cut and not full)] or [(False, (), True)]
    slots, entries, single = zip(*kept)
    entries = tuple(tuple(map(tuple, e)) for e in entries)  # plain, as they become literals
    runs = tuple(one and not (cut and not full) for full, one in zip(slots, single))
    return PartWalk("plan_pieces", "plan_block", slots, (entries, runs, cut), keep=False in slots)


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
) -> PartWalk:
    """A walk by table: one list of blocks for each of `heads` (of a pattern that differs by head; those that the part
    does not serve are ELSEWHERE), or one for all.

    The blocks of a static set that the kernel's divide are listed as often as they count, and need no keep. With back,
    `group` heads share a key head and one packed list.
    """
    rows = -(-(nk if back else nq) // (bn if back else bm))
    found = [_lists(pattern, nq, nk, bm, bn, back, h) for h in heads]
    keep = any(not full for lists in found for _, full in lists)
    causal = back or all(_causal(pattern, nq, nk, h) for h in heads if h != ELSEWHERE)
    split = loops == 2 and causal  # else the end may cut a full one
    slots = ((True, False) if keep else (True,)) if split else (False,)
    kinds = tuple((full,) for full in slots) if split else ((True, False),)
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
    return PartWalk("table_pieces", "table_block", slots, plan, table, packed, keep)


def gathered(
    pattern: Pattern,
    nq: int,
    nk: int,
    back: bool,
    heads: Sequence[int | None],
    group: int,
    grain: int,
    most: int,
) -> tuple[PartWalk, int] | None:
    """A walk by table of at most `most` blocks, made for square blocks of one size, and that size: the least from
    `grain` on. A static set has no blocks but its own."""
    static = any(isinstance(leaf, InTable) for leaf in leaves(pattern.formula))
    while True:
        if static or len(heads) > 1 or _count(pattern, nq, nk, grain, back, heads[0]) <= most:
            made = tabulate(pattern, nq, nk, grain, grain, back, heads, group)
            if made.table and len(made.table[1]) <= most:
                return made, grain
        if static or grain > max(nq, nk):
            return None
        grain *= 2


def _count(pattern: Pattern, nq: int, nk: int, grain: int, back: bool, head: int | None) -> int:
    plan = _solved(pattern, nq, nk, grain, grain, back, head)
    return plan.full + plan.partial


Lists = dict[tuple[int, bool], list[int]]


def _lists(pattern: Pattern, nq: int, nk: int, bm: int, bn: int, back: bool, head: int | None) -> Lists:
    """(row, full) -> blocks, listed as often as they count."""
    out: Lists = {}
    if head == ELSEWHERE:
        return out
    f = pattern.groups((head or 0) + 1)[-1][2]
    if isinstance(f, InTable) and not f.negated and f.table.block % bm == f.table.block % bn == 0:
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
