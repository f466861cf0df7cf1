"""The program of a bench worker: torch on one device, one kernel at a time; checks a result before it times it.

Jobs, all with "workload", "target", "sizes", "checks", "dtype", "device", "seed", "default": {"op": "device"}; {"op":
"check", "config"} launches once at each of the odd sizes, results poisoned and everything fenced, against the truth in
float64, and once at the timed sizes, against what the default configuration gives; {"op": "time", "config", "samples",
"seconds", "give_up_us"}. "device" is "cuda", or "cpu" for kernels in the interpreter.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any

import torch

from weft.autotune.space.workload import Workload
from weft.autotune.workers import serve, timing
from weft.autotune.workers.cases import Args, Case, open_case, wrong
from weft.autotune.workers.guard import Guarded
from weft.autotune.workers.host import check, shown
from weft.autotune.workers.serve import Job
from weft.codegen.check.tolerance import TOLERANCE

_PREPARED = 16  # kernels kept ready for races


class Bench:
    """One problem on this worker's device."""

    def __init__(self, job: Job) -> None:
        self.case: Case = open_case(Workload.parse(job["workload"]))
        self.target, self.sizes, self.checks = job["target"], job["sizes"], job["checks"]
        self.dtype, self.device, self.seed = job["dtype"], job["device"], job["seed"]
        self.default: Mapping[str, Any] = job["default"]
        self.flush = timing.flusher(self.device)

    @property
    def args(self) -> Args:
        """Operands at the timed sizes."""
        if not hasattr(self, "_args"):
            self._args = self.case.inputs(self.sizes, self.device, self.dtype, self.seed)
        return self._args

    @property
    def wanted(self) -> tuple[torch.Tensor, ...]:
        """What the default configuration makes of them."""
        if not hasattr(self, "_wanted"):
            with self.case.configured(self.default, self.target):
                self._wanted = self.case.run(self.args)
        return self._wanted

    def check(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """{"status", "error", "reason"}"""
        worst = 0.0
        for sizes in self.checks:
            status, error, reason = check(self.case, sizes, config, self.target, self.device, self.dtype, self.seed)
            worst = max(worst, error)
            if status != "ok":
                return {"status": status, "error": worst, "reason": f"{reason}, at {shown(sizes)}"}
        wanted = self.wanted
        with Guarded() as guard, self.case.configured(config, self.target):
            out = self.case.run(self.args)
        if damage := guard.damage():
            return {"status": "wrong", "error": 1.0, "reason": f"{damage}, at the timed sizes"}
        status, error, reason = wrong(out, wanted, 2 * TOLERANCE[self.dtype].kernel)
        said = f"{reason}, at the timed sizes, against the default configuration" if reason else ""
        return {"status": status, "error": max(worst, error), "reason": said}

    def time(self, config: Mapping[str, Any], job: Job) -> dict[str, Any]:
        """{"status", "times_us", "clock_mhz"}"""
        timer = _timer(self, json.dumps(config, sort_keys=True))
        found, slow = timing.samples(timer, job["samples"], job["seconds"], job.get("give_up_us"))
        return {"status": "slow" if slow else "ok", "times_us": found, "clock_mhz": timing.clock_mhz(self.device)}


@lru_cache(maxsize=_PREPARED)
def _timer(bench: Bench, text: str) -> timing.Clock:
    config = json.loads(text)

    def run() -> Any:
        with bench.case.configured(config, bench.target):
            return bench.case.run(bench.args)

    return timing.clock(run, bench.flush)


@cache
def _bench(text: str) -> Bench:
    return Bench(json.loads(text))


def handle(job: Job) -> dict[str, Any]:
    if job["op"] == "device":
        return device(job["device"])
    shared = ("workload", "target", "sizes", "checks", "dtype", "device", "seed", "default")
    bench = _bench(json.dumps({k: job[k] for k in shared}, sort_keys=True))
    found = bench.check(job["config"]) if job["op"] == "check" else bench.time(job["config"], job)
    if bench.flush is not None:
        torch.cuda.synchronize()
    return found


def device(name: str) -> dict[str, Any]:
    """What the device is, or {"missing": why}."""
    if name.startswith("cuda") and not torch.cuda.is_available():
        return {"missing": "torch finds no CUDA device"}
    return {**timing.device_facts(name), "torch": torch.__version__}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    serve.serve(handle)
