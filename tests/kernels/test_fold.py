"""A solver's plan as entries: blocks of residues, whose members lie in two periods."""

import pytest

from weft.codegen.skeletons.attention.writer.fold import fold
from weft.ir.pattern import Pattern, solve


@pytest.mark.parametrize("n", [58, 64, 80])
def test_members_of_two_periods_are_not_beside_each_other(n: int) -> None:
    """Residues touch every block, each once: those of the diagonal, which have more pairs, stand apart in the plan."""
    plan = solve(Pattern.parse("strided(5)"), n, n, 16, 16)
    rows = -(-n // 16)
    entries, _ = fold(plan, (False,), rows)
    for i in range(rows):
        found: list[int] = []
        for e in entries:
            t, rest = divmod(i - e.first, e.every)
            if e.first <= i < e.end and rest < e.span:
                low, high, anchor = e.low + t * e.low_move, e.high + t * e.high_move, e.anchor + t * e.anchor_move
                found += [j for j in range(low, min(high, rows)) if (j - anchor) % e.step < e.width]
        assert sorted(found) == list(range(rows)), (i, entries)
