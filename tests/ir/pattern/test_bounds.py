"""Guarantees about whole patterns, against brute force on short sequences."""

import random

import numpy as np
import pytest

from tests.campaign import count
from tests.ir.pattern.oracle import grid, predicate
from weft.ir.pattern import Pattern, growth, holds, is_causal, max_distance, rows_seeing_nothing

SQRT = {n: int(n**0.5) for n in (1 << i for i in range(10, 19))}


@pytest.mark.parametrize(
    ("text", "causal", "distance"),
    [
        ("causal", True, None),
        ("strict_causal", True, None),
        ("window(4096)", True, 4095),
        ("window_inclusive(7)", True, 7),
        ("window_before(512)", True, 512),
        ("band(256, 128)", False, 256),
        ("dilated(256, 4)", True, 1020),
        ("causal and block_diagonal(1000)", True, 999),
        ("causal and strided(128)", True, None),
        ("causal and window(64) and q // 50 == k // 50", True, 49),
        ("causal and (window(20) or cols(4))", True, None),
        ("causal and heads(window(8), dilated(8, 8))", True, 56),
        ("heads(causal, all)", False, None),
        ("window(9) and valid", True, 8),
        ("window(9) or same_segment", False, None),
        ("k > q + 3", False, -1),
        ("false", True, -1),
    ],
)
def test_known_patterns(text, causal, distance):
    pattern = Pattern.parse(text)

    assert is_causal(pattern, heads=2) is causal
    assert max_distance(pattern, heads=2) == distance


def test_static_tables():
    table = Pattern.parse("blocks(4, [[0], [0, 1], [2], [1, 3]])")

    assert max_distance(table, 16) == 11  # from query 15 to key 4
    assert max_distance(Pattern.parse("blocks(4, [[0], [0, 1], [2], [3]])"), 16) == 7
    assert not is_causal(table, 16)
    assert is_causal(table & Pattern.parse("causal"), 16)


def test_over_generated_patterns():
    r, n = random.Random(12), 90
    for _ in range(count(60, 600)):
        pattern = Pattern.parse(predicate(r, 2))
        seen = grid(str(pattern), n)
        q, k = np.nonzero(seen)

        if is_causal(pattern):
            assert (k <= q).all(), str(pattern)
        distance = max_distance(pattern)
        if distance is not None:
            assert (q - k).max(initial=-1) <= distance, str(pattern)
        empty = np.zeros(n, bool)
        for first, end in rows_seeing_nothing(pattern, n):
            empty[first:end] = True
        np.testing.assert_array_equal(empty, ~seen.any(1), err_msg=str(pattern))


def test_a_distance_is_reached():
    for text in ("window(9)", "dilated(5, 3)", "causal and block_diagonal(12)", "band(6, 2)"):
        pattern = Pattern.parse(text)
        q, k = np.nonzero(holds(pattern, np.arange(60)[:, None], np.arange(60)[None]))

        assert (q - k).max() == max_distance(pattern)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("causal", ()),
        ("strict_causal", ((0, 1),)),
        ("q >= 4 and causal", ((0, 4),)),
        ("k > q + 3", ((996, 1000),)),
        ("heads(causal, strict_causal)", ((0, 1),)),
        ("k % 7 == 3 and q // 7 == k // 7 and q < k", None),
        ("blocks(100, [[0], [], [1], [], [4], [], [], [], [], [0]])", ((100, 200), (300, 400), (500, 900))),
    ],
)
def test_rows_that_see_nothing(text, rows):
    pattern = Pattern.parse(text)

    found = rows_seeing_nothing(pattern, 1000, heads=2)

    if rows is None:
        seen = grid(text, 1000).any(1)
        assert sum(end - first for first, end in found) == (~seen).sum()
    else:
        assert found == rows


@pytest.mark.parametrize(
    ("text", "exponent"),
    [
        ("causal", 2.0),
        ("causal and strided({root})", 1.5),
        ("causal and fixed({root}, 8)", 1.5),
        ("causal and (window({root}) or strided({root}))", 1.5),
        ("window(64)", 1.0),
        ("causal and strided(128)", 2.0),
        ("causal and fixed(128, 32)", 2.0),
    ],
)
def test_only_a_stride_near_the_root_of_n_is_n_root_n(text, exponent):
    found = growth(lambda n: Pattern.parse(text.format(root=SQRT[n])), list(SQRT))

    assert found.exponent == pytest.approx(exponent, abs=0.06)
    assert found.density[0] == found.nnz[0] / found.lengths[0] ** 2
