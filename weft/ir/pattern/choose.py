"""Choose the layout of a pattern: split it into disjoint terms, know each term's shape, take the cheapest split.

A shape is proposed from the numbers that stand in the formula, and accepted when the solver finds no pair up to a
million tokens on which the two differ. So it does not matter how a pattern is written. A term without a shape is run in
tiles.

Cost is in (query, key) pairs: those of the blocks touched. Tiles gather and mask, so their pairs count TILES times and
their rows TILE_ROWS; each part beyond the first adds MERGE for each row (one more pass over outputs and log-sum-exps).
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from weft.ir.pattern.formula import Formula, InTable, any_of, opaque
from weft.ir.pattern.layout import LayoutPart, PatternLayout, core_text, general
from weft.ir.pattern.meaning import holds_formula
from weft.ir.pattern.pattern import Pattern
from weft.ir.pattern.plan import Shape
from weft.ir.pattern.shapes import numbers_in, shapes
from weft.ir.pattern.solver import same, solve_formula
from weft.ir.pattern.terms import disjoint, terms
from weft.ir.pattern.writing import written

if TYPE_CHECKING:
    pass

MERGE, TILES, TILE_ROWS = 16, 2, 64
PROVED = 1 << 20
"""Shapes are proved for sequences up to this length, or the one asked for if that is longer."""
UNSHAPED = 20
"""A split with tiles has to be cheaper than one without by this part of its cost."""
ORDERS, LONGEST = 24, 1000
"""Orders of terms that are tried; the longest formula, in characters, of what is left for tiles."""


@lru_cache(maxsize=512)
def layout(pattern: Pattern, n: int, block: int = 128, heads: int = 1, nk: int | None = None) -> PatternLayout:
    """The cheapest layout for n queries and nk keys (default n), in blocks of at most `block`.

    Its parts are disjoint and their union is the pattern, for every length up to a million or max(n, nk); n and block
    decide only which is cheapest. Costs are for one head, summed over `heads`.
    """
    nk = nk or n
    pattern = pattern.at(max(n, nk))
    groups = pattern.groups(heads)
    listed = all(isinstance(f, InTable) and not f.negated for _, _, f in groups)
    best = list[tuple[int, int, PatternLayout]]()
    if not listed and not pattern.multiset:
        text = pattern.text if len(groups) == 1 else ""
        best = [(first, end, _best(f, text, n, nk, block)) for first, end, f in groups]
    if all([p.layout for p in x.parts] == ["tiles"] for _, _, x in best):
        one, rejected = general("blocks" if listed else "tiles", pattern), best[0][2].rejected if len(best) == 1 else ()
        pairs = sum((end - first) * _touched_by(f, n, nk, block) for first, end, f in groups)
        cost, parts = _priced((replace(one, touched=pairs // heads),), n)
        return PatternLayout(parts, heads * cost, rejected)
    served, rejected = dict[LayoutPart, list[int]](), dict[tuple[str, str], int]()
    for first, end, choice in best:
        for p in choice.parts:
            served.setdefault(p, []).extend(range(first, end))
        for text, why, price in choice.rejected:
            rejected[text, why] = rejected.get((text, why), 0) + (end - first) * price
    parts = tuple(replace(p, heads=span) for p, some in served.items() for span in _spans(some, heads))
    cost = sum((end - first) * choice.cost for first, end, choice in best)
    return PatternLayout(parts, cost, tuple((*key, price) for key, price in rejected.items()))


def in_tiles(pattern: Pattern, n: int, block: int = 128, heads: int = 1, nk: int | None = None) -> PatternLayout:
    """The general layout for n queries and nk keys, whatever others there are; costs as `layout` has them."""
    nk = nk or n
    pattern = pattern.at(max(n, nk))
    pairs = sum((end - first) * _touched_by(f, n, nk, block) for first, end, f in pattern.groups(heads))
    cost, parts = _priced((replace(general("tiles", pattern), touched=pairs // heads),), n)
    return PatternLayout(parts, heads * cost)


def _spans(some: list[int], heads: int) -> list[tuple[int, int, int] | None]:
    """Heads as (first, end, step): all of them (None), one arithmetic run, or the runs of neighbours."""
    if len(some) == heads:
        return [None]
    step = some[1] - some[0] if len(some) > 1 else 1
    if all(b - a == step for a, b in itertools.pairwise(some)):
        return [(some[0], min(some[-1] + step, heads), step)]
    out = list[tuple[int, int, int] | None]()
    for _, run in itertools.groupby(enumerate(some), lambda at: at[1] - at[0]):
        members = [h for _, h in run]
        out.append((members[0], members[-1] + 1, 1))
    return out


@lru_cache(maxsize=1024)
def _best(f: Formula, text: str, n: int, nk: int, block: int) -> PatternLayout:
    """The cheapest split for one head, and the others."""
    (cost, parts), *others = sorted(_options(f, text, n, nk, block), key=lambda x: x[0])
    return PatternLayout(parts, cost, tuple((PatternLayout(p).summary(), "dearer", price) for price, p in others))


def _options(f: Formula, text: str, n: int, nk: int, block: int) -> Iterator[tuple[int, tuple[LayoutPart, ...]]]:
    """(cost, parts) of every split considered for one head."""
    if f is False:
        yield 0, ()
        return
    proved = max(PROVED, n, nk)
    yield _cost((general("tiles", Pattern.parse(text or written(f))),), n, nk, block)
    if opaque(f):
        return
    whole = shape_of(f, proved)
    if whole is not None:
        yield _cost(whole, n, nk, block)
        return
    some, tried = terms(f), set[tuple[LayoutPart, ...]]()
    for order in itertools.islice(itertools.permutations(some), ORDERS if len(some) > 1 else 0):
        split = _shaped(disjoint(order), proved)
        if split and split not in tried:
            tried.add(split)
            yield _cost(split, n, nk, block)


def _shaped(some: tuple[Formula, ...], proved: int) -> tuple[LayoutPart, ...]:
    """Terms as parts in a fixed order: those without a shape in tiles together. () if none has one."""
    shaped, rest = list[LayoutPart](), list[Formula]()
    for term in some:
        known = shape_of(term, proved)
        shaped += known or ()
        rest += [] if known else [term]
    text = written(any_of(*rest)) if shaped and rest else ""
    if not shaped or len(text) > LONGEST:
        return ()
    return tuple(sorted([*shaped, *([general("tiles", Pattern.parse(text))] if rest else [])], key=str))


def _cost(parts: tuple[LayoutPart, ...], n: int, nk: int, block: int) -> tuple[int, tuple[LayoutPart, ...]]:
    """The cost of one head, and the parts with the pairs they touch."""
    return _priced(tuple(replace(p, touched=touched(p, n, nk, block)) for p in parts), n)


def _priced(parts: tuple[LayoutPart, ...], n: int) -> tuple[int, tuple[LayoutPart, ...]]:
    pairs = sum(p.touched * TILES + n * TILE_ROWS if p.layout == "tiles" else p.touched for p in parts)
    pairs += MERGE * n * (len(parts) - 1)
    return pairs + pairs // UNSHAPED * any(p.layout == "tiles" for p in parts), parts


@lru_cache(maxsize=4096)
def shape_of(f: Formula, proved: int = PROVED) -> tuple[LayoutPart, ...] | None:
    """Parts of known shape whose union is f on every sequence up to `proved`, or None."""
    import numpy as np  # the IR itself does without NumPy

    q, k = _samples(f)
    values = np.asarray(holds_formula(f, q, k))
    for candidate in shapes(f):
        union = any_of(*(p.term.formula for p in candidate))
        if union == f:
            return candidate
        if np.array_equal(holds_formula(union, q, k), values) and same(f, union, proved):
            return candidate
    return None


def _samples(f: Formula):
    """Pairs (q, k) near everything that the formula's numbers could tell apart. Two int64 arrays."""
    import numpy as np  # the IR itself does without NumPy

    r = np.random.default_rng(0)
    marks = {0, *itertools.chain.from_iterable(numbers_in(f))}
    near = np.array(sorted({abs(m) + d for m in marks for d in (-1, 0, 1)} | {-m for m in marks}))
    span = 4 * int(np.abs(near).max()) + 64
    q = np.concatenate([r.integers(0, span, 1500), np.abs(near), r.integers(0, PROVED, 500)])
    k = np.concatenate([q - near[r.integers(0, len(near), len(q))], r.integers(0, q + 1), r.integers(0, span, len(q))])
    q = np.tile(q, 3)
    keep = k >= 0
    return q[keep], k[keep]


