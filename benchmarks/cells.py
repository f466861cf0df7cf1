"""Cells with recurrent matrices on a CPU, side by side with torch's own and with a loop over torch's cells.

    python -m benchmarks.cells                  LSTM and GRU, table on stdout, JSON beside the other results

Each is a model of an embedding, the cell of examples/blocks and two matrices, with the same weights: ours as it is
emitted, torch's `nn.LSTM` or `nn.GRU`, and `nn.LSTMCell` or `nn.GRUCell` step by step. Each repeat runs all once, in
turn, so that a busy machine slows them alike; times are medians of CPU time, in one thread. Results and gradients of
what they read are compared first.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

import weft
from benchmarks.environment import environment
from benchmarks.recurrences import apart, medians
from weft import api

RESULT = Path(__file__).parent / "results" / "cells.json"
GATES = {"lstm": "jfzo", "gru": "rzn"}
KINDS: dict[str, tuple[Any, Any]] = {"lstm": (nn.LSTM, nn.LSTMCell), "gru": (nn.GRU, nn.GRUCell)}


def ours(name: str, dims: dict[str, int]) -> nn.Module:
    """The cell of an example in a layer of its own."""
    block = api.open_spec(Path(f"examples/blocks/{name}.yaml")).model.blocks["mixer"]
    given: Any = {"name": name, "dims": dims, "stack": [{"layer": [{"block": block}]}], "sublayer": {"norm": "none"}}
    return weft.compile(weft.Model(**given))


def stacked(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The weights as torch has them: gates one below the other, rows are results."""
    gates = GATES[name]
    found = {
        "weight_ih": torch.cat([weights[f"{g}.weight"].T for g in gates]),
        "weight_hh": torch.cat([weights[f"r{g}.weight"].T for g in gates]),
        "bias_ih": torch.cat([weights[f"b{g}"] for g in gates]),
    }
    found["bias_hh"] = torch.zeros_like(found["bias_ih"])
    if name == "gru":
        found["bias_hh"] = torch.cat([found["bias_hh"][: -len(weights["bh"])], weights["bh"]])
    return found


def measured(name: str, batch: int, seq: int, unit: int, repeats: int) -> dict[str, Any]:
    """One kind: seconds of each, forward alone and with backward, and how far the results are apart."""
    module: Any = ours(name, {"batch": batch, "seq": seq, "width": unit, "unit": unit, "vocab": 16})
    weights = {k.rpartition("tensor_recurrence.")[2]: v.detach() for k, v in module.named_parameters()}
    whole, step = (make(unit, unit) for make in KINDS[name])
    torchs = stacked(weights, name)
    whole.load_state_dict({f"{k}_l0": v for k, v in torchs.items()})
    step.load_state_dict(torchs)
    table, out, head = (weights[k].clone().requires_grad_() for k in ("embed.tokens", "output.weight", "head.weight"))
    tokens = torch.randint(0, 16, (batch, seq), generator=torch.Generator().manual_seed(0))

    def by_torch() -> Tensor:
        x = table[tokens].transpose(0, 1)
        return (x + whole(x)[0] @ out).transpose(0, 1) @ head

    def by_steps() -> Tensor:
        x, state, ys = table[tokens], None, list[Tensor]()
        for each in x.unbind(1):
            state = step(each, state)
            ys.append(state[0] if name == "lstm" else state)
        return (x + torch.stack(ys, 1) @ out) @ head

    runs = {"ours": lambda: module(tokens).logits, "torch": by_torch, "steps": by_steps}
    seed = torch.randn(batch, seq, 16, generator=torch.Generator().manual_seed(1))
    leaves = {"ours": next(p for k, p in module.named_parameters() if k == "embed.tokens"), "torch": table}
    grads = [torch.autograd.grad(runs[k](), leaf, seed)[0] for k, leaf in leaves.items()]
    far = max(apart(runs["ours"]().detach(), runs["torch"]().detach()), apart(*grads))

    def backward(run: Any) -> Any:
        return lambda: run().backward(seed)

    forward = medians({k: torch.no_grad()(run) for k, run in runs.items()}, repeats)
    both = medians({k: backward(run) for k, run in runs.items()}, repeats)
    return {"forward": forward, "with backward": both, "apart": far}


def main() -> None:
    """Every kind."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"batch": 8, "seq": 256, "unit": 256, "repeats": 9}.items():
        parse.add_argument(f"--{name}", type=int, default=default)
    told = vars(parse.parse_args())
    torch.set_num_threads(1)
    rows = {name: measured(name, **told) for name in KINDS}
    for way in ("forward", "with backward"):
        table = [[name, *(f"{1e3 * s:.1f} ms" for s in row[way].values())] for name, row in rows.items()]
        print(f"\n{way}\n{tabulate(table, headers=['', 'ours', 'torch.nn', 'steps'], tablefmt='github')}")
    RESULT.write_text(
        json.dumps(
            {"schema": "weft.bench.cells/1", "environment": environment(), "sizes": told, "rows": rows}, indent=1
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
