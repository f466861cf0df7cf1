"""What the gates refuse, without a GPU: for every space of every skeleton, on three architectures.

Arithmetic is asked about the whole space. A seeded sample of what it leaves, the closed form of shared memory set
aside, goes through the wrapper, the TTGIR stage and the full compilation, whatever the gates before said: so it is seen
whether the cheap gates agree with the compiler, and what each would have refused.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from weft import api
from weft.autotune.space.problems import Task, tasks
from weft.autotune.workers.compile_pool import Built, CompilePool
from weft.autotune.workers.host import launches
from weft.autotune.workers.launches import KernelLaunch
from weft.codegen.build import files_of, temporary
from weft.targets import LIMITS

RESULT = Path(__file__).parent / "results" / "funnel.json"
TARGETS = ("sm_80", "sm_90", "sm_120")
SPECS = ("gpt2_345m", "switch_base", "sru_pp_enwik8", "sparse_transformer_enwik8")
RECORDED = 6  # times as many configurations are recorded as are compiled, to find so many that launch different things


@dataclass
class Cell:
    """One space on one target. sampled: distinct configurations that were compiled; over: those that the compiler says
    take too much shared memory; caught: those of them that a gate before it refuses; lost: valid ones it refuses."""

    size: int
    arithmetic: dict[str, int]
    left: int
    recorded: int = 0
    wrapper: Counter[str] = field(default_factory=Counter[str])
    sampled: int = 0
    shared: Counter[str] = field(default_factory=Counter[str])
    compile: Counter[str] = field(default_factory=Counter[str])
    equal: int = 0
    compared: int = 0
    over: int = 0
    caught: int = 0
    lost: int = 0
    spilling: int = 0
    cpu_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("wrapper", "shared", "compile"), 0.0))

    def data(self) -> dict[str, Any]:
        found = {k: dict(v) if isinstance(v, Counter) else v for k, v in vars(self).items()}
        return found | {"cpu_s": {k: round(v, 3) for k, v in self.cpu_s.items()}}


def cell(task: Task, target: str, compilers: CompilePool, count: int) -> Cell:
    p = task.problem
    listed = p.space.enumerate(target, p.given)
    made = Cell(p.space.size, dict(listed.rejected), len(listed))
    loose = replace(p.space, shared={}).enumerate(target, p.given).configs
    draw = random.Random(f"{p.space.name} {target}")
    configs = draw.sample(loose, min(len(loose), RECORDED * count))
    made.recorded = len(configs)
    job = {"workload": p.workload.data(), "target": target, "sizes": dict(p.sizes), "dtype": p.dtype}
    began = time.process_time()
    found = launches(job | {"kernels": list(p.space.kernels), "configs": configs})["found"]
    made.cpu_s["wrapper"] = time.process_time() - began
    distinct: dict[Any, tuple[Any, list[KernelLaunch]]] = {}
    for config, one in zip(configs, found, strict=True):
        if "raised" in one:
            made.wrapper["the wrapper refuses it"] += 1
            continue
        parsed = [KernelLaunch.parse(data) for data in one["launches"]]
        known = tuple((f.key(), f.grid) for f in parsed)
        if known in distinct:
            made.wrapper["launches the same as another configuration"] += 1
        elif parsed:
            distinct[known] = config, parsed
    for config, parsed in list(distinct.values())[:count]:
        cheap = [compilers.shared(f, target) for f in parsed]
        full = [compilers.compile(f, target) for f in parsed]
        closed = bool(p.space.refusal(target, p.given, config))
        compared(made, target, closed, [f.result() for f in cheap], [f.result() for f in full])
    return made


def compared(made: Cell, target: str, closed: bool, cheap: list[Built], full: list[Built]) -> None:
    """Count one configuration. closed: whether the closed form refuses it."""
    limit = LIMITS[target]["shared_limit"]
    made.sampled += 1
    for stage, builts in (("shared", cheap), ("compile", full)):
        made.cpu_s[stage] += sum(b.cpu_s for b in builts)
        failed = next((b.reason for b in builts if b.reason), "")
        large = any((b.shared or 0) > limit for b in builts)
        if failed or large:
            getattr(made, stage)[failed or "shared memory"] += 1
    known = [(a.shared, b.shared) for a, b in zip(cheap, full) if a.shared is not None and b.shared is not None]
    made.compared += len(known)
    made.equal += sum(a == b for a, b in known)
    before = closed or any(b.reason or (b.shared or 0) > limit for b in cheap)
    over = any((b.shared or 0) > limit for b in full)
    made.over += over
    made.caught += over and before
    made.lost += before and not over and not any(b.reason for b in full)
    made.spilling += any(b.stack for b in full)


def write(cells: dict[str, dict[str, Any]]) -> None:
    """The cells so far, with their totals."""
    keys = ("sampled", "compared", "equal", "over", "caught", "lost")
    total = {k: sum(c[k] for by in cells.values() for c in by.values()) for k in keys}
    document = {"schema": "weft.funnel/1", "environment": environment(), "total": total, "spaces": cells}
    RESULT.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configs", type=int, default=8, help="compiled of each space on each target")
    parser.add_argument("--specs", nargs="*", default=SPECS)
    given = parser.parse_args(arguments)
    cells: dict[str, dict[str, Any]] = {}
    for spec in given.specs:
        planned = api.planned(api.open_spec(f"examples/specs/{spec}.yaml"), True, "sm_90")
        folder = temporary(files_of(planned))
        with CompilePool(folder / "kernels", 1) as compilers:
            for target in TARGETS:
                for task in tasks(planned, folder, target):
                    name = f"{task.skeleton}: {task.problem.space.name}"
                    if target not in cells.setdefault(name, {}):
                        found = cell(task, target, compilers, given.configs)
                        cells[name][target] = {"spec": spec, "kernel": task.kernel, **found.data()}
                        print(name, target, cells[name][target], file=sys.stderr, flush=True)
                        write(cells)
    print(json.loads(RESULT.read_text())["total"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
