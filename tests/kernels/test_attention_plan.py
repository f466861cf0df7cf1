"""Walks: the blocks that constants and tables list are those of the pattern, at every length up to the one solved."""

import itertools
import random

import numpy as np
import pytest
import torch

from tests.campaign import count
from tests.ir.pattern.parts import part_holds
from tests.kernels.attention_cases import KINDS, patterns
from weft.codegen.skeletons.attention import launch, pieces, walks
from weft.codegen.skeletons.attention.launch import Walk
from weft.codegen.skeletons.attention.walks import chosen, table
from weft.codegen.skeletons.attention.writer.plan import (
    ENTRIES,
    MASKED,
    PACK,
    closed,
    gathered,
    geometry,
    planned,
    static_block,
    tabulate,
    walk,
)
from weft.codegen.skeletons.attention.writer.space import pairs
from weft.codegen.skeletons.attention.writer.walks import Walks
from weft.codegen.skeletons.common import host
from weft.ir.pattern import Pattern, holds, layout


def up(a, b):
    return -(-a // b)


def listed(w, i, n, m, a, b, head=0):
    """(block, full) that a kernel visits for row i, computed another way than the holes do it."""
    if w.pieces == "table_pieces":
        heads, rows, slots = w.plan
        first, blocks = w.table
        at = ((head if heads > 1 else 0) * rows + i) * slots
        return [(int(j), w.slots[s]) for s in range(slots) for j in blocks[first[at + s] : first[at + s + 1]]]
    entries, _, cut = w.plan
    out = []
    for full, some in zip(w.slots, entries):
        for first, last, every, span, low, by_low, high, by_high, step, anchor, by_anchor, width in some:
            t, rest = divmod(i - first, every)
            if first <= i < last and rest < span:
                blocks = range(max(0, low + t * by_low), min(high + t * by_high, up(m, b)))
                out += [(j, full) for j in blocks if (j - anchor - t * by_anchor) % step < width]
    return [(j, full and not (cut and (j + 1) * b > m)) for j, full in out]


def blocks_of(seen, a, b):
    """(visible pairs, pairs) of every block of a mask."""
    n, m = seen.shape
    padded = np.zeros((up(n, a) * a, up(m, b) * b), int)
    padded[:n, :m] = seen
    size = np.zeros_like(padded)
    size[:n, :m] = 1
    fold = lambda x: x.reshape(up(n, a), a, up(m, b), b).sum((1, 3))  # noqa: E731
    return fold(padded), fold(size)


def check(w, seen, a, b, back, head=0):
    """Every visible block is visited, once; a full one is whole; constants hide no key that exists."""
    seen = seen.T if back else seen
    pairs, size = blocks_of(seen > 0, a, b)
    for i in range(len(pairs)):
        found = listed(w, i, *seen.shape, a, b, head)
        visited = [j for j, _ in found if j * b < seen.shape[1]]
        if seen.max(initial=0) <= 1:
            assert len(set(visited)) == len(visited), (i, found)
        assert set(np.flatnonzero(pairs[i])) <= set(visited), (i, found)
        for j, full in found:
            if full and not back:
                assert (j + 1) * b <= seen.shape[1]
            if full and j * b < seen.shape[1]:
                assert pairs[i, j] == size[i, j], (i, j)


@pytest.mark.parametrize("seed", range(count(sample=52, soak=520)))
def test_walks_list_the_patterns_blocks(seed):
    rng = random.Random(seed)
    kind, text = list(patterns(rng).items())[seed % len(KINDS)]
    pattern, square = Pattern.parse(text), kind not in ("all", "lag", "ahead", "band", "columns")
    n = rng.choice((100, 300, 700)) if "b" not in kind[:2] else 120
    nk = n if square else rng.randint(1, n)
    bm, bn, back = rng.choice((16, 32, 64)), rng.choice((16, 32, 64)), rng.random() < 0.5
    head = rng.randrange(4) if pattern.per_head else None
    fixed = any(name in text for name in ("blocks", "bigbird"))
    pattern = pattern.at(max(n, nk))
    w = walk(pattern, n, nk, bm, bn, back, head)
    if closed(pattern) or w is MASKED:
        w = tabulate(pattern, n, nk, bm, bn, back)
    for _ in range(3):
        short, keys = (n, nk) if fixed else (rng.randint(1, n), rng.randint(1, nk))
        keys = short if square else keys
        q, k = np.arange(short)[:, None], np.arange(keys)[None]
        meta = {"segments": (np.zeros(short, int), np.zeros(keys, int))} if "segment" in text else None
        seen = np.broadcast_to(holds(pattern, q, k, head=head or 0, np=np, n=max(n, nk), meta=meta), (short, keys))
        check(w, seen.astype(int), *((bn, bm) if back else (bm, bn)), back)


@pytest.mark.parametrize(
    ("text", "entries"),
    [("window(4096)", (1, 2)), ("band(256, 256)", (1, 2)), ("block_diagonal(512)", (1, 0)), ("strict_causal", (1, 1))],
)
def test_a_million_tokens_take_few_constants(text, entries):
    for n in (1 << 14, 1 << 20):
        w = planned(Pattern.parse(text), n, n, 128, 64)
        assert tuple(len(e) for e in w.plan[0]) == entries
        back = planned(Pattern.parse(text), n, n, 128, 64, back=True)
        assert sum(len(e) for e in back.plan[0]) <= ENTRIES


TEXTS = ("window(300)", "longformer(300, 300, 5)", "causal and strided(200)", "k <= q and q >= 9000", "rows(9000)")


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_the_short_way_folds_as_the_long_one(monkeypatch, text, back):
    n, pattern = 12000, Pattern.parse(text)
    quick = planned(pattern, n, n, 16, 16, back) or walk(pattern, n, n, 16, 16, back)
    monkeypatch.setattr("weft.codegen.skeletons.attention.writer.fold.FEW", 1 << 20)
    slow = planned(pattern, n, n, 16, 16, back) or walk(pattern, n, n, 16, 16, back)

    for i in range(0, n // 16, 5):
        assert sorted(listed(quick, i, n, n, 16, 16)) == sorted(listed(slow, i, n, n, 16, 16))


def test_constants_do_not_depend_on_the_length():
    plans = {walk(Pattern.parse("window(300)"), n, n, 128, 64).plan for n in (1000, 4096, 4097, 65536)}

    assert len(plans) == 1


@pytest.mark.parametrize(
    "text", ["causal and strided(5)", "strided(3)", "causal and fixed(32, 4)", "causal and q >= 7"]
)
def test_geometry_places_the_pairs_of_each_part(text):
    n, pattern = 100, Pattern.parse(text)
    total = np.zeros((n, n), int)
    for part in layout(pattern, n, 32).parts:
        g = geometry(part)
        for r in range(g.classes):
            q, k = (places(n, at, r) for at in (g.q_at, g.k_at))
            rows = holds(g.rows, np.arange(len(q))[:, None], np.arange(len(k))[None], np=np)
            spread = True if g.keep is None else holds(g.keep, q[:, None], k[None], np=np)
            assert np.array_equal(rows & spread, np.broadcast_to(rows, (len(q), len(k))))
            total[np.ix_(q, k)] += np.broadcast_to(rows, (len(q), len(k)))
        assert g.count(n, g.q_at) == len(places(n, g.q_at, 0))
        assert np.all(part_holds(part, *np.ogrid[:n, :n], np=np) <= total)

    assert np.array_equal(total, np.asarray(holds(pattern, *np.ogrid[:n, :n], np=np)) * np.ones((n, n), int))


def places(n, at, r):
    """Positions of the rows of class r."""
    modulus, width, origin = at
    return np.array([p for p in range(origin + r, n) if (p - origin - r) % modulus < width], int)


def test_a_multiset_lists_blocks_as_often_as_they_count():
    pattern = Pattern.parse("blocks(64, [[0, 0, 1], [1], [2, 2]])")
    w = tabulate(pattern, 192, 192, 32, 64)

    assert not w.keep
    assert [j for j, _ in listed(w, 0, 192, 192, 32, 64)] == [0, 0, 1]
    assert [j for j, _ in listed(w, 5, 192, 192, 32, 64)] == [2, 2]
    assert tabulate(pattern, 192, 192, 128, 64).keep


def test_heads_of_a_group_share_one_packed_list():
    pattern = Pattern.parse("blocks(32, [[0], [1], [2]], [[0, 1], [2], []])")
    w = tabulate(pattern, 96, 96, 32, 32, back=True, heads=(0, 1, 2, 3), group=2)
    first, blocks = w.table

    assert w.packed
    assert w.slots == (True,)
    assert w.plan == (2, 3, 1)
    assert [(int(e) >> PACK, int(e) % (1 << PACK)) for e in blocks[first[0] : first[1]]] == [(0, 0), (1, 0)]
    assert [(int(e) >> PACK, int(e) % (1 << PACK)) for e in blocks[first[1] : first[2]]] == [(0, 1), (1, 0)]


# The walks that a region's file has


@pytest.mark.parametrize("seed", range(count(sample=26, soak=520)))
def test_a_table_recut_lists_the_patterns_blocks(seed):
    """Made for blocks of 32 (or of the set), cut and joined for blocks of any size, in two loops and in one."""
    rng = random.Random(seed)
    kind, text = list(patterns(rng).items())[seed % len(KINDS)]
    square = kind not in ("all", "lag", "ahead", "band", "columns")
    n, back, loops = rng.choice((65, 200, 300)) if "b" not in kind[:2] else 120, rng.random() < 0.5, rng.choice((1, 2))
    nk = n if square else rng.randint(1, n)
    pattern, head = Pattern.parse(text).at(n), 0
    block = static_block(pattern)
    bm, bn = rng.choice(pairs(block))
    w, grain = gathered(pattern, n, nk, back, [head if pattern.per_head else None], 1, block or 32, 1 << 20)
    made = Walk(w.pieces, w.block, w.slots, w.plan, tuple(map(torch.from_numpy, w.table)), w.packed, w.keep)
    w = chosen(table(made, grain, back), (bm, bn, loops), torch.device("cpu"))
    q, k = np.arange(n)[:, None], np.arange(nk)[None]
    meta = {"segments": (np.zeros(n, int), np.zeros(nk, int))} if "segment" in text else None
    seen = np.broadcast_to(holds(pattern, q, k, head=head, np=np, n=max(n, nk), meta=meta), (n, nk))

    assert loops == 2 or w.slots == (False,)
    check(w, seen.astype(int), *((bn, bm) if back else (bm, bn)), back)
    if seen.max() > 1:
        assert not w.keep
        mine = [j for j, _ in listed(w, 0, *(seen.T if back else seen).shape, bm, bn)]
        assert len(mine) == sum(seen[::bm, ::bn].T[0] if back else seen[::bm, ::bn][0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("back", [False, True])
def test_a_file_walks_blocks_of_every_size(kind, back):
    pattern = Pattern.parse(patterns(random.Random(3))[kind]).at(120)
    heads = [0, 1] if pattern.per_head else [None]
    text = Walks(static_block(pattern))
    text.add("WALKS", pattern, 120, 120, back, heads, 1)
    scope = {"host": host, "launch": launch, "pieces": pieces, "walks": walks}
    exec("\n".join(text.lines), scope, found := {})

    for (bm, bn), loops in itertools.product(pairs(static_block(pattern)), (1, 2)):
        w = chosen(found["WALKS"], (bm, bn, loops), torch.device("cpu"))
        assert len(w.slots) <= loops
    if not closed(pattern) and not static_block(pattern) and not pattern.per_head:
        with pytest.raises(ValueError, match="not 8 x 16: compile it again"):
            chosen({k: v for k, v in found["WALKS"].items() if k}, (8, 16, 2), torch.device("cpu"))
