import random

import numpy as np
import pytest
import sympy as sp
import torch

from tests.campaign import count
from tests.ir.pattern.oracle import grid, predicate
from weft.errors import FormulaError
from weft.ir.pattern import NAMED, Pattern, holds, opaque_atoms, to_sympy

N = 40


def indices(np_=np):
    return np_.arange(N)[:, None], np_.arange(N)[None]


def test_holds_is_the_text_over_generated_patterns():
    r = random.Random(2)
    for _ in range(count(150, 3000)):
        text = predicate(r, r.choice([1, 2, 3]))
        pattern = Pattern.parse(text)

        np.testing.assert_array_equal(holds(pattern, *indices()), grid(text, N), err_msg=text)
        np.testing.assert_array_equal(holds(pattern, *indices(torch), np=torch).numpy(), grid(text, N), err_msg=text)


def test_to_sympy_is_the_text_over_generated_patterns():
    r, (q, k) = random.Random(3), sp.symbols("q k", integer=True)
    points = [(r.randrange(N), r.randrange(N)) for _ in range(12)]
    for _ in range(count(40, 500)):
        text = predicate(r, 2)
        condition, truth = to_sympy(Pattern.parse(text), q, k), grid(text, N)

        assert not condition.has(sp.floor)
        assert [bool(condition.subs({q: a, k: b})) for a, b in points] == [truth[p] for p in points], text


BY_HEAD = ["heads(window(4), strided(3), causal)", "on_heads(1, 3, causal) or h >= 3", "fixed_heads(8, 2, 4)"]


@pytest.mark.parametrize("text", BY_HEAD)
def test_heads(text):
    pattern, heads = Pattern.parse(text), 5

    every = holds(pattern, *indices(), head=np.arange(heads)[:, None, None])

    for h in range(heads):
        np.testing.assert_array_equal(every[h], grid(text, N, head=h))
        np.testing.assert_array_equal(every[h], holds(pattern, *indices(), head=h))
    assert pattern.per_head
    groups = pattern.groups(heads)
    assert [g[0] for g in groups] + [heads] == [0, *(g[1] for g in groups)]
    with pytest.raises(FormulaError, match="say which head"):
        holds(pattern, *indices())


def test_the_three_published_readings_of_fixed():
    """Long Range Arena's masks and openai/sparse_attention's layout, as their sources write them; l = 16, c = 4."""
    q, k = indices()
    rem = k % 16
    same = q // 16 == k // 16
    assert (holds(Pattern.parse("fixed(16, 4)"), q, k) == (same | (rem >= 12))).all()
    assert (holds(Pattern.parse("fixed_with_zero(16, 4)"), q, k) == (same | (rem == 0) | (rem >= 12))).all()
    blocksize, stride, vertsize = 2, 8, 2  # so 16 tokens to a stride, 4 to a sub-block
    turned = np.arange(stride - 1, -1, -1).reshape(-1, vertsize)
    for h in range(6):
        layout = np.zeros((N // blocksize, N // blocksize), bool)
        for column in turned[h % 3]:
            layout[:, np.arange(column, N // blocksize, stride)] = True
        expected = np.kron(layout, np.ones((blocksize, blocksize), bool)) | same
        assert (holds(Pattern.parse("fixed_heads(16, 4, 3)"), q, k, head=h) == expected).all()


def test_windows_differ_by_their_ends():
    def row(name):
        return np.flatnonzero(holds(Pattern.parse(f"{name}(3)"), 20, np.arange(N))).tolist()

    assert row("window") == [18, 19, 20]
    assert row("window_inclusive") == [17, 18, 19, 20]
    assert row("window_before") == [17, 18, 19]


def test_a_block_listed_twice_counts_twice():
    pattern = Pattern.parse("blocks(4, [all, [0, 1, 1], [0, 2]]) and causal")
    q, k = np.arange(12)[:, None], np.arange(12)[None]

    counts = holds(pattern, q, k)

    expected = np.kron([[1, 1, 1], [1, 2, 0], [1, 0, 1]], np.ones((4, 4), int)) * (k <= q)
    np.testing.assert_array_equal(counts, expected)
    assert pattern.multiset
    assert not Pattern.parse("not blocks(4, [[0, 0]])").multiset


def test_tables_per_head_and_in_torch():
    pattern = Pattern.parse("blocks(2, [[0], [0, 1]], [[0, 1], [1]])")
    q, k, h = torch.arange(4)[None, :, None], torch.arange(4)[None, None], torch.arange(3)[:, None, None]

    got = holds(pattern, q, k, head=h, np=torch)

    first, second = np.kron([[1, 0], [1, 1]], np.ones((2, 2))), np.kron([[1, 1], [0, 1]], np.ones((2, 2)))
    np.testing.assert_array_equal(got.numpy(), np.stack([first, second, first]).astype(bool))


def test_bigbird_rows():
    table = Pattern.parse("bigbird(4, 3, 5, 64)").formula.table
    for head in range(4):
        rows = table.rows(head)
        assert rows[0] is None
        assert rows[-1] is None
        for i, row in enumerate(rows[1:-1], 1):
            assert len(set(row)) == len(row)
            assert {0, i - 1, i, i + 1, 15} <= set(row)
            assert len(row) == len({0, i - 1, i, i + 1, 15}) + 3
        queries, keys = table.entries(head)
        listed = [sorted(keys[queries == i].tolist()) for i in range(16)]
        assert listed == [sorted(range(16) if r is None else r) for r in rows]
    assert table.rows(0) != table.rows(1)


def test_bigbird_on_a_short_sequence_sees_what_there_is():
    for n in (1, 4, 5, 9, 13, 17, 21):
        pattern = Pattern.parse("bigbird(4, 3, 5)")
        assert holds(pattern, np.arange(n)[:, None], np.arange(n)[None], head=0, n=n).any(1).all()


def test_metadata_comes_from_vectors():
    pattern = Pattern.parse("causal and same_segment and not (q == 0 and valid)")
    q, k = torch.arange(6)[:, None], torch.arange(6)[None]
    segments = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 2, 2]])
    valid = torch.tensor([[True] * 6, [False] * 6])
    meta = {"segments": (segments[:, :, None], segments[:, None]), "valid": (None, valid[:, None])}

    got = holds(pattern, q, k, meta=meta, np=torch)

    same = segments[:, :, None] == segments[:, None]
    assert torch.equal(got, (k <= q) & same & ~((q == 0) & valid[:, None]))
    assert pattern.metadata == ("segments", "valid")
    with pytest.raises(FormulaError, match="metadata vector 'segments'"):
        holds(pattern, q, k, np=torch)


def test_opaque_atoms_become_given_expressions():
    q, k, m = *sp.symbols("q k", integer=True), sp.Symbol("m", integer=True)
    pattern = Pattern.parse("blocks(4, [[0, 0]]) and causal")
    (table,) = opaque_atoms(pattern)

    written = to_sympy(pattern, q, k, given={table: m})

    assert written.subs({q: 3, k: 1, m: 2}) == 2
    assert written.subs({q: 1, k: 3, m: 2}) == 0
    with pytest.raises(FormulaError, match="no expression was given"):
        to_sympy(pattern, q, k)


def test_named_patterns_say_what_they_mean():
    assert len({n.name for n in NAMED}) == len(NAMED)
    assert all(n.meaning for n in NAMED)
