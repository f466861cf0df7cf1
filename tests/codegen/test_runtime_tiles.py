"""The general layout: any predicate, data-dependent ones too, and scores that depend on positions."""

import torch

from tests.codegen.attention_oracle import check, operands
from weft.codegen.runtime import attention_tiles
from weft.codegen.runtime.attention import Causal, Merge, PerHead, Rectangle, Scored, Strict, Tiles, at

SIZES = [(0, 0), (1, 1), (3, 0), (7, 7), (40, 29), (29, 40), (130, 130)]
SHAPES = [{}, {"order": "token"}, {"batch": 1, "kv": 4, "width_v": 5}, {"batch": 5, "kv": 1}]


def grid(n: int, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(n)[:, None], torch.arange(m)


def strided_or_near(q, k, h=0):
    return (k <= q) & (((q - k) % 7 == 0) | (q - k < 3))


def near(start, stop):
    return ((start - 9, stop),)


def test_any_predicate():
    for n, m in SIZES:
        for shape in SHAPES:
            given, (i, j) = operands(n, m, **shape), grid(n, m)
            check(Tiles(strided_or_near, 16), strided_or_near(i, j), given)
            causal = Tiles(lambda q, k, h: k <= q, 8, lambda start, stop: ((0, stop),))
            check(causal, j <= i, given)
            window = Tiles(lambda q, k, h: (k <= q) & (q - k < 10), 8, near)
            check(window, (j <= i) & (i - j < 10), given)


def test_groups_of_tiles_stay_within_their_bound(monkeypatch):
    given, (i, j) = operands(500, 500, batch=2), grid(500, 500)
    window = Tiles(lambda q, k, h: (k <= q) & (q - k < 10), 8, near)
    many = list(window.groups(given[1], given[2]))
    assert max(group.tiles for group in many) > 20
    monkeypatch.setattr(attention_tiles, "PAIRS_AT_ONCE", 2 * 4 * 8 * 17 * 3)
    few = list(window.groups(given[1], given[2]))
    assert max(group.tiles for group in few) == 3
    assert sum(group.tiles for group in few) == sum(group.tiles for group in many) == 63
    check(window, (j <= i) & (i - j < 10), given)


def test_several_ranges_and_tiles_that_see_nothing():
    def ranges(start, stop):
        return ((0, 4), (start - 4, stop)) if start % 32 else ()

    def keep(q, k, h):
        return (q // 16 % 2 == 1) & ((k < 4) | ((k <= q) & (q - k < 4)))

    for n in (16, 17, 100):
        check(Tiles(keep, 16, ranges), keep(*grid(n, n), 0), operands(n, n))


def test_heads_multiplicity_and_constants():
    given, (i, j) = operands(20, 20), grid(20, 20)
    check(
        Tiles(lambda q, k, h: (k <= q) & (q - k < 2 + h), 8),
        (j <= i) & (i - j < 2 + torch.arange(4).view(4, 1, 1)),
        given,
    )
    check(Tiles(lambda q, k, h: (k <= q) * 1 + (k < 3) * 2, 8), (j <= i) * 1 + (j < 3) * 2, given)
    check(Tiles(lambda q, k, h: True, 8), torch.ones(20, 20), given)
    check(Tiles(lambda q, k, h: False, 8), torch.zeros(20, 20), given)
    upper = Tiles(lambda q, k, h: (k <= q) & (q - k < 2 + h), 8)
    weight = (j <= i) & (i - j < 2 + torch.arange(4).view(4, 1, 1))
    check(PerHead(((range(2, 4), upper),)), weight * torch.tensor([0, 0, 1, 1]).view(4, 1, 1), given)


def test_merges_with_other_layouts():
    rest = Tiles(lambda q, k, h: (k > q) & ((k - q) % 5 == 0), 8)
    i, j = grid(40, 40)
    check(Merge((Causal(), rest)), (j <= i) | ((j - i) % 5 == 0), operands(40, 40))
    check(Merge((rest, Strict(), Rectangle(3, 9, 0, 2))), ((j > i) & ((j - i) % 5 == 0)) * 1 + (j < i) * 1
          + ((i >= 3) & (i < 9) & (j < 2)) * 1, operands(40, 40))  # fmt: skip


def test_metadata():
    n = 45
    segment = torch.stack([torch.arange(n) // 10, torch.arange(n) // 17])
    i, j = grid(n, n)
    weight = (j <= i) & (segment[:, None, :, None] == segment[:, None, None, :])
    same = Tiles(lambda q, k, h, s: (k <= q) & (at(s, q) == at(s, k)), 16)
    for shape in ({}, {"order": "token", "kv": 1}):
        check(same, weight, operands(n, n, **shape), metadata=(segment,))
    check(Merge((same,)), weight, operands(n, n), metadata=(segment,))


def test_scores_that_depend_on_value_and_position():
    def soft_cap(s, q, k, h):
        return 2 * torch.tanh(s / 2) - 0.1 * (h + 1) * (q - k)

    def slope(s, q, k, h):
        return 1 - torch.tanh(s / 2) ** 2

    head = torch.arange(4).view(4, 1, 1)
    for n, m in SIZES:
        i, j = grid(n, m)
        for shape in SHAPES:
            layout = Scored(lambda q, k, h: k <= q, 16, lambda start, stop: ((0, stop),), score=soft_cap, slope=slope)
            given = operands(n, m, **shape)
            check(layout, j <= i, given, score=lambda s, i=i, j=j: soft_cap(s, i, j, head))
    layout = Scored(lambda q, k, h: k < q, 16, score=soft_cap, slope=slope)
    given = operands(40, 40, dtype=torch.float32)
    check(layout, grid(40, 40)[1] < grid(40, 40)[0], given, 1e-5, score=lambda s: soft_cap(s, *grid(40, 40), head))
