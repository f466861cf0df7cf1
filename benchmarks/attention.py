"""Sparse attention on a CPU, side by side with dense causal SDPA and compiled FlexAttention.

    python -m benchmarks.attention                      every case, table on stdout, JSON beside the other results
    python -m benchmarks.attention strided --repeats 9  one case
    python -m benchmarks.attention strided --layout out.blocks.attention:attention_0

Each repeat runs every competitor once, in turn, so that a busy machine slows all alike; times are medians. The mask
that FlexAttention needs and its compilation are timed apart. FlexAttention has no backward on a CPU.
"""

import argparse
import importlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.environment import environment
from weft.codegen.runtime.attention import Causal, Columns, Diagonal, Layout, Merge, Residues, Window

RESULT = Path(__file__).parent / "results" / "attention.json"


@dataclass(frozen=True)
class Case:
    """A pattern at one length: its layout, and the same pattern as FlexAttention and a check see it."""

    n: int
    layout: Layout
    visible: Callable[..., Tensor]


CASES = {
    "strided": Case(12288, Residues(128), lambda q, k: (q >= k) & ((q - k) % 128 == 0)),
    "fixed": Case(
        12288,
        Merge((Diagonal(128, Causal()), Columns(128, 96, 32))),
        lambda q, k: (q >= k) & ((q // 128 == k // 128) | (k % 128 >= 96)),
    ),
    "window": Case(16384, Window(256), lambda q, k: (q >= k) & (q - k < 256)),
}


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def interleaved(competitors: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each competitor over rounds in which each runs once; one round before is not counted."""
    times: dict[str, list[float]] = {name: [] for name in competitors}
    for turn in range(repeats + 1):
        for name, run in competitors.items():
            took = seconds(run)
            if turn:
                times[name].append(took)
    return {name: statistics.median(each) for name, each in times.items()}


def flex(case: Case, q: Tensor, k: Tensor, v: Tensor) -> tuple[Callable[[], Tensor], dict[str, float]]:
    """Compiled FlexAttention on this pattern, and the seconds its mask and its compilation took."""
    start = time.perf_counter()
    visible = case.visible
    mask = create_block_mask(lambda b, h, i, j: visible(i, j), None, None, case.n, case.n, device="cpu")
    made = time.perf_counter() - start
    torch.compiler.reset()
    compiled = torch.compile(flex_attention)
    first = seconds(lambda: compiled(q, k, v, block_mask=mask))
    return lambda: compiled(q, k, v, block_mask=mask), {"flex_mask": made, "flex_compile": first}


def sampled_error(case: Case, q: Tensor, k: Tensor, v: Tensor, out: Tensor, rows: int = 64) -> float:
    """Normwise error of some rows against float64."""
    at = torch.linspace(0, case.n - 1, rows).long()
    s = q[:, :, at].double() @ k.double().mT / q.shape[-1] ** 0.5
    hidden = ~case.visible(at[:, None], torch.arange(case.n))
    truth = s.masked_fill(hidden, -torch.inf).softmax(-1) @ v.double()
    return float((out[:, :, at] - truth).norm() / truth.norm())


def measure(case: Case, layout: Layout, heads: int, width: int, repeats: int, with_flex: bool) -> dict[str, Any]:
    """Seconds of every competitor on one case, and the ratios that matter."""
    torch.manual_seed(0)
    q, k, v, do = (torch.randn(1, heads, case.n, width) for _ in range(4))
    scale = width**-0.5
    out, _ = layout.forward(q, k, v, scale)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]

    def sdpa_both() -> Any:
        return torch.autograd.grad(F.scaled_dot_product_attention(*leaves, is_causal=True), leaves, do)

    def weft_both() -> Any:
        return layout.backward(do, q, k, v, *layout.forward(q, k, v, scale), scale)

    competitors: dict[str, Callable[[], Any]] = {
        "weft forward": lambda: layout.forward(q, k, v, scale),
        "sdpa forward": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "weft forward+backward": weft_both,
        "sdpa forward+backward": sdpa_both,
    }
    apart: dict[str, float] = {}
    if with_flex:
        competitors["flex forward"], apart = flex(case, q, k, v)
    times = interleaved(competitors, repeats)
    ratios = {
        f"{peer} / weft {part}": times[f"{peer} {part}"] / times[f"weft {part}"]
        for part in ("forward", "forward+backward")
        for peer in ("sdpa", "flex")
        if f"{peer} {part}" in times
    }
    error = sampled_error(case, q, k, v, out)
    return {"n": case.n, "heads": heads, "width": width, "error": error, "seconds": times | apart, "ratios": ratios}


def named_layout(path: str) -> Layout:
    """`package.module:name`: a layout object, of the runtime or of an emitted package on the import path."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [f"{'case':8} {'n':>6}  {'measured':24} {'ms':>9}   {'ratio to weft':28} {'':>6}"]
    for name, row in rows.items():
        left = [(what, f"{1e3 * took:9.1f}") for what, took in row["seconds"].items()]
        right = [(what, f"{ratio:6.2f}") for what, ratio in row["ratios"].items()]
        for i in range(max(len(left), len(right))):
            head = f"{name:8} {row['n']:6}" if i == 0 else " " * 15
            a, b = (side[i] if i < len(side) else ("", "") for side in (left, right))
            lines.append(f"{head}  {a[0]:24} {a[1]:>9}   {b[0]:28} {b[1]:>6}".rstrip())
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of {', '.join(CASES)}; default all")
    parser.add_argument("--layout", help="package.module:name of a layout object to run instead of the case's own")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--no-flex", action="store_true", help="leave FlexAttention out (it compiles for a while)")
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    given = parser.parse_args()
    if unknown := set(given.cases) - set(CASES):
        parser.error(f"unknown case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    torch.set_num_threads(given.threads)
    rows = {}
    for name in given.cases or CASES:
        layout = named_layout(given.layout) if given.layout else CASES[name].layout
        rows[name] = measure(CASES[name], layout, given.heads, given.width, given.repeats, not given.no_flex)
    print(table(rows))
    result = {"schema": "weft.bench.attention/1", "environment": environment(), "threads": given.threads, "cases": rows}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
