"""The runner of a device: a bench worker that may be killed, and in front of it the gates. Imports no torch.

    with BenchRunner(problem, keeper) as runner:
        outcome = runner.time(config, Fidelity(Level.FULL, 20, 10.0))

Whatever a configuration does to the worker is an outcome. Nothing that the gates refuse gets to the worker.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from weft.autotune.budget import FOREVER, Budget
from weft.autotune.gates.candidate import GateVerdict
from weft.autotune.gates.gatekeeper import Gatekeeper
from weft.autotune.space.workload import TuningProblem
from weft.autotune.types import Config, Fidelity, Outcome, Status, config_id
from weft.autotune.workers.process import Fault, JobAnswer, Worker
from weft.errors import BackendError

PROGRAM = "weft.autotune.workers.bench"
CHECK_SECONDS = 60.0
_SLOWEST_US = 1e9
_CUDA = ("CUDA_VISIBLE_DEVICES", "CUDA_HOME", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES")
_ANSWERS = {s.value: s for s in (Status.OK, Status.WRONG, Status.NON_FINITE, Status.SLOW)}
_OOM = re.compile(r"out of memory|OutOfMemory|MemoryError", re.I)
_LAUNCH = re.compile(r"OutOfResources|out of resource|too many resources|invalid configuration|PTXAS|CompilationError")


def environment(device: str, cache: str) -> dict[str, str]:
    """What a bench worker sees besides: the device (an index or a UUID; "cpu": the interpreter), Triton's cache."""
    if device == "cpu":
        return {"TRITON_INTERPRET": "1"}
    kept = {name: os.environ[name] for name in _CUDA if name in os.environ}
    return kept | ({"CUDA_VISIBLE_DEVICES": device} if device else {}) | ({"TRITON_CACHE_DIR": cache} if cache else {})


class BenchRunner:
    """One worker on one device.

    keeper: the gates; None only where a caller has its own. device: as CUDA_VISIBLE_DEVICES names it, "" for the first,
    or "cpu". cache: where Triton finds kernels that were compiled before. budget: of everything; what it ends raises
    Late. sent: what was let through, for spies.
    """

    def __init__(
        self, problem: TuningProblem, keeper: Gatekeeper | None, *, device: str = "", cache: str = "", seed: int = 0,
        program: str = PROGRAM, place: Callable[[GateVerdict], object] | None = None, budget: Budget = FOREVER,
    ) -> None:  # fmt: skip
        self.problem, self.keeper, self.place, self.budget = problem, keeper, place, budget
        self.worker = Worker(program, env=environment(device, cache))
        self.sent: list[Config] = []
        self._checked: dict[str, Outcome] = {}
        self._job: dict[str, Any] = {
            "workload": problem.workload.data(), "target": problem.target, "sizes": dict(problem.sizes),
            "checks": list(problem.checks), "dtype": problem.dtype, "device": "cpu" if device == "cpu" else "cuda",
            "seed": seed, "default": dict(problem.default),
        }  # fmt: skip

    def __enter__(self) -> BenchRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker."""
        self.worker.kill()

    def device(self) -> dict[str, Any]:
        """What the device is. Raises BackendError where there is none."""
        answer = self.worker.ask({"op": "device", "device": self._job["device"]}, CHECK_SECONDS, self.budget)
        if answer.data is None or answer.raised or "missing" in answer.data:
            why = answer.reason or answer.raised or (answer.data or {}).get("missing", "")
            raise BackendError(f"no device to tune on: {why}; --prepare needs none")
        return answer.data

    def time(self, config: Config, fidelity: Fidelity) -> Outcome:
        """Through the gates, checked once on the device, then timed."""
        verdict = self.keeper.judge(config) if self.keeper is not None else None
        if verdict is not None and not verdict.ok:
            return Outcome(verdict.status, reason=verdict.line, extra=extra(verdict))
        more = extra(verdict) if verdict is not None else {}
        if verdict is not None and self.place is not None and config_id(config) not in self._checked:
            self.place(verdict)
        checked = self._check(config)
        if checked.status is not Status.OK:
            return Outcome(checked.status, reason=checked.reason, extra={**more, **checked.extra})
        job = {"op": "time", "samples": fidelity.samples, "seconds": fidelity.seconds}
        job |= {"give_up_us": fidelity.give_up_us}
        found = outcome(self._ask(job, config, fidelity.seconds), timed=True)
        self._after(found)
        return Outcome(found.status, found.times_us, found.reason, {**more, **checked.extra, **found.extra})

    def _check(self, config: Config) -> Outcome:
        """The poisoned launch; once for each configuration."""
        name = config_id(config)
        if name not in self._checked:
            found = outcome(self._ask({"op": "check"}, config, CHECK_SECONDS), timed=False)
            self._after(found)
            self._checked[name] = found
        return self._checked[name]

    def _ask(self, job: Mapping[str, Any], config: Config, seconds: float) -> JobAnswer:
        assert self.keeper is None or self.keeper.admitted(config), f"{config} did not pass the gates"
        self.sent.append(dict(config))
        return self.worker.ask({**self._job, **job, "config": dict(config)}, seconds, self.budget)

    def _after(self, found: Outcome) -> None:
        """A worker that has crashed or run out of memory is not asked again."""
        if found.status in (Status.CRASH, Status.OOM, Status.TIMEOUT):
            self.worker.kill()


def outcome(answer: JobAnswer, timed: bool) -> Outcome:
    """What an answer of a bench worker comes to; never believes it further than it can be checked."""
    if answer.data is None:
        late = answer.fault in (Fault.TIMEOUT, Fault.SILENT)
        return Outcome(Status.TIMEOUT if late else Status.CRASH, reason=answer.reason)
    if answer.raised:
        said = f"{answer.raised}: {answer.data.get('message', '')}".splitlines()[0][:300]
        whole = f"{answer.raised}: {answer.data.get('message', '')}"
        status = Status.OOM if _OOM.search(whole) else Status.LAUNCH if _LAUNCH.search(whole) else Status.CRASH
        return Outcome(status, reason=said)
    status = _ANSWERS.get(str(answer.data.get("status")))
    if status is None:
        return Outcome(Status.CRASH, reason="the worker's answer has no status")
    error, clock = (_number(answer.data.get(k)) for k in ("error", "clock_mhz"))
    more = {k: v for k, v in (("error", error), ("clock_mhz", clock)) if v is not None}
    if not timed or status not in (Status.OK, Status.SLOW):
        return Outcome(status, reason=str(answer.data.get("reason", ""))[:300], extra=more)
    times = answer.data.get("times_us")
    if not isinstance(times, list) or not times or not all(_is_time(t) for t in times):
        return Outcome(Status.INVALID_TIME, reason=f"the clock says {str(times)[:100]}", extra=more)
    return Outcome(status, tuple(float(t) for t in times), extra=more)


def _is_time(t: Any) -> bool:
    return type(t) in (int, float) and math.isfinite(t) and 0 < t < _SLOWEST_US


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and math.isfinite(value) and value >= 0 else None


def extra(verdict: GateVerdict) -> dict[str, Any]:
    """What the gates found out, as fields of a row of the store."""
    known: dict[str, Any] = {k: int(verdict.facts[k]) for k in ("shared", "regs", "stack") if k in verdict.facts}
    return known | ({"compile_s": verdict.compile_s} if verdict.compile_s is not None else {})
