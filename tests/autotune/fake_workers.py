"""Workers that are no processes: each job takes so many seconds of a clock that tests turn, and is answered well."""

from collections import Counter
from functools import partial

from tests.autotune import made_up_bench
from tests.autotune.synthetic import FakeClock
from weft.autotune import budget
from weft.autotune.budget import FOREVER, Late
from weft.autotune.gates import gatekeeper, runner
from weft.autotune.types import config_id
from weft.autotune.workers import compile_pool
from weft.autotune.workers.launches import KernelLaunch
from weft.autotune.workers.process import Fault, JobAnswer


class Fakes:
    """costs: seconds of a job by its "op", 0 for others. begun: the op of every job and when it began; ended: how many
    jobs the budget ended, by op."""

    def __init__(self, **costs):
        self.clock, self.costs, self.begun, self.ended = FakeClock(), costs, [], Counter()

    def install(self, patch):
        """In the place of every worker, with this clock in every budget."""
        for module in (compile_pool, gatekeeper, runner):
            patch.setattr(module, "Worker", lambda *_, **__: Fake(self))
        patch.setattr(budget, "Budget", partial(budget.Budget, clock=self.clock))
        patch.setattr(compile_pool.os, "cpu_count", lambda: 2)  # one worker: a clock has no order among several
        return self


class Fake:
    def __init__(self, all_):
        self.all = all_

    def ask(self, job, seconds, budget=FOREVER):
        op, clock = job["op"], self.all.clock
        left, cost = budget.left(), self.all.costs.get(job["op"], 0.0)
        if left <= 0:
            raise Late
        self.all.begun.append((op, clock()))
        took = min(cost, seconds, left)
        clock.pass_(took)
        if cost > took:
            if left > seconds:
                return JobAnswer(None, took, Fault.TIMEOUT, "no answer")
            self.all.ended[op] += 1
            raise Late
        return JobAnswer(answer(op, job), took)

    def kill(self):
        pass

    interrupt = kill


def answer(op, job):
    if op == "version":
        return {"triton": "3.6.0", "ptxas": {}}
    if op == "launches":
        found = [KernelLaunch(".k", config_id(c), {}, options={"num_warps": 4}, grid=(99,)) for c in job["configs"]]
        return {"found": [{"launches": [f.data()]} for f in found], "cpu_s": 0.1}
    if op in ("shared", "compile"):
        return {"shared": 1024, "cpu_s": 0.1, **({"regs": 32, "stack": 0, "warps": 4} if op == "compile" else {})}
    if op == "interpret":
        return {"status": "ok", "error": 0.0, "reason": "", "cpu_s": 0.1}
    if op == "time":
        us = made_up_bench.us({"num_warps": 4, **job["config"]})
        return {"status": "ok", "times_us": [us] * job["samples"], "clock_mhz": 1980.0}
    return made_up_bench.handle(job)
