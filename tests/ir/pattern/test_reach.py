"""Reach of ordered stacks against products of dense matrices, and witness paths against the patterns themselves."""

import random

import numpy as np
import pytest

from tests.campaign import count
from tests.ir.pattern.oracle import grid, predicate
from weft.ir.pattern import Pattern, State, holds, reach

LOCAL, SUMMARY = "causal and block_diagonal(8)", "causal and k % 8 == 7"


def dense(stack: list[str], n: int) -> np.ndarray:
    out = np.eye(n, dtype=bool)
    for text in stack:
        out = ((grid(text, n) | np.eye(n, dtype=bool)).astype(int) @ out.astype(int)) > 0
    return out


def test_products_of_generated_stacks_in_tokens():
    r = random.Random(13)
    for _ in range(count(20, 200)):
        stack, n = [predicate(r, 1) for _ in range(r.randint(1, 4))], r.choice([30, 64])

        found = reach(stack, n)

        assert found.exact
        reached = dense(stack, n)
        asked = np.tril(np.ones((n, n), bool)) if found.causal else np.ones((n, n), bool)
        assert found.fraction == pytest.approx(reached[asked].mean())
        for key, query in ((r.randrange(n), r.randrange(n)) for _ in range(5)):
            path = found.path(key, query)
            assert (path is not None) == reached[query, key]
            if path is not None:
                follows(path.tokens, stack, key, query)


def follows(tokens: tuple[int, ...], stack: list, key: int, query: int) -> None:
    """Each layer moves along a pair that its pattern shows, or stays."""
    assert (tokens[0], tokens[-1], len(tokens)) == (key, query, len(stack) + 1)
    for layer, before, after in zip(stack, tokens, tokens[1:]):
        if before != after:
            assert holds(Pattern.parse(layer), after, before)


def test_the_order_of_layers_matters():
    assert reach([LOCAL, SUMMARY], 64).full
    assert reach([SUMMARY, LOCAL], 64).fraction == pytest.approx(0.246, abs=1e-3)
    assert reach([LOCAL, SUMMARY], 64).full_after == 2
    assert reach([LOCAL, SUMMARY], 64).path(0, 50).tokens == (0, 7, 50)
    assert str(reach([LOCAL, SUMMARY], 64).path(0, 50)) == "0 -> 7 -> 50 in 2 layers"
    assert reach([SUMMARY, LOCAL], 64).path(0, 50) is None


def test_causal_bigbird_is_slow_to_reach_and_the_bidirectional_one_is_not():
    n, text = 256 * 4, "bigbird(4, 2, 0)"

    assert reach([text] * 2, n, block=4).full
    assert not reach([f"causal and {text}"] * 4, n, block=4).full


def test_eighty_five_layers_of_a_sliding_window_in_256_blocks():
    found = reach(["causal and window(769)"] * 85, 65536)

    assert found.block == 256
    assert not found.exact
    assert found.full
    assert found.full_after == 85
    assert str(found.path(0, 65535)).endswith("in 85 layers (blocks of 256)")


def test_a_path_in_tokens_where_reach_is_in_blocks():
    stack = ["causal and block_diagonal(64)", "causal and k % 64 == 63"]
    found = reach(stack, 4096)

    path = found.path(3, 900)

    assert found.block == 16
    follows(path.tokens, stack, 3, 900)
    assert found.path(900, 3) is None


def test_blocks_never_miss_what_tokens_reach():
    r, n = random.Random(14), 60
    for _ in range(count(20, 200)):
        stack = [predicate(r, 1) for _ in range(3)]
        coarse, fine = reach(stack, n, block=4), dense(stack, n)

        for query, key in zip(*np.nonzero(fine)):
            assert coarse._steps[-1][query // 4, key // 4]


def test_a_recurrent_layer_is_told_apart():
    found = reach(["causal and window(4)", State(size=1024)], 64)

    assert found.full
    assert found.by_attention == pytest.approx(reach(["causal and window(4)"], 64).fraction)
    assert found.path(0, 60).state
    assert str(found.path(0, 60)).endswith("through a state")
    assert not found.path(58, 60).state


def test_a_layer_reaches_what_any_head_sees():
    assert reach(["causal and heads(window(4), strided(4))"] * 2, 32, heads=2).full
    assert not reach(["causal and heads(window(4), strided(4))"] * 2, 32, heads=1).full
