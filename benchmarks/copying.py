"""The copy task across segments: what each kind of memory hands on, trained in minutes on a CPU.

    python -m benchmarks.copying            every memory, table on stdout, JSON beside the other results

A sequence is a segment of random symbols and, behind it, as many segments of blanks as `apart` says; in the last of
them the model is to say the symbols in their order (Bulatov et al. 2022, Recurrent Memory Transformer, section 4.2).
Nothing but the memory tells it: without one it is right once in `SYMBOLS` times. Every model is the same but for its
memory: two layers of width 64 with relative positions. The figures are the share of symbols that are right in 2,048 new
sequences, and CPU time of training.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

import weft
from benchmarks.environment import environment

RESULT = Path(__file__).parent / "results" / "copying.json"
SYMBOLS, LENGTH, BLANK = 8, 6, 8
DIMS = {"seq": LENGTH, "width": 64, "heads": 4, "head": 16, "inner": 128, "layers": 2, "vocab": SYMBOLS + 1}
MEMORIES: dict[str, dict[str, Any] | None] = {
    "none": None,
    "Transformer-XL, as many rows as a segment": {"keep": LENGTH},
    "Transformer-XL, half as many": {"keep": LENGTH // 2},
    "RMT, a token a symbol, through the borders": {"of": "tokens", "keep": LENGTH, "through": 2},
    "RMT, two tokens, through the borders": {"of": "tokens", "keep": 2, "through": 2},
    "RMT, a token a symbol, stopped at each border": {"of": "tokens", "keep": LENGTH},
}


def spec(memory: dict[str, Any] | None, batch: int) -> dict[str, Any]:
    """The model with this memory."""
    attention = {"kind": "attention", "pattern": "causal", "relative": {"kind": "sinusoid"}, "bias": False}
    return {
        "weft": 1, "name": "copying", "dims": {"batch": batch, **DIMS},
        "blocks": {"attention": attention, "feedforward": {"kind": "mlp"}}, "norm": "layer_norm",
        "stack": [{"repeat": "layers", "layer": ["attention", "feedforward"]}],
        **({} if memory is None else {"memory": memory}),
    }  # fmt: skip


def said(module: Any, symbols: Tensor, apart: int) -> Any:
    """What the model returns for the last segment, whose targets are the symbols."""
    blanks, memory, out = torch.full_like(symbols, BLANK), None, None
    for i in range(apart + 1):
        tokens, targets = (blanks if i else symbols), symbols if i == apart else None
        out = module(tokens, targets) if memory is None else module(tokens, targets, memory)
        memory = getattr(out, "memory", None)
    return out


def trained(memory: dict[str, Any] | None, steps: int, batch: int, apart: int) -> dict[str, Any]:
    """The share of symbols that a trained model copies, and what training took."""
    module: Any = weft.compile(spec(memory, 2048))
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    start, loss = time.process_time(), torch.zeros(())
    for _ in range(steps):
        loss = said(module, torch.randint(SYMBOLS, (batch, LENGTH), generator=draw), apart).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        rate.step()
    took = time.process_time() - start
    symbols = torch.randint(SYMBOLS, (2048, LENGTH), generator=draw)
    with torch.no_grad():
        right = (said(module.eval(), symbols, apart).logits.argmax(-1) == symbols).double().mean()
    return {"right": round(float(right), 4), "loss": round(float(loss.detach()), 4), "cpu_seconds": round(took, 1)}


def main() -> None:
    """Train each and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for apart in (1, 2):
        for name, memory in MEMORIES.items():
            found = trained(memory, given.steps, given.batch, apart)
            rows.append({"memory": name, "segments_apart": apart, **found})
            print(f"{apart} apart, {name}: {found['right']:.1%} of symbols, {found['cpu_seconds']} s", flush=True)
    shown = [[r["memory"], r["segments_apart"], f"{r['right']:.1%}", r["cpu_seconds"]] for r in rows]
    print(tabulate(shown, headers=["memory", "segments apart", "right", "CPU s"]))
    of = {"symbols": SYMBOLS, "length": LENGTH, "chance": 1 / SYMBOLS, "steps": given.steps, "batch": given.batch}
    given.output.write_text(json.dumps({"environment": environment(), "task": of, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
