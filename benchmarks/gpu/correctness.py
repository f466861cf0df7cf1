"""Every kernel of every shipped spec at published dims: bf16, fp16, fp32, against float64.

Lengths are odd (1, 37, 257); what torch.empty gives is full of NaN and fenced, so an element that is not written, or
one beside a result that is, fails.
"""

import torch

from benchmarks.gpu.packages import Package, narrow, package
from benchmarks.gpu.programs import names
from benchmarks.gpu.stage import Stage
from weft.autotune.workers.host import check, shown
from weft.codegen.skeletons.common.writer.regions import RegionFile

DTYPES = ("bf16", "f16", "f32")


def run(stage: Stage) -> None:
    size = "small" if stage.rehearsal else "published"
    dtypes = ("f64",) if stage.rehearsal else DTYPES
    units = [(f"{name} {dtype}", (name, dtype)) for dtype in dtypes for name in names()]
    for name, dtype in stage.cases(units):
        with stage.guarded(f"{name} {dtype}"):
            made = package(name, size)
            for region in made.regions:
                with stage.guarded(f"{name}.{region.kernel} {dtype}"):
                    _check(stage, made, region, dtype)


def _check(stage: Stage, made: Package, region: RegionFile, dtype: str) -> None:
    case, worst, why = made.case(region), 0.0, ""
    if not narrow(region) and dtype == "f16":
        return  # a region of several float dtypes runs in its own, and so twice would be the same
    config = case.launch.config(region.kernel, torch.empty((), device=stage.device))
    target = case.launch.arch(torch.device(stage.device))
    for sizes in made.checks(region)[:1] if stage.rehearsal else made.checks(region):
        status, error, reason = check(case, sizes, config, target, stage.device, dtype, 0)
        worst = max(worst, error)
        if status != "ok":
            why = f"{status}: {reason}, at {shown(sizes)}"
    stage.row(f"{made.name}.{region.kernel}", ok=not why, dtype=dtype, skeleton=region.skeleton, error=worst, why=why)
