"""Tuning without a GPU: every gate that needs none, for a target, into a pack that a GPU machine only has to time.

    found = prepare(tasks, store, "sm_90", budget=Budget(600))
    found.pack        rows without times: survivors and refusals with reasons, features, registers, shared memory
    found.funnels     how many each gate refused, and what that cost

Compiled kernels go to the private local store only, and serve there at an equal Triton version. The keys are those of
the architecture; a GPU of it finds them by `prepared`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from weft.autotune.budget import Budget, Late
from weft.autotune.gates.candidate import STEPS, GateVerdict
from weft.autotune.gates.funnel import Funnel, table
from weft.autotune.gates.gatekeeper import Gatekeeper
from weft.autotune.space.problems import POLICY, Task, key
from weft.autotune.types import Row, Source, Status
from weft.autotune.workers.compile_pool import PROGRAM, CompilePool, summary
from weft.autotune.workers.kept import join
from weft.autotune.workers.kept import place as place_kept
from weft.cache.binaries import Binaries
from weft.cache.key import Device, Key, Soft
from weft.cache.pack import Entry, Pack
from weft.cache.store import Store
from weft.progress import doing

_NOT_ITS_OWN = ("launches the same as another configuration", "the wrapper cannot be run")
"""Refusals that say nothing of a configuration elsewhere."""
_COSTS = (0.05, 0.35, 0.4, 0.2)
"""The share of a task's time that each of `STEPS` takes, about."""


@dataclass(frozen=True)
class Prepared:
    """What preparing came to, by the task's name. broken: for a task that no configuration is left of, although some
    were compiled, why the last one was refused. ended: for a task that there was not time enough for, of how many
    configurations each gate was not asked; unbegun: tasks that there was none for. seconds: of the clock; spent: what
    the compile workers counted."""

    pack: Pack
    funnels: dict[str, Funnel]
    survivors: dict[str, int]
    broken: dict[str, str]
    ended: dict[str, dict[str, int]]
    unbegun: tuple[str, ...]
    seconds: float
    spent: dict[str, Any]
    triton: str

    @property
    def ok(self) -> bool:
        """Whether no task is broken, and of each a configuration came through, where there is one, in time."""
        return not (self.broken or self.unbegun or any(not self.survivors[name] for name in self.ended))

    def text(self) -> str:
        """For people: what each gate left of each kernel, and why it refused the rest; what there was no time for."""
        refused = [f"{name}: {reasons(f.rejected)}" for name, f in self.funnels.items() if f.rejected]
        broken = [f"{name}: {self.note(name)}" for name in self.broken]
        late = [f"{name}: {self.note(name)}" for name in self.ended]
        late += [unbegun(self.unbegun, len(self.funnels))] if self.unbegun else []
        groups = (
            [table(self.funnels)] if self.funnels else [],
            ["refused:", *refused] if refused else [],
            broken,
            late,
        )
        return "\n\n".join("\n".join(group) for group in groups if group)

    def note(self, name: str) -> str:
        """What became of a task, in a line."""
        if name in self.broken:
            return f"no configuration is left: {self.broken[name]}"
        n, late = self.survivors[name], self.ended.get(name, {})
        left = f"{n or 'no'} configuration{'s'[: n != 1]} came through"
        gates = ", ".join(f"{gate} about {count:,}" for gate, count in late.items())
        return f"{left}; there was no time to ask {gates}" if late else left

    def data(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "triton": self.triton, "seconds": round(self.seconds, 3), "spent": self.spent, "rows": self.pack.rows,
            "kernels": {
                n: {"survivors": self.survivors[n], "note": self.note(n), "gates": f.data()}
                for n, f in self.funnels.items()
            },
            "broken": self.broken, "ended": self.ended, "unbegun": list(self.unbegun),
        }  # fmt: skip


def unbegun(names: Sequence[str], begun: int) -> str:
    """What there was no time for, for people, and the way out."""
    count = f"{len(names)} of {begun + len(names)} kernels were not begun: {', '.join(names)}"
    return f"the budget is used up; {count}; a longer --budget gets to them, and so does --kernel NAME"


def prepare(
    tasks: Sequence[Task],
    store: Store,
    target: str,
    *,
    budget: Budget | None = None,
    most: int = 200,
    workers: int | None = None,
    interpret: bool = True,
    cubins: bool = True,
    program: str = PROGRAM,
) -> Prepared:
    """Every task through the gates up to the interpreter (or the compilation), the heaviest first.

    budget: of all of them, half divided equally and half by their weight; it holds: what is under way at its end is
    ended, and nothing begins after it. most: configurations of a task that are compiled, the most promising; the others
    are neither kept nor refused. cubins: keep compiled kernels in the store. program: of the compile workers."""
    if not tasks:
        return Prepared(Pack.of([]), {}, {}, {}, {}, (), 0.0, {}, "")
    with tempfile.TemporaryDirectory(prefix="weft-prepare-") as scratch:
        keep, limit = _Scratch(Path(scratch)) if cubins else None, budget or Budget()
        with CompilePool(tasks[0].problem.workload.folder, workers, keep, program=program, budget=limit) as compilers:
            run = _Preparation(
                store, target, "interpreter" if interpret else "compile", most, compilers, keep, Eta(len(tasks))
            )
            return run.all(tasks)


