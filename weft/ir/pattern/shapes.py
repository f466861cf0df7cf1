"""Shapes that a term may have, proposed from the numbers that stand in its formula."""

from collections.abc import Iterator
from typing import NamedTuple

from weft.ir.pattern.expression import congruences
from weft.ir.pattern.formula import Formula, atoms
from weft.ir.pattern.layout import LayoutPart, part
from weft.ir.pattern.meaning import holds_formula

LARGEST = 1 << 16
"""The largest modulus of which the columns are looked at one by one."""


class Numbers(NamedTuple):
    """Bounds on q - k, q and k (least and greatest values that some atom allows), and moduli."""

    low: tuple[int, ...]
    high: tuple[int, ...]
    q_low: tuple[int, ...]
    q_high: tuple[int, ...]
    k_low: tuple[int, ...]
    k_high: tuple[int, ...]
    moduli: tuple[int, ...]


def numbers_in(f: Formula) -> Numbers:
    """What the atoms of a formula compare with."""
    found: dict[tuple[int, int], set[int]] = {}
    moduli: set[int] = set()
    for a in atoms(f):
        moduli |= {m for _, _, m in congruences(a.x)}
        if a.x.mods or a.x.den != 1:
            continue
        sides = {"ge": (0,), "eq": (0, 1), "ne": (0, 1)}[a.op]
        for side in sides:  # x >= 0, and for (in)equalities -x >= 0 too
            sign, shift = (1, -1)[side], (1 if a.op == "ne" else 0)
            key = (sign * a.x.q, sign * a.x.k)
            found.setdefault(key, set()).add(shift - sign * a.x.c)  # key . (q, k) >= this

    def least(q: int, k: int) -> tuple[int, ...]:
        return tuple(sorted(found.get((q, k), ())))

    def most(q: int, k: int) -> tuple[int, ...]:
        return tuple(sorted(-v for v in found.get((-q, -k), ())))

    moduli.discard(1)
    return Numbers(least(1, -1), most(1, -1), least(1, 0), most(1, 0), least(0, 1), most(0, 1), tuple(sorted(moduli)))


def shapes(f: Formula) -> Iterator[tuple[LayoutPart, ...]]:
    """Candidates, each a union of parts: the simple ones first."""
    numbers = numbers_in(f)
    starts = [0, *sorted({v for v in (*numbers.q_low, *numbers.k_low) if v > 0})]
    plain = list(cores(numbers, 1))
    for core in plain:
        for start in starts if core != "dense" else [0]:
            yield (shaped(core, start),)
    for m in numbers.moduli:
        for core in cores(numbers, m):
            for start in starts:
                yield (part("residues", m, inner=core, start=start),)
        for inner in ("dense", "causal", "strict"):
            yield (part("diagonal", m, inner=inner),)
        yield from columns(f, m)
    for count in (v + 1 for v in numbers.q_high if v >= 0):
        for inner in plain:
            yield (part("rows", count, inner=inner),)
    for count in (v + 1 for v in numbers.k_high if v >= 0):
        for start in [0, *(v for v in numbers.q_low if v > 0)]:
            for inner in plain:
                yield (part("cols", count, start, inner=inner),)


def cores(numbers: Numbers, step: int) -> Iterator[str]:
    """dense, causal, strict, lags, windows and bands on q - k in steps of `step`, as text."""
    yield "dense"
    lows, highs = {-(-v // step) for v in numbers.low}, {v // step for v in numbers.high}
    yield from (name for low, name in ((0, "causal"), (1, "strict")) if low in lows)
    yield from (f"lag({low})" for low in sorted(lows) if low not in (0, 1))
    for low in sorted(lows):
        for high in sorted(h for h in highs if h >= low):
            yield f"window({high + 1})" if low == 0 else f"band({high}, {-low})"


def shaped(core: str, start: int) -> LayoutPart:
    """A part from the text of a core."""
    name, _, rest = core.partition("(")
    return part(name, *(int(x) for x in rest.rstrip(")").split(",") if x), start=start)


def columns(f: Formula, m: int) -> Iterator[tuple[LayoutPart, ...]]:
    """Columns of blocks of m before the query's own: those that a query some blocks on sees, as runs."""
    import numpy as np  # the IR itself does without NumPy

    if m > LARGEST:
        return
    seen = np.concatenate([[False], holds_formula(f, 4 * m, 2 * m + np.arange(m)), [False]])
    edges = np.flatnonzero(seen[1:] != seen[:-1])
    if 2 <= len(edges) <= 6:
        runs = [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2])]
        yield tuple(part("columns", m, first, end - first) for first, end in runs)
