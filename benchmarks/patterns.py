"""What planning a pattern costs: CPU milliseconds for every named pattern, at a million tokens in blocks of 128.

Run: python -m benchmarks.patterns [n]. `solve` is the closed form of its blocks, `backward` the transposed one,
`layout` the choice of layout (proofs up to a million tokens included); all with empty caches.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tabulate import tabulate

from benchmarks.environment import environment
from weft.ir.pattern import NAMED, Pattern, choose, layout, solve, solver

RESULT = Path(__file__).parent / "results" / "patterns.json"
EXAMPLES = {
    "window": "(4096)", "window_inclusive": "(4096)", "window_before": "(512)", "band": "(512, 512)",
    "dilated": "(256, 4)", "dilated_band": "(256, 256, 4)", "strided": "(128)", "fixed": "(128, 32)",
    "fixed_with_zero": "(128, 32)", "fixed_heads": "(128, 32, 4)", "block_diagonal": "(1024)",
    "columns": "(128, 96, 32)", "rows": "(64)", "cols": "(64)", "longformer": "(256, 256, 64)", "prefix": "(1000)",
    "chunks_before": "(512)",
}  # fmt: skip
MORE = (
    "bigbird(64, 3, 0)",
    "causal and strided(128)",
    "causal and fixed(128, 32)",
    "causal and fixed_with_zero(128, 32)",
    "causal and (window(128) or strided(128))",
    "causal and (window(4096) or cols(4))",
    "causal and strided(1000)",
    "causal and block_diagonal(1000)",
    "causal and longformer(256, 256, 64)",
    "causal and (q * 37 + k * 91) % 1009 < 3",
)


def clear() -> None:
    """Forget all that is remembered between calls."""
    for cached in (solver.solve_formula, choose.layout, choose.shape_of, choose._best):
        cached.cache_clear()


def milliseconds(run: Callable[[], object]) -> float:
    """CPU time, the least of three runs."""
    best = float("inf")
    for _ in range(3):
        clear()
        start = time.process_time()
        run()
        best = min(best, time.process_time() - start)
    return 1e3 * best


def row(text: str, n: int) -> list[object]:
    """One line of the table."""
    pattern = Pattern.parse(text)
    plan = solve(pattern, n, head=0)
    chosen = layout(pattern, n)
    cost = {
        "solve": milliseconds(lambda: solve(pattern, n, head=0)),
        "backward": milliseconds(lambda: solve(pattern, n, head=0).transposed()),
        "layout": milliseconds(lambda: layout(pattern, n)),
    }
    shown = str(chosen) if len(str(chosen)) < 70 else str(chosen)[:67] + "..."
    exact = "exact" if plan.exact else "conservative"
    return [text, cost["solve"], cost["backward"] - cost["solve"], cost["layout"], plan.pieces, plan.nnz, plan.full,
            plan.partial, f"{100 * plan.density:.3g} %", exact, shown]  # fmt: skip


def main(n: int = 1 << 20) -> None:
    texts = [d.name + EXAMPLES.get(d.name, "") for d in NAMED] + list(MORE)
    titles = ["pattern", "solve ms", "backward ms", "layout ms", "pieces", "nnz", "full", "partial", "density", "", ""]
    rows = [row(t, n) for t in texts]
    print(tabulate(rows, titles, floatfmt=".1f"))
    named = [dict(zip(titles[:9], r)) for r in rows]
    found = {"schema": "weft.bench/1", "environment": environment(), "n": n, "rows": named}
    RESULT.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
