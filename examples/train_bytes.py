"""Train a byte-level Sparse Transformer on real text, compiled and reference side by side from the same seed.

The text is the source of Python's own standard library, which is on every machine that can run this. Both models start
from the same weights, see the same batches and draw the same dropout bits; each step runs one, then the other, so that
the two speeds are measured under the same load.

    python -m examples.train_bytes --seconds 60
"""

import argparse
import statistics
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

import weft

SPEC = Path(__file__).parent / "specs" / "sparse_transformer_enwik8.yaml"
DIMS = {"batch": 4, "seq": 512, "width": 128, "heads": 4, "layers": 4, "stride": 32, "summary": 8}
AGREE = 0.02  # the two losses may differ by this share once rounding has been amplified by training


@dataclass
class Run:
    """One of the two models, with its optimizer, its losses and the seconds each step took."""

    name: str
    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def step(self, tokens: torch.Tensor, targets: torch.Tensor, seed: torch.Tensor) -> None:
        start = time.perf_counter()
        loss = self.module(tokens=tokens, targets=targets, seed=seed).loss
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())
        self.seconds.append(time.perf_counter() - start)


def corpus(limit: int) -> torch.Tensor:
    """The first `limit` bytes of the standard library's sources, in sorted order: u8 as i64[limit]."""
    text = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text += path.read_bytes()
        if len(text) >= limit:
            break
    return torch.frombuffer(text[:limit], dtype=torch.uint8).long()


def batches(text: torch.Tensor, batch: int, seq: int, generator: torch.Generator):
    """Random windows and the same windows one byte later: two i64[batch seq]."""
    while True:
        starts = torch.randint(len(text) - seq - 1, (batch,), generator=generator)
        windows = torch.stack([text[s : s + seq + 1] for s in starts.tolist()])
        yield windows[:, :-1], windows[:, 1:]


def start(name: str, module: torch.nn.Module) -> Run:
    return Run(name, module, torch.optim.Adam(module.parameters(), lr=1e-3))


def train(runs: list[Run], data, seconds: float, generator: torch.Generator) -> None:
    begin = shown = time.monotonic()
    for tokens, targets in data:
        seed = torch.randint(2**62, (), generator=generator)
        for run in runs:
            run.step(tokens, targets, seed)
        now = time.monotonic()
        if now - shown >= 1:
            shown = now
            progress(runs, now - begin, seconds)
        if now - begin >= seconds:
            break
    print(file=sys.stderr)


def progress(runs: list[Run], spent: float, seconds: float) -> None:
    losses = "  ".join(f"{run.name} {run.losses[-1]:.4f}" for run in runs)
    end = "\r" if sys.stderr.isatty() else "\n"
    print(
        f"  {spent:4.0f}/{seconds:.0f} s  step {len(runs[0].losses):4d}  loss: {losses}",
        end=end,
        file=sys.stderr,
        flush=True,
    )


def curves(runs: list[Run], rows: int = 12) -> str:
    """Both loss curves at evenly spaced steps, with a bar for the eye."""
    count = len(runs[0].losses)
    steps = sorted({round(i * (count - 1) / max(rows - 1, 1)) for i in range(rows)})
    top = max(max(run.losses) for run in runs)
    lines = [f"{'step':>6}" + "".join(f"{run.name:>12}" for run in runs) + "   loss of the first"]
    for s in steps:
        bar = "#" * round(40 * runs[0].losses[s] / top)
        lines.append(f"{s:>6}" + "".join(f"{run.losses[s]:>12.4f}" for run in runs) + f"   {bar}")
    return "\n".join(lines)


def agreement(runs: list[Run]) -> float:
    """The largest relative difference between the two curves."""
    return max(abs(a - b) / b for a, b in zip(runs[0].losses, runs[1].losses, strict=True))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="how long to train (default 60)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    torch.manual_seed(options.seed)
    compiled = weft.compile(SPEC, set=DIMS)
    reference = weft.reference(SPEC, set=DIMS)
    reference.load_state_dict(compiled.state_dict())
    runs = [start("compiled", compiled), start("reference", reference)]

    generator = torch.Generator().manual_seed(options.seed)
    data = batches(corpus(4_000_000), DIMS["batch"], DIMS["seq"], generator)
    parameters = sum(p.numel() for p in compiled.parameters())
    print(
        f"byte-level Sparse Transformer, fixed({DIMS['stride']}, {DIMS['summary']}), {parameters:,} parameters, {DIMS}"
    )
    train(runs, data, options.seconds, generator)

    print(curves(runs))
    tokens = DIMS["batch"] * DIMS["seq"]
    for run in runs:
        speed = tokens / statistics.median(run.seconds)
        print(f"{run.name:>10}: {speed:10.0f} tokens/s (median of {len(run.seconds)} steps)")
    ratio = statistics.median(b / a for a, b in zip(runs[0].seconds, runs[1].seconds, strict=True))
    worst = agreement(runs)
    print(f"compiled is {ratio:.2f} times as fast as the reference")
    print(f"the losses differ by at most {worst:.1e} of themselves (allowed: {AGREE})")
    return 0 if worst <= AGREE else 1


if __name__ == "__main__":
    sys.exit(main())
