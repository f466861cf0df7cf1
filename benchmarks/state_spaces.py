"""A diagonal state space on a CPU, side by side with one convolution by torch.fft.

    python -m benchmarks.state_spaces           every length, table on stdout, JSON beside the other results

Ours are the functions that a package has for the state space alone, in the form that its price says: u [batch seq
channels] and the numbers of the channels in, y out. Theirs makes the kernel by two levels of complex powers and
convolves by torch.fft, and torch differentiates it. Each repeat runs both once, in turn; times are medians of CPU time,
in one thread. Results and gradients are compared first.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from benchmarks.environment import environment
from benchmarks.recurrences import Ours, apart, medians

RESULT = Path(__file__).parent / "results" / "state_spaces.json"
SIZES = {"batch": 8, "width": 16}
LENGTHS = (1024, 4096, 16384)


def powers(a: Tensor, count: int) -> Tensor:
    """a^0 .. a^(count - 1), by doubling."""
    out = torch.ones_like(a)[..., None]
    while out.shape[-1] < count:
        out, a = torch.cat([out, out * a[..., None]], -1), a * a
    return out[..., :count]


def theirs(u: Tensor, factor_real: Tensor, factor_imag: Tensor, weight_real: Tensor, weight_imag: Tensor) -> Tensor:
    """u [batch seq channels], numbers [channels states]."""
    a, c, t, n = torch.complex(factor_real, factor_imag), torch.complex(weight_real, weight_imag), u.shape[1], 128
    low = powers(a, n)
    high = powers(low[..., -1] * a, -(-t // n))
    k = torch.einsum("hni,hnj->hij", c[..., None] * high, low).real.flatten(-2)[..., :t]
    return torch.fft.irfft(torch.fft.rfft(u.mT, 2 * t) * torch.fft.rfft(k, 2 * t), 2 * t)[..., :t].mT


def drawn(seq: int, states: int) -> dict[str, Tensor]:
    """S4D-Lin's numbers at steps from 0.001 to 0.1."""
    torch.manual_seed(0)
    step = torch.exp(torch.rand(SIZES["width"], 1) * 4.6 - 6.9)
    a = torch.exp(torch.complex(-0.5 * step.expand(-1, states), torch.pi * step * torch.arange(states)))
    c = torch.randn(2, SIZES["width"], states) * step
    u = torch.randn(SIZES["batch"], seq, SIZES["width"])
    numbers = a.real.contiguous(), a.imag.contiguous(), c[0], c[1]
    return {"u": u, **dict(zip(("factor_real", "factor_imag", "weight_real", "weight_imag"), numbers))}


def measured(seq: int, states: int, chunk: int, repeats: int) -> dict[str, Any]:
    """One length: seconds of each, ratios, and how far results and gradients are apart."""
    cell = {"kind": "state_space", "system": {"states": states, "chunk": chunk, "skip": "none"}}
    ours, by = Ours(cell, SIZES, seq), drawn(seq, states)
    given = [by[n if n in by else "u"] for n in ours.names]
    leaves = {n: x.clone().requires_grad_() for n, x in by.items()}
    want = theirs(**leaves)
    d = torch.randn_like(want)
    back = dict(zip(leaves, torch.autograd.grad(want, list(leaves.values()), d)))
    turned = d.transpose(0, 1)
    out, *grads = ours.both(given, turned)
    far = [apart(out.transpose(0, 1), want.detach())]
    far += [apart(x, back[n if n in by else "u"]) for n, x in zip(ours.names, grads)]

    def plain() -> None:
        with torch.no_grad():
            theirs(**by)

    def both() -> None:
        torch.autograd.grad(theirs(**leaves), list(leaves.values()), d)

    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: ours.forward(given), "fft": plain,
        "ours, both": lambda: ours.both(given, turned), "fft, both": both,
    }  # fmt: skip
    seconds = medians(runs, repeats)
    ratios = {"forward": seconds["fft"] / seconds["ours"], "both": seconds["fft, both"] / seconds["ours, both"]}
    form = ours.form.split(":")[0]
    return {"seq": seq, "states": states, "form": form, "seconds": seconds, "ratios": ratios, "apart": max(far)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="*", type=int, default=LENGTHS)
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measured(n, args.states, args.chunk, args.repeats) for n in args.lengths]
    shown = [
        (
            r["seq"], r["form"], *(f"{1e3 * x:.1f}" for x in r["seconds"].values()),
            *(f"{x:.2f}" for x in r["ratios"].values()), f"{r['apart']:.1e}",
        )
        for r in rows
    ]  # fmt: skip
    heads = ("positions", "form", "forward ms", "fft", "with backward", "fft", "ratio", "with backward", "apart")
    print(tabulate(shown, heads))
    found = {"schema": "weft.bench.state_spaces/1", "environment": environment(), "threads": 1, "cases": rows}
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
