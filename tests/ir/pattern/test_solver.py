"""The solver against brute force: every block's class and count, both ways round; and its work at a million tokens."""

import random

import islpy
import numpy as np
import pytest

from tests.campaign import count
from tests.ir.pattern.oracle import grid, predicate
from weft.errors import FormulaError
from weft.ir.pattern import NAMED, Pattern, Plan, holds, solve
from weft.ir.pattern.plan import floor_sum

MILLION = 1 << 20
BLOCKS = [(4, 4), (4, 8), (8, 4), (8, 8), (16, 8), (5, 7), (16, 16)]


def blocks_of(visible: np.ndarray, bm: int, bn: int) -> tuple[np.ndarray, np.ndarray]:
    """Class (0 empty, 1 partial, 2 full) and count of every block of a bool grid."""
    (n, m), (rows, columns) = visible.shape, (-(-visible.shape[0] // bm), -(-visible.shape[1] // bn))
    padded = np.zeros((rows * bm, columns * bn), int)
    padded[:n, :m] = visible
    counts = padded.reshape(rows, bm, columns, bn).sum((1, 3))
    height = np.minimum(bm, n - np.arange(rows) * bm)[:, None]
    return np.where(counts == 0, 0, np.where(counts == height * bn, 2, 1)), counts


def blocks_in(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    kinds = np.zeros((plan.shape.rows, plan.shape.columns), int)
    counts = np.zeros_like(kinds)
    for i in range(plan.shape.rows):
        for j, full, pairs in plan.blocks(i):
            assert kinds[i, j] == 0, "a block comes twice"
            kinds[i, j], counts[i, j] = 2 if full else 1, pairs
    return kinds, counts


def agrees(plan: Plan, visible: np.ndarray, label: str) -> None:
    kinds, counts = blocks_of(visible, plan.shape.bm, plan.shape.bn)
    got, got_counts = blocks_in(plan)
    if not plan.exact:  # conservative: nothing visible is left out, nothing full is claimed
        assert (got >= 1)[kinds > 0].all(), label
        assert (kinds == 2)[got == 2].all(), label
        assert plan.nnz >= visible.sum(), label
        return
    np.testing.assert_array_equal(got, kinds, err_msg=label)
    np.testing.assert_array_equal(got_counts, counts, err_msg=label)
    totals = (int((kinds == 2).sum()), int((kinds == 1).sum()), int((kinds == 0).sum()), int(visible.sum()))
    assert (plan.full, plan.partial, plan.empty, plan.nnz) == totals, label


def test_exact_over_generated_predicates_both_ways_round():
    r = random.Random(4)
    unusual = 0
    for _ in range(count(60, 500)):
        text = predicate(r, r.choice([1, 2, 2, 3]))
        n = r.choice([64, 96, 97, 128, 150, 256, 300])
        m = r.choice([n, n, 64, 131])
        visible = grid(text, n, m)
        for bm, bn in BLOCKS if count(0, 1) else r.sample(BLOCKS, 4):
            plan, label = solve(text, n, m, bm, bn), f"{text} {n}x{m} in {bm}x{bn}"

            agrees(plan, visible, label)
            agrees(plan.transposed(), visible.T, label + ", transposed")

            unusual += bool(plan.stats.relaxed) + plan.stats.surprises + plan.transposed().stats.surprises
    assert unusual == 0


def test_islpy_agrees_on_a_sample():
    isl = pytest.importorskip("islpy")
    r, n, bm, bn = random.Random(5), 96, 8, 16
    for _ in range(count(6, 60)):
        pattern = Pattern.parse(predicate(r, 1))
        visible = isl.Set(f"{{ [q, k] : 0 <= q < {n} and 0 <= k < {n} and {written(pattern.formula)} }}")
        blocks = isl.Map(f"{{ [q, k] -> [floor(q / {bm}), floor(k / {bn})] }}")
        hidden = isl.Set(f"{{ [q, k] : 0 <= q < {n} and 0 <= k < {n} }}").subtract(visible).apply(blocks)
        touched = visible.apply(blocks)
        full, partial = (points(s, n // bm, n // bn) for s in (touched.subtract(hidden), touched.intersect(hidden)))

        kinds, _ = blocks_in(solve(pattern, n, n, bm, bn))

        np.testing.assert_array_equal(kinds, 2 * full + partial, err_msg=str(pattern))


_SIGNS = {"ge": ">=", "eq": "=", "ne": "!="}


def written(f) -> str:
    """A formula in isl's own language."""
    if isinstance(f, bool):
        return "true" if f else "false"
    if hasattr(f, "parts"):
        return "(" + f" {f.op} ".join(map(written, f.parts)) + ")"
    return f"(({term(f.x)}) {_SIGNS[f.op]} 0)"


def term(x) -> str:
    mods = [f"{w} * (({term(y)}) mod {m})" for (y, m), w in x.mods]
    total = " + ".join([f"{x.q} * q + {x.k} * k + {x.c}", *mods])
    return total if x.den == 1 else f"floor(({total}) / {x.den})"


def points(s, rows: int, columns: int) -> np.ndarray:
    out = np.zeros((rows, columns), int)

    def add(point):
        out[tuple(int(str(point.get_coordinate_val(islpy.dim_type.set, d))) for d in range(2))] = 1

    s.foreach_point(add)
    return out


EXAMPLES = {
    "window": "(4096)", "window_inclusive": "(4096)", "window_before": "(512)", "band": "(512, 512)",
    "dilated": "(256, 4)", "dilated_band": "(256, 256, 4)", "strided": "(128)", "fixed": "(128, 32)",
    "fixed_with_zero": "(128, 32)", "fixed_heads": "(128, 32, 4)", "block_diagonal": "(1024)",
    "columns": "(128, 96, 32)", "rows": "(64)", "cols": "(64)", "longformer": "(256, 256, 64)", "prefix": "(1000)",
    "chunks_before": "(512)",
}  # fmt: skip


@pytest.mark.parametrize("name", [n.name for n in NAMED])
@pytest.mark.parametrize("causal", ["", " and causal"])
def test_the_work_for_a_named_pattern_does_not_grow(name, causal):
    """Counted, not timed: rows and blocks looked at for a million tokens are those for 16 thousand."""
    text = name + EXAMPLES.get(name, "") + causal
    small, large = (solve(text, n, head=1) for n in (1 << 14, MILLION))

    assert large.exact
    assert large.stats.rows_solved <= 64
    assert large.stats.leaves <= 16
    assert large.stats.rows_solved <= small.stats.rows_solved + 8
    assert large.pieces <= 128


def test_closed_form_totals():
    n = MILLION
    assert solve("causal", n).nnz == n * (n + 1) // 2
    assert solve("window(4096)", n).nnz == 4096 * n - 4096 * 4095 // 2
    assert solve("causal and strided(128)", n).nnz == 128 * sum(range(1, n // 128 + 1))
    assert solve("block_diagonal(1024)", n).full == (n // 128) * 8
    fixed = solve("causal and fixed(128, 32)", 12288)
    assert fixed.nnz / 12288 == pytest.approx(1584.5)
    assert fixed.nnz / (12288 * 12289 // 2) == pytest.approx(0.258, abs=5e-4)
    assert solve("causal and strided(128)", 12288).nnz / (12288**2 / 2) == pytest.approx(0.0079, abs=1e-3)


def test_sizes_that_divide_nothing_are_exact_too():
    for text in ("block_diagonal(999)", "causal and fixed(1001, 100)", "chunks_before(999)"):
        plan = solve(text, 1 << 18)

        assert plan.exact
        assert plan.pieces < 6000


@pytest.mark.parametrize(
    "text",
    [
        "k * 7919 % 1000003 < q",
        "causal and (q * 37 + k * 91) % 1009 < 3",
        "causal and (q - k) % 1009 == 0 and (q % 97 < 3 or k % 89 < 2) and (q % 101 < 50 or k % 103 < 50)",
        "1000003 * q <= 999983 * k",
    ],
)
def test_an_irregular_formula_gets_a_reported_conservative_answer(text):
    plan = solve(text, MILLION)

    assert plan.stats.relaxed
    assert not plan.exact
    assert plan.stats.rows_solved < 20_000
    assert plan.pieces < 10_000
    sampled = random.Random(6)
    for _ in range(20):
        i = sampled.randrange(plan.shape.rows)
        q, k = i * 128 + sampled.randrange(128), sampled.randrange(MILLION)
        if holds(Pattern.parse(text), q, k):
            assert any(j == k // 128 for j, _, _ in plan.blocks(i))


def test_metadata_is_unknown_so_partial():
    plan = solve("causal and same_segment", 256, bm=16, bn=16)

    causal = solve("causal", 256, bm=16, bn=16)
    assert (plan.full, plan.partial) == (0, causal.full + causal.partial)
    assert not plan.exact
    assert solve("causal or same_segment", 256, bm=16, bn=16).full == causal.full


def test_static_tables_in_any_blocks():
    r = random.Random(7)
    for _ in range(count(20, 300)):
        size, rows = r.choice([3, 4, 8]), r.randint(2, 9)
        table = [None if r.random() < 0.2 else [r.randrange(rows) for _ in range(r.randint(0, 3))] for _ in range(rows)]
        written = ", ".join("all" if row is None else str(row) for row in table)
        text = f"blocks({size}, [{written}]){r.choice(['', ' and causal', ' and window(9)', ' or k < 3'])}"
        n, m = r.randint(1, size * rows), r.randint(1, size * rows)
        visible = np.asarray(holds(Pattern.parse(text), np.arange(n)[:, None], np.arange(m)[None])) > 0
        for bm, bn in BLOCKS:
            plan = solve(text, n, m, bm, bn)

            agrees(plan, visible, f"{text} {n}x{m} in {bm}x{bn}")
            agrees(plan.transposed(), visible.T, f"{text} {n}x{m} in {bm}x{bn}, transposed")
            if text.endswith("])"):
                assert plan.exact


def test_bigbird_is_the_table_at_its_own_blocks():
    plan = solve("bigbird(64, 3, 0)", 4096, bm=64, bn=64, head=2)

    assert plan.exact
    assert plan.partial == 0
    assert [j for j, _, _ in plan.blocks(0)] == list(range(64))
    table = Pattern.parse("bigbird(64, 3, 0)").at(4096).formula.table
    assert [j for j, _, _ in plan.blocks(20)] == list(table.rows(2)[20])


def test_a_table_too_short_is_refused():
    with pytest.raises(FormulaError, match="too few for 9 tokens"):
        solve("blocks(4, [[0], [1]])", 9)


def test_heads_are_solved_apart():
    text = "heads(window(16), strided(8)) and causal"

    assert solve(text, 100, head=2).nnz == solve("window(16)", 100).nnz
    assert solve(text, 100, head=3).nnz == solve("causal and strided(8)", 100).nnz
    with pytest.raises(FormulaError, match="say which head"):
        solve(text, 100)


def test_floor_sum():
    r = random.Random(8)
    for _ in range(300):
        n, m, a, b = r.randint(0, 40), r.randint(1, 30), r.randint(-50, 50), r.randint(-50, 50)
        assert floor_sum(n, m, a, b) == sum((a * t + b) // m for t in range(n))


def test_no_rows_and_one_row():
    assert solve("causal", 1).nnz == 1
    assert solve("strict_causal", 1).nnz == 0
    assert solve("causal", 1, 1000).nnz == 1
