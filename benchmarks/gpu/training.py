"""Every shipped spec at its small dims, trained for some steps: kernels against the reference in float64."""

from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.gpu.packages import package
from benchmarks.gpu.programs import names
from benchmarks.gpu.stage import Stage
from weft.codegen.build import module_of
from weft.codegen.check.calling import call
from weft.codegen.check.reference import Reference
from weft.codegen.check.verify import index_range
from weft.ir.program import Program
from weft.ir.types import FLOATS

STEPS = 20
RATE = 1e-3
TOLERANCE = {"f32": 2e-3, "bf16": 3e-2}
"""How far a loss may lie from the reference's, relative to it."""
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f64": torch.float64}


def run(stage: Stage) -> None:
    dtypes = ("f32",) if stage.rehearsal else tuple(TOLERANCE)
    for name in stage.cases((n, n) for n in names()):
        with stage.guarded(name):
            made = package(name, "small")
            program, steps = made.planned.program, 2 if stage.rehearsal else STEPS
            truth = curve(program, Reference(program, 0, stage.device).double(), torch.float64, steps)
            for dtype in dtypes:
                with stage.guarded(f"{name} {dtype}"):
                    model = module_of(made.folder, stage.device).to(DTYPES[dtype])
                    found = curve(program, model, DTYPES[dtype], steps)
                    error = max(abs(a - b) / max(abs(b), 1e-6) for a, b in zip(found, truth, strict=True))
                    stage.row(
                        name, ok=error <= TOLERANCE[dtype], dtype=dtype, error=error, losses=found, reference=truth
                    )


def curve(program: Program, model: torch.nn.Module, dtype: torch.dtype, steps: int) -> list[float]:
    """The losses of some steps of gradient descent on random data, the same for every model."""
    optimizer, out = torch.optim.SGD(model.parameters(), RATE), list[float]()
    device = next(model.parameters()).device
    for step in range(steps):
        given = batch(program, step)
        given = {n: (x.to(dtype) if x.is_floating_point() else x).to(device) for n, x in given.items()}
        loss = objective(program, call(program, model, given))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        out.append(float(loss.detach()))
    return out


def objective(program: Program, results: Mapping[str, Any]) -> torch.Tensor:
    """The loss where there is one, else the mean square of what comes out."""
    found = {n: v for n, v in results.items() if v.is_floating_point() and n not in program.carried}
    return found["loss"] if "loss" in found else torch.stack([v.float().square().mean() for v in found.values()]).sum()


def batch(program: Program, step: int) -> dict[str, torch.Tensor]:
    """Random inputs: indices in range, one seed for dropout a step, everything else N(0, 1)."""
    draw = torch.Generator().manual_seed(step)
    sizes = program.resolve(**{d: r.near(2) for d, r in program.runtime.items() if d == "batch"})
    out: dict[str, torch.Tensor] = {}
    for name in program.inputs:
        v = program.input(name)
        shape = [sizes[d] for d in v.dims]
        if v.dtype in FLOATS:
            out[name] = torch.randn(shape, generator=draw, dtype=torch.float64)
        elif v.dtype == "bool":
            out[name] = torch.ones(shape, dtype=torch.bool)
        else:
            most = index_range(program.graph, v, sizes) if shape else 2**31
            out[name] = torch.randint(0, most, shape, generator=draw)
    return out
