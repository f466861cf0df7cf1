"""Routed experts that drop nothing, on a CPU, side by side with Hugging Face's Mixtral block of the same weights.

    python -m benchmarks.experts            both cases, table on stdout, JSON beside the other results

Mixtral's runs once as a loop over experts ("eager") and once by `torch._grouped_mm`, its default. Each repeat runs all
once, in turn, so that a busy machine slows them alike; times are medians of CPU time. What is timed is the block alone:
its forward without gradients, and its forward and backward. The results are compared first.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from benchmarks.environment import environment
from weft import api

RESULT = Path(__file__).parent / "results" / "experts.json"
CASES = {"512 tokens of 256": (2, 256, 256, 896), "1024 tokens of 512": (2, 512, 512, 1792)}
"""Batch, sequence, width and inner size, in Mixtral's proportions; 8 experts, 2 for each token."""
EXPERTS, CHOSEN = 8, 2


def block(batch: int, seq: int, width: int, inner: int) -> nn.Module:
    """The layer of an emitted package that holds nothing but the experts."""
    moe = {"kind": "moe", "top_k": CHOSEN, "capacity": "seq", "gated": True, "activation": "silu", "normalize": True}
    dims = {"batch": batch, "seq": seq, "width": width, "inner": inner, "experts": EXPERTS, "vocab": 2}
    layer = {"layer": [{"block": moe, "norm": "none", "residual": "none"}]}
    model = api.compile({"weft": 1, "name": "experts", "dims": dims, "stack": [layer]}, target="cpu")
    return model.get_submodule("layers.0")


def theirs(ours: nn.Module, width: int, inner: int, how: str) -> nn.Module:
    """Mixtral's block with the same weights, run as transformers calls it."""
    from transformers import MixtralConfig  # it takes seconds, and one side of the comparison alone needs it
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(
        hidden_size=width, intermediate_size=inner, num_local_experts=EXPERTS, num_experts_per_tok=CHOSEN
    )
    config._experts_implementation = how
    found, w = MixtralSparseMoeBlock(config), dict(ours.named_parameters())
    with torch.no_grad():
        found.gate.weight.copy_(w["moe.router.weight"].T)
        both = torch.cat((w["moe.gate.weight"], w["moe.up.weight"]), 2)
        found.experts.gate_up_proj.copy_(both.mT)
        found.experts.down_proj.copy_(w["moe.down.weight"].mT)
    return found


def first(y: Any) -> Tensor:
    return y[0] if isinstance(y, tuple) else y


def trained(module: nn.Module, x: Tensor) -> Callable[[], None]:
    def run() -> None:
        module.zero_grad(set_to_none=True)
        first(module(x.detach().requires_grad_())).sum().backward()

    return run


def forward(module: nn.Module, x: Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            module(x)

    return run


def medians(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each over rounds in which each runs once; one round before is not counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(repeats + 1):
        for name, run in runs.items():
            began = time.process_time()
            run()
            if i:
                times[name].append(time.process_time() - began)
    return {name: statistics.median(found) for name, found in times.items()}


def measure(shape: tuple[int, int, int, int], repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of all, for each thing that is timed. Raises AssertionError where their results differ."""
    batch, seq, width, inner = shape
    ours = block(*shape)
    modules = {"weft": ours} | {how: theirs(ours, width, inner, how) for how in ("eager", "grouped_mm")}
    x = torch.randn(batch, seq, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for module in modules.values():
            torch.testing.assert_close(first(module(x)), first(ours(x)), rtol=1e-4, atol=1e-5)
    return {
        what: medians({name: make(m, x) for name, m in modules.items()}, repeats)
        for what, make in (("forward", forward), ("forward and backward", trained))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found = {name: measure(shape, given.repeats) for name, shape in CASES.items()}
    rows = [
        (case, what, *(f"{1e3 * s:.1f}" for s in t.values()), *(f"{t[how] / t['weft']:.2f}" for how in list(t)[1:]))
        for case, times in found.items()
        for what, t in times.items()
    ]
    print(tabulate(rows, ("case", "what", "weft, ms", "eager, ms", "grouped, ms", "eager / weft", "grouped / weft")))
    result = {"schema": "weft.bench.experts/1", "environment": environment(), "threads": given.threads, "cases": found}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
