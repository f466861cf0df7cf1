"""Which configurations a package is compiled with: for every kernel, architecture and dtype what the ladder answers.

    found = choose(planned, ladder(), "sm_90")
    found.files        configs.json, where it is not as it was
    found.answers      of the target's kernels, by name; found.line() says what they come to

The store's answers go into configs.json only where the kernel's space has them, and where the kernel's file walks
their blocks. Same plan, same versions, same rows: same bytes.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from weft.autotune.gates.features import estimate
from weft.autotune.prepare import prepared
from weft.autotune.space.problems import Task, key, tasks
from weft.autotune.types import Config, Status
from weft.autotune.workers.compile import versions
from weft.autotune.workers.compile_pool import named
from weft.autotune.workers.device import here
from weft.cache.answer import Answer, Rung
from weft.cache.key import Device, Key, Soft
from weft.cache.ladder import Ladder
from weft.cache.pack import Pack
from weft.cache.sources import Pretuned
from weft.cache.store import Store
from weft.codegen.package.disk import as_json
from weft.codegen.package.kernels import SCHEMA

if TYPE_CHECKING:
    from weft.codegen.plan.planner import Planned

CONFIGS = "configs.json"
DTYPE = "bf16"
"""Of the kernels that are spoken of; those of other dtypes are chosen likewise."""
_DEVICE = frozenset({"gpu", "sms", "shared", "partition"})
_SOFT = frozenset(Soft().flat())


@dataclass(frozen=True)
class Chosen:
    """files: path -> text. answers: of the target's kernels in bf16, by the name of the task."""

    target: str
    files: Mapping[str, str]
    answers: Mapping[str, Answer]

    def line(self) -> str:
        """How the target's kernels are known, and what would do better; "" where all are tuned, or there are none."""
        poor = {name: a for name, a in self.answers.items() if a.rung is not Rung.EXACT}
        if not poor:
            return ""
        counts = Counter(a.rung for a in self.answers.values())
        said = ", ".join(f"{counts[rung]} {rung}" for rung in Rung if counts[rung])
        name, worst = max(poor.items(), key=lambda pair: pair[1].rung.step)
        why = worst.why()
        return f"kernels on {self.target}: {said}" + (f" ({name}: {why})" if why else "") + f"; run {worst.command}"

    def data(self) -> dict[str, Any]:
        """As JSON data."""
        return {name: answer.data() for name, answer in self.answers.items()}


def choose(planned: Planned, ladder: Ladder, target: str, command: str = "") -> Chosen:
    """Ask the ladder about every kernel of a plan, for the target and for each architecture that something is known of.

    target: of which `answers` are; "cpu" for none. command: what would do better."""
    known = _archs(ladder)
    regions = {r.kernel: r for r in planned.kernels.regions}
    configs: dict[str, Any] = {name: copy.deepcopy(dict(r.configs)) for name, r in regions.items()}
    before, answers = copy.deepcopy(configs), dict[str, Answer]()
    tools = _tools() if known else {}
    for arch in sorted({*known, target} & {a for r in regions.values() for a in r.configs}):
        device, soft = here(arch) if arch == target else (Device(arch), Soft())
        for dtype in sorted({d for r in regions.values() for d in r.configs[arch]}):
            if not known and dtype != DTYPE:
                continue  # nothing can be found, and of these nothing is said
            for task in tasks(planned, "", arch, dtype):
                own = key(task, device, str(tools.get("triton", "")), _first(tools, arch))
                answer = _answer(ladder, task, own, soft, command)
                place = configs[task.kernel][arch][dtype]
                (place[task.part] if task.part else place).update(answer.config)
                if (arch, dtype) == (target, DTYPE):
                    answers[task.problem.name] = answer
    files = {CONFIGS: as_json({"schema": SCHEMA, "kernels": configs})} if configs != before else {}
    return Chosen(target, files, answers)


def _answer(ladder: Ladder, task: Task, own: Key, soft: Soft, command: str) -> Answer:
    p = task.problem

    def accept(config: Mapping[str, Any]) -> bool:
        return not p.space.refusal(p.target, p.given, config)

    def analytic() -> Config | None:
        return promising(ladder, own, accept)

    found = ladder.lookup(own, soft, accept, p.default, analytic=analytic, command=command)
    # Where only an architecture is asked for, a measurement on any GPU of it is all that can be had.
    hard = {name for name, _, _ in found.differs} - _SOFT
    return replace(found, hit=True) if found.us and not own.device.gpu and hard <= _DEVICE else found


def promising(ladder: Ladder, own: Key, accept: Any) -> Config | None:
    """Of what was prepared for a key's architecture the best by the cost model; None where nothing was."""
    found: list[tuple[float, str, Config]] = []
    for source in ladder.sources:
        held = source.pack if isinstance(source, Pretuned) else source
        for row in prepared(held, own) if isinstance(held, Store | Pack) else ():
            known = {n: float(v) for n, v in row.features if isinstance(v, int | float)}
            if row.status is Status.OK and "waves" in known and accept(row.config):
                found.append((estimate(known), row.cfg_id, row.config))
    return min(found, key=lambda f: f[:2])[2] if found else None


def _archs(ladder: Ladder) -> set[str]:
    """The architectures that some source has keys of: no rung crosses from one to another."""
    found: set[str] = set()
    for source in ladder.sources:
        index = source.index()
        found |= {str(index.value(name, "arch")) for name in index.rows}
    return found


def _tools() -> Mapping[str, Any]:
    """The versions of Triton and of its assemblers here; empty without them."""
    try:
        return versions()
    except ImportError:
        return {}


def _first(tools: Mapping[str, Any], arch: str) -> str:
    return named(str(tools.get("ptxas", {}).get(arch, "")))