@dataclass
class _Preparation:
    """One call of `prepare`, and what it came to so far."""

    store: Store
    target: str
    upto: str
    most: int
    compilers: CompilePool
    scratch: _Scratch | None
    eta: Eta
    funnels: dict[str, Funnel] = field(default_factory=dict[str, Funnel])
    survivors: dict[str, int] = field(default_factory=dict[str, int])
    broken: dict[str, str] = field(default_factory=dict[str, str])
    ended: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    entries: list[Entry] = field(default_factory=list[Entry])

    def all(self, tasks: Sequence[Task]) -> Prepared:
        """The heaviest first, until there is no time left."""
        budget, weight, triton = self.compilers.budget, sum(t.weight for t in tasks) or 1.0, ""
        with suppress(Late):
            triton = self.compilers.triton()
            for place, task in enumerate(tasks):
                if budget.left() <= 0:
                    break
                own = min(1.0, task.weight / weight) if weight > 0 else 1.0
                weight -= task.weight
                self.one(task, triton, budget.left() * (own + 1 / (len(tasks) - place)) / 2)
        names = tuple(t.problem.name for t in tasks if t.problem.name not in self.funnels)
        made = Pack.of(self.entries, by="weft tune --prepare", target=self.target, triton=triton)
        about = (self.funnels, self.survivors, self.broken, self.ended, names)
        return Prepared(made, *about, budget.used, summary(self.compilers), triton)

    def one(self, task: Task, triton: str, seconds: float) -> None:
        """A task; what of it was done in time is kept."""
        name, ptxas = task.problem.name, self.compilers.ptxas(self.target)
        watch = partial(self.eta.watch, name, len(self.funnels), self.compilers.budget)
        with Gatekeeper(task.problem, self.compilers, triton=triton, watch=watch) as keeper:
            keeper.pool(self.upto, self.most, seconds)
            verdicts = keeper.verdicts()
            rows = [_row(v, self.store, triton, self.scratch) for v in verdicts if _worth(v)]
        self.funnels[name], self.survivors[name] = keeper.funnel, sum(row.status is Status.OK for row in rows)
        if keeper.unasked:
            self.ended[name] = keeper.unasked
        if (why := _broken(verdicts)) and not self.survivors[name] and not keeper.unasked:
            self.broken[name] = why
        self.entries.append(_kept(task, self.store, Device(self.target), rows, triton, ptxas))


@dataclass
class Eta:
    """How long all of so many tasks will take, by what those before took: said as each gate goes on.

    A gate costs what it costs a configuration, times how many it is asked about."""

    tasks: int

    def watch(self, name: str, place: int, budget: Budget, gate: str, done: int, total: int) -> None:
        """Tell the person who waits: at task `place`, a gate was asked about so many."""
        before = sum(_COSTS[: STEPS.index(gate)])
        part = (place + before + _COSTS[STEPS.index(gate)] * done / total) / self.tasks
        left = min(budget.left(), budget.used / part * (1 - part)) if part else budget.left()
        doing(f"preparing {name}, {place + 1} of {self.tasks}: {gate} {done}/{total}", left=left)


def reasons(counts: Mapping[str, int]) -> str:
    """How many for each reason, the most frequent first."""
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{n:,} {reason}" for reason, n in ranked)


def _broken(verdicts: Sequence[GateVerdict]) -> str:
    """Why the last configuration that came to a compiler was refused, or could not be brought to one; "" where none
    was."""
    gates = ("shared", "compile", "interpreter")
    return next((v.line for v in reversed(verdicts) if v.gate in gates or v.reason == _NOT_ITS_OWN[1]), "")


def _worth(verdict: GateVerdict) -> bool:
    """Whether a verdict is worth a row: not what arithmetic says again at once, nor what was never compiled."""
    if verdict.gate:
        return verdict.gate != "arithmetic" and verdict.reason not in _NOT_ITS_OWN
    return verdict.compile_s is not None


def _row(verdict: GateVerdict, store: Store, triton: str, scratch: _Scratch | None) -> Row:
    facts = verdict.facts
    known: dict[str, Any] = {k: int(facts[k]) for k in ("shared", "regs", "stack") if k in facts}
    if verdict.compile_s is not None:
        known["compile_s"] = round(verdict.compile_s, 4)
    if verdict.error is not None:
        known["error"] = verdict.error
    if scratch is not None and verdict.ok and verdict.cubins:
        data = join(scratch.read(name) for name in verdict.cubins)
        known["cubin"] = Binaries(store.top).put(data, triton)
    features = {k: float(v) for k, v in facts.items()}
    return Row.of(verdict.config, verdict.status, reason=verdict.line, features=features, src=Source.PREPARE, **known)


def _kept(task: Task, store: Store, device: Device, rows: Sequence[Row], triton: str, ptxas: str) -> Entry:
    own, soft = key(task, device, triton, ptxas), Soft()
    for row in rows:
        store.append(own, row, soft)
    return Entry.of(own, [row.under(soft.id) for row in rows], {soft.id: soft})


class _Scratch:
    """Compiled kernels on disk until it is known which survive."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def __call__(self, data: bytes) -> str:
        fd, path = tempfile.mkstemp(dir=self.folder)
        with os.fdopen(fd, "wb") as f:
            f.write(data)
        return os.path.basename(path)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()


def prepared(source: Store | Pack, own: Key) -> list[Row]:
    """What was prepared for the architecture of a key's device, with the same Triton: for `Gatekeeper.recall`."""
    wanted = replace(own.on(Device(own.device.arch)), policy=POLICY)
    if isinstance(source, Pack):
        entry = source.entries.get(wanted.id)
        return [row for row in entry.rows if row.src is Source.PREPARE] if entry else []
    return [row for row in source.rows(wanted) if row.src is Source.PREPARE]


def placer(store: Store, triton: str, cache: str | Path) -> Callable[[GateVerdict], int]:
    """Puts the kept kernels of a configuration where the bench worker's Triton looks first; how many there were."""
    binaries = Binaries(store.top)

    def place(verdict: GateVerdict) -> int:
        found = (binaries.get(name, triton) for name in verdict.cubins)
        return sum(len(place_kept(data, cache)) for data in found if data is not None)

    return place
