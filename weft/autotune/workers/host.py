"""The program of a host worker: torch on the CPU. It records the launches of configurations, and interprets kernels.

Jobs: {"op": "launches", "workload", "configs", "target", "sizes", "dtype", "kernels"} records each configuration's
launches from operands without values; {"op": "interpret", "workload", "config", "target", "checks", "seed"} runs one in
Triton's interpreter in float64, results poisoned and fenced, against the truth. The second wants TRITON_INTERPRET=1.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from weft.autotune.space.workload import Workload
from weft.autotune.workers import serve
from weft.autotune.workers.capture import recording
from weft.autotune.workers.cases import Args, Case, open_case, wrong
from weft.autotune.workers.guard import Guarded
from weft.autotune.workers.serve import Job
from weft.codegen.check.tolerance import TOLERANCE


@cache
def _case(text: str) -> Case:
    return open_case(Workload.parse(json.loads(text)))


def case_of(job: Job) -> Case:
    return _case(json.dumps(job["workload"], sort_keys=True))


def launches(job: Job) -> dict[str, Any]:
    """For each configuration {"launches": [...]}, those of the kernels asked for, or {"raised", "message"}."""
    case = case_of(job)
    args = case.inputs(job["sizes"], "meta", job["dtype"], 0)
    return {"found": [_launches(case, args, config, job) for config in job["configs"]]}


def _launches(case: Case, args: Args, config: Mapping[str, Any], job: Job) -> dict[str, Any]:
    try:
        with recording(job["target"], case.kernels.root) as found, case.configured(config, job["target"]):
            case.run(args)
    except Exception as error:
        return {"raised": type(error).__name__, "message": str(error)[:500]}
    wanted: list[str] = job.get("kernels") or []
    return {"launches": [f.data() for f in found if not wanted or f.function in wanted]}


def interpret(job: Job) -> dict[str, Any]:
    """{"status", "error", "reason"} of a configuration at the sizes of `checks`."""
    case, worst = case_of(job), 0.0
    for sizes in job["checks"]:
        status, error, reason = check(case, sizes, job["config"], job["target"], "cpu", "f64", job.get("seed", 0))
        worst = max(worst, error)
        if status != "ok":
            return {"status": status, "error": worst, "reason": f"{reason}, at {shown(sizes)}"}
    return {"status": "ok", "error": worst, "reason": ""}


def check(
    case: Case, sizes: Mapping[str, int], config: Mapping[str, Any], target: str, device: str, dtype: str, seed: int
) -> tuple[str, float, str]:
    """One run between fences against the truth: status, largest relative error, reason."""
    args, truth = _truth(case, json.dumps(sizes, sort_keys=True), device, dtype, seed)
    with Guarded() as guard, case.configured(config, target):
        out = case.run(guard.kept(args))
    damage = guard.damage()
    return ("wrong", 1.0, damage) if damage else wrong(out, truth, TOLERANCE[dtype].kernel)


@cache
def _truth(case: Case, sizes: str, device: str, dtype: str, seed: int) -> tuple[Args, tuple[torch.Tensor, ...]]:
    """Operands and what must come out; the same for all configurations."""
    known = json.loads(sizes)
    args = case.inputs(known, device, dtype, seed)
    return args, case.truth(args, known)


def shown(sizes: Mapping[str, int]) -> str:
    """The sizes that differ from check to check are the run-time ones; without knowing which, the first few."""
    names = [n for n in ("batch", "seq") if n in sizes] or list(sizes)[:4]
    return ", ".join(f"{n} {sizes[n]}" for n in names)


OPS = {"launches": launches, "interpret": interpret}


def handle(job: Job) -> dict[str, Any]:
    began = serve.cpu_seconds()
    found = OPS[job["op"]](job)
    return {**found, "cpu_s": serve.cpu_seconds() - began}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    serve.serve(handle)