def touched(p: LayoutPart, n: int, nk: int, block: int) -> int:
    """Pairs that a part computes for one head."""
    f = p.term.formula
    if p.layout in ("tiles", "blocks"):
        return _touched_by(p.term.groups(1)[0][2], n, nk, block)
    if p.layout == "residues":
        return _repeated(_inner(p), p.arg("modulus"), n - p.arg("start"), nk - p.arg("start"), block)
    if p.layout == "diagonal":
        size = p.arg("block")
        whole, rest = divmod(min(n, nk), size)
        return whole * _touched_by(_inner(p), size, size, block) + _touched_by(_inner(p), rest, rest, block)
    if p.layout in ("window", "band"):
        reach = p.arg("width") - 1 if p.layout == "window" else p.arg("left") + p.arg("right")
        rows = next((size for size in (32, 64, 128) if reach < 8 * size), 256)
        return solve_formula(f, Shape(n, nk, min(rows, n), 1)).touched
    if p.layout in ("columns", "rows", "cols"):
        return solve_formula(f, Shape(n, nk, min(block, n), min(block, nk))).nnz
    return _touched_by(f, n, nk, block)


def _inner(p: LayoutPart) -> Formula:
    return Pattern.parse(core_text(p.inner, 1) or "all").formula


def _repeated(inner: Formula, classes: int, n: int, nk: int, block: int) -> int:
    """Pairs of all residue classes: they have one of two lengths, of queries and of keys."""
    total, cuts = 0, sorted({0, n % classes, nk % classes, classes})
    for first, end in itertools.pairwise(cuts):
        rows, keys = (max(0, -(-(x - first) // classes)) for x in (n, nk))
        total += (end - first) * _touched_by(inner, rows, keys, block)
    return total


def _touched_by(f: Formula, n: int, nk: int, block: int) -> int:
    if n <= 0 or nk <= 0:
        return 0
    if isinstance(f, InTable):
        block = min(block, f.table.block)
    return solve_formula(f, Shape(n, nk, min(block, n), min(block, nk))).touched
