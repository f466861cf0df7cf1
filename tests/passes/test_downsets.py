"""The partition search against every set partition of small DAGs."""

import random
from collections.abc import Iterator

import pytest

from tests.campaign import count
from weft.passes.fusion.downsets import Dag, Mates, bits, partition


def set_partitions(items: list[int]) -> Iterator[list[int]]:
    if not items:
        yield []
        return
    first, rest = 1 << items[0], items[1:]
    for p in set_partitions(rest):
        yield [first, *p]
        for i in range(len(p)):
            yield [*p[:i], p[i] | first, *p[i + 1 :]]


def acyclic(preds: tuple[int, ...], groups: list[int]) -> bool:
    left = list(groups)
    done = 0
    while left:
        ready = [g for g in left if not any(preds[v] & ~(done | g) for v in bits(g))]
        if not ready:
            return False
        left = [g for g in left if g not in ready]
        for g in ready:
            done |= g
    return True


def case(rng: random.Random, n: int):
    preds = tuple(sum(1 << u for u in rng.sample(range(v), min(v, rng.choice([0, 1, 1, 2])))) for v in range(n))
    odds = rng.choice([0.3, 0.6, 0.85])
    table = {
        g: None if g & (g - 1) and rng.random() < odds else rng.randint(1, 10) + 2 * g.bit_count()
        for g in range(1, 1 << n)
    }
    return preds, table


def test_prices_equal_brute_force():
    for seed in range(count(sample=40, soak=200)):
        rng = random.Random(seed)
        n = rng.randint(3, 7)
        preds, table = case(rng, n)
        dag = Dag(preds)
        everything = [p for p in set_partitions(list(range(n))) if acyclic(preds, p)]
        best = min(sum(table[g] for g in p) for p in everything if None not in [table[g] for g in p])
        may = tuple(
            sum(1 << u for u in range(n) if any(table[g] and g >> u & g >> v & 1 for g in table)) for v in range(n)
        )
        for mates in (None, Mates(may, Mates.unknown(n).link)):
            got = partition(dag, table.__getitem__, mates)
            assert got.cost == best == sum(table[g] for g in got.groups), seed
            assert got.exact
            done = 0
            for g in got.groups:  # runs in the order given, and covers every node once
                assert not any(preds[v] & ~(done | g) for v in bits(g))
                assert not done & g
                done |= g
            assert done == (1 << n) - 1


def test_two_classes_that_form_a_cycle_are_solved_together():
    # 0 -> 1, 2 -> 3 with {0, 3} and {1, 2} each worth fusing, but not both
    preds = (0, 1, 0, 4)
    prices = {1: 5, 2: 5, 4: 5, 8: 5, 0b1001: 1, 0b0110: 2}
    may = (0b1001, 0b0110, 0b0110, 0b1001)
    got = partition(Dag(preds), prices.get, Mates(may, may))
    assert got.cost == 11
    assert 0b1001 in got.groups


def test_past_the_limit_the_answer_is_greedy_and_says_so():
    preds = tuple(1 << v - 1 if v else 0 for v in range(12))
    prices = [None, 3, 4]
    exact = partition(Dag(preds), lambda g: prices[g.bit_count()] if g.bit_count() < 3 else None)
    greedy = partition(Dag(preds), lambda g: prices[g.bit_count()] if g.bit_count() < 3 else None, limit=10)
    assert exact.exact
    assert exact.cost == 24
    assert not greedy.exact
    assert greedy.cost >= exact.cost


def plainly_merged(preds: tuple[int, ...], table: dict[int, int | None]) -> list[int]:
    """Two groups at a time, those that save most; whether that makes a cycle is tried on all of them."""
    groups = [1 << v for v in range(len(preds))]
    while True:
        pairs = [(a, b) for i, a in enumerate(groups) for b in groups[i + 1 :] if Dag(preds).convex(a | b)]
        saved = {(a, b): table[a] + table[b] - table[a | b] for a, b in pairs if table[a | b] is not None}
        merged = {p: [*(g for g in groups if g not in p), p[0] | p[1]] for p, gain in saved.items() if gain > 0}
        free = [p for p, then in merged.items() if acyclic(preds, then)]
        if not free:
            return groups
        groups = merged[max(free, key=lambda p: saved[p])]


def test_greedy_merges_close_no_cycle():
    for seed in range(count(sample=60, soak=600)):
        rng = random.Random(seed)
        preds, table = case(rng, rng.randint(3, 9))

        got = partition(Dag(preds), table.__getitem__, limit=0)

        assert sorted(got.groups) == sorted(plainly_merged(preds, table)), seed


@pytest.mark.parametrize("width", [6])
def test_hull_takes_in_what_lies_between(width: int):
    dag = Dag(tuple(1 << v - 1 if v else 0 for v in range(width)))
    assert dag.hull(1 | 1 << width - 1) == (1 << width) - 1
    assert dag.convex(0b110)
    assert not dag.convex(0b101)
