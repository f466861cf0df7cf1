"""Layouts: disjoint parts whose union is the pattern, for every length; and the ones that the known patterns get."""

import random

import numpy as np
import pytest

from tests.campaign import count
from tests.ir.pattern.oracle import predicate
from tests.ir.pattern.parts import part_holds
from weft.errors import FormulaError
from weft.ir.pattern import Pattern, PatternLayout, holds, layout, solve
from weft.ir.pattern.formula import any_of
from weft.ir.pattern.layout import ARGUMENTS, NESTING, SHIFTING, part
from weft.ir.pattern.meaning import holds_formula
from weft.ir.pattern.terms import disjoint, terms
from weft.ir.pattern.writing import written

EXPECTED = {
    "all": "dense",
    "causal": "causal",
    "strict_causal": "strict",
    "k <= q - 5": "lag(steps=5)",
    "window(20)": "window(width=20)",
    "0 <= q - k and not q - k >= 20": "window(width=20)",
    "window_inclusive(20) and causal": "window(width=21)",
    "window_before(20)": "band(left=20, right=-1)",
    "band(20, 10)": "band(left=20, right=10)",
    "block_diagonal(16)": "diagonal(block=16, inner=dense)",
    "causal and q // 16 == k // 16": "diagonal(block=16, inner=causal)",
    "causal and strided(16)": "residues(modulus=16, inner=causal)",
    "strided(16)": "residues(modulus=16, inner=dense)",
    "dilated(5, 16)": "residues(modulus=16, inner=window(5))",
    "dilated_band(3, 4, 16)": "residues(modulus=16, inner=band(3, 4))",
    "causal and (window(16) or strided(16))": "residues(modulus=16, inner=strict) | window(width=16)",
    "causal and (window_inclusive(16) or strided(16))": "residues(modulus=16, inner=lag(2)) | window(width=17)",
    "causal and fixed(16, 4)": "columns(modulus=16, start=12, width=4) | diagonal(block=16, inner=causal)",
    "causal and fixed_with_zero(16, 4)": "columns(modulus=16, start=0, width=1) | "
    "columns(modulus=16, start=12, width=4) | diagonal(block=16, inner=causal)",
    "chunks_before(16)": "columns(modulus=16, start=0, width=16)",
    "rows(6)": "rows(count=6, inner=dense)",
    "cols(6)": "cols(count=6, start=0, inner=dense)",
    "longformer(9, 9, 6)": "band(left=9, right=9, start=6) | cols(count=6, start=6, inner=dense) | "
    "rows(count=6, inner=dense)",
    "causal and (window(20) or cols(4))": "cols(count=4, start=0, inner=causal) | window(width=20, start=4)",
    "prefix(40)": "causal(start=40) | cols(count=40, start=0, inner=dense)",
    "causal and heads(window(16), strided(16))": "heads 0:4:2: window(width=16) | "
    "heads 1:4:2: residues(modulus=16, inner=causal)",
    "on_heads(0, 3, window(9)) or h == 3": "heads 0:3:1: window(width=9) | heads 3:4:1: dense",
    "on_heads(0, 2, causal)": "heads 0:2:1: causal",
    "blocks(16, [all, [0, 1, 1], [0, 2], [3]])": "blocks(blocks(16, [all, [0, 1, 1], [0, 2], [3]]))",
    "bigbird(16, 2, 1)": "blocks(bigbird(16, 2, 1, 600))",
    "causal and same_segment": "tiles(causal and same_segment)",
    "causal and (q + k) % 7 != 2": "tiles(causal and (q + k) % 7 != 2)",
    "false": "nothing",
}


@pytest.mark.parametrize("text", EXPECTED)
def test_known_patterns_get_their_shapes(text):
    pattern = Pattern.parse(text)

    chosen = layout(pattern, 60 if "blocks" in text else 600, heads=4)

    assert str(chosen) == EXPECTED[text]
    assert PatternLayout.parse(str(chosen)) == chosen


def covers(pattern: Pattern, chosen: PatternLayout, n: int, heads: int = 1) -> None:
    """Every visible pair is in exactly one part, with its multiplicity; no other pair is in any."""
    q, k, h = np.arange(n)[:, None], np.arange(n)[None], np.arange(heads)[:, None, None]
    expected = np.broadcast_to(holds(pattern, q, k, head=h, n=n) * 1, (heads, n, n))
    total = np.zeros((heads, n, n), int)
    for p in chosen.parts:
        total += part_holds(p, q, k, head=h, n=n) * 1
    np.testing.assert_array_equal(total, expected, err_msg=f"{pattern} as {chosen}, {n}")


@pytest.mark.parametrize("text", [t for t in EXPECTED if "segment" not in t and "b" not in t.split("(")[0][:1]])
def test_parts_are_disjoint_and_cover_at_every_length(text):
    pattern = Pattern.parse(text)
    chosen = layout(pattern, 600, heads=4)
    for n in (1, 7, 16, 33, 64, 95):
        covers(pattern, chosen, n, heads=4)


TABLES = ["blocks(16, [all, [0, 1, 1], [0, 2], [3]])", "bigbird(16, 2, 1, 100)", "band(20, 10)"]


@pytest.mark.parametrize("text", TABLES)
def test_tables_and_bands_cover_too(text):
    for n in (1, 33, 64):
        covers(Pattern.parse(text), layout(Pattern.parse(text), n, heads=2), n, heads=2)


def test_generated_patterns_are_covered():
    r = random.Random(9)
    for _ in range(count(40, 400)):
        parts = [predicate(r, 1) for _ in range(r.randint(1, 3))]
        pattern = Pattern.parse(f"{r.choice(['causal and ', ''])}({' or '.join(parts)})")
        chosen = layout(pattern, r.choice([64, 500, 4096]), r.choice([16, 128]))
        for n in (40, 61):
            covers(pattern, chosen, n)
        assert PatternLayout.parse(str(chosen)) == chosen


def test_terms_are_a_union_and_disjoint_ones_a_partition():
    r, (q, k) = random.Random(10), (np.arange(50)[:, None], np.arange(50)[None])
    for _ in range(count(60, 600)):
        pattern = Pattern.parse(predicate(r, 3))
        split = terms(pattern.formula)

        some = [holds_formula(t, q, k) for t in disjoint(split)]

        np.testing.assert_array_equal(sum(s * 1 for s in some) + 0 * q * k, holds(pattern, q, k) * 1)
        np.testing.assert_array_equal(holds_formula(any_of(*split), q, k), holds(pattern, q, k))


def test_a_computed_formula_is_written_in_the_grammar():
    r, (q, k) = random.Random(11), (np.arange(50)[:, None], np.arange(50)[None])
    for _ in range(count(100, 1000)):
        pattern = Pattern.parse(predicate(r, 2))

        again = Pattern.parse(written(pattern.formula))

        np.testing.assert_array_equal(holds(again, q, k), holds(pattern, q, k), err_msg=again.text)


def test_every_part_of_the_table_means_its_definition():
    q, k = np.arange(60)[:, None], np.arange(60)[None]
    d, inner = q - k, {"dense": k >= 0 * q, "causal": k <= q, "strict": k < q, "lag(3)": k <= q - 3}
    inner |= {"window(2)": (q - k >= 0) & (q - k < 2), "band(1, 2)": (k - q >= -1) & (k - q <= 2)}

    def seen(name, *values, **given):
        return part_holds(part(name, *values, **given), q, k)

    assert (seen("lag", -4) == (k <= q + 4)).all()
    assert (seen("band", 3, -1) == ((k - q >= -3) & (k - q <= -1))).all()
    assert (seen("columns", 8, 5, 2) == ((k // 8 < q // 8) & (k % 8 >= 5) & (k % 8 < 7))).all()
    assert (seen("window", 5, start=7) == ((d >= 0) & (d < 5) & (q >= 7) & (k >= 7))).all()
    for name, core in inner.items():
        by_class = core[q // 8, k // 8]
        assert (seen("residues", 8, inner=name) == ((d % 8 == 0) & by_class)).all()
        assert (seen("diagonal", 8, inner=name) == ((q // 8 == k // 8) & core)).all()
        assert (seen("rows", 9, inner=name) == ((q < 9) & core)).all()
        assert (seen("cols", 9, 20, inner=name) == ((k < 9) & (q >= 20) & core)).all()
    assert set(NESTING) | set(SHIFTING) < set(ARGUMENTS)


def test_the_rejected_layouts_are_kept_with_their_cost():
    chosen = layout(Pattern.parse("causal and (window(128) or strided(128))"), 12288)

    assert chosen.cost < min(price for _, _, price in chosen.rejected)
    assert {why for _, why, _ in chosen.rejected} == {"dearer"}
    assert sum(p.touched for p in chosen.parts) <= chosen.cost


def test_cost_is_near_the_pairs_that_are_visible():
    n = 12288
    for text, waste in (("causal and strided(128)", 2.1), ("causal and fixed(128, 32)", 1.1), ("window(256)", 1.2)):
        assert layout(Pattern.parse(text), n).cost < waste * solve(text, n).nnz


def test_more_keys_than_queries():
    assert str(layout(Pattern.parse("all"), 10, nk=300)) == "dense"
    assert str(layout(Pattern.parse("k <= q + 290"), 10, nk=300)) == "lag(steps=-290)"


@pytest.mark.parametrize("text", ["windo(width=3)", "window()", "window(width=x)", "rows(count=3, inner=foo)", "| |"])
def test_a_text_that_is_no_layout_is_refused(text):
    with pytest.raises(FormulaError):
        PatternLayout.parse(text)


def test_a_summary_is_short():
    table = layout(Pattern.parse("blocks(4, [" + ", ".join(["[0, 1]"] * 50) + "])"), 200)

    assert len(table.summary()) < 100
    assert len(str(table)) > 300
