"""Tuning without a GPU: every gate that needs none, for a target, into a pack that a GPU machine only has to time.

    found = prepare(tasks, store, "sm_90", budget)
    found.pack        rows without times: survivors and refusals with reasons, features, registers, shared memory
    found.funnels     how many each gate refused, and what that cost

Compiled kernels go to the private local store only, and serve there at an equal Triton version. The keys are those of
the architecture; a GPU of it finds them by `prepared`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weft.autotune.compile_pool import CompilePool, summary
from weft.autotune.funnel import Funnel, table
from weft.autotune.gates import Gatekeeper, Verdict
from weft.autotune.kept import join
from weft.autotune.kept import place as place_kept
from weft.autotune.problems import POLICY, Task, key
from weft.autotune.types import Row, Source, Status
from weft.cache.binaries import Binaries
from weft.cache.key import Device, Key, Soft
from weft.cache.pack import Entry, Pack
from weft.cache.store import Store

_NOT_ITS_OWN = ("launches the same as another configuration", "the wrapper cannot be run")
"""Refusals that say nothing of a configuration elsewhere."""


@dataclass(frozen=True)
class Prepared:
    """What preparing came to, by the task's name. broken: for a task that no configuration is left of, although some
    were compiled, why the last one was refused. seconds: of the clock; spent: what the compile workers counted."""

    pack: Pack
    funnels: dict[str, Funnel]
    survivors: dict[str, int]
    broken: dict[str, str]
    seconds: float
    spent: dict[str, Any]
    triton: str

    def text(self) -> str:
        """For people: what each gate left of each kernel, and why it refused the rest."""
        refused = [f"{name}: {reasons(f.rejected)}" for name, f in self.funnels.items() if f.rejected]
        broken = [f"{name}: no configuration is left: {why}" for name, why in self.broken.items()]
        parts = [*(["", "refused:", *refused] if refused else []), *(["", *broken] if broken else [])]
        return "\n".join([table(self.funnels), *parts])

    def data(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "triton": self.triton, "seconds": round(self.seconds, 3), "spent": self.spent, "rows": self.pack.rows,
            "kernels": {n: {"survivors": self.survivors[n], "gates": f.data()} for n, f in self.funnels.items()},
            "broken": self.broken,
        }  # fmt: skip


def prepare(
    tasks: Sequence[Task],
    store: Store,
    target: str,
    *,
    seconds: float = float("inf"),
    most: int = 200,
    workers: int | None = None,
    interpret: bool = True,
    cubins: bool = True,
    watch: Callable[[str], object] = lambda text: None,
) -> Prepared:
    """Every task through the gates up to the interpreter (or the compilation), the heaviest first.

    seconds: for all of them, divided by their weight; most: configurations of a task that are compiled, the most
    promising; the others are neither kept nor refused. cubins: keep compiled kernels in the store. watch: is told in a
    line what is being done."""
    began, funnels, survivors, entries = time.monotonic(), dict[str, Funnel](), dict[str, int](), list[Entry]()
    broken: dict[str, str] = {}
    if not tasks:
        return Prepared(Pack.of([]), {}, {}, {}, 0.0, {}, "")
    with tempfile.TemporaryDirectory(prefix="weft-prepare-") as scratch:
        keep = _Scratch(Path(scratch)) if cubins else None
        with CompilePool(tasks[0].problem.workload.folder, workers, keep) as compilers:
            triton, weight = compilers.triton(), sum(t.weight for t in tasks) or 1.0
            for place, task in enumerate(tasks):
                watch(f"preparing {task.problem.name}, {place + 1} of {len(tasks)}")
                left = seconds - (time.monotonic() - began)
                share = left if weight <= task.weight or left == float("inf") else left * task.weight / weight
                weight -= task.weight
                with Gatekeeper(task.problem, compilers, triton=triton) as keeper:
                    keeper.pool("interpreter" if interpret else "compile", most, max(0.0, share))
                    verdicts = keeper.verdicts()
                    rows = [_row(v, store, triton, keep) for v in verdicts if _worth(v)]
                funnels[task.problem.name] = keeper.funnel
                survivors[task.problem.name] = sum(row.status is Status.OK for row in rows)
                if (why := _broken(verdicts)) and not survivors[task.problem.name]:
                    broken[task.problem.name] = why
                entries.append(_kept(task, store, Device(target), rows, triton, compilers.ptxas(target)))
            spent = summary(compilers)
    made = Pack.of(entries, by="weft tune --prepare", target=target, triton=triton)
    return Prepared(made, funnels, survivors, broken, time.monotonic() - began, spent, triton)


def reasons(counts: Mapping[str, int]) -> str:
    """How many for each reason, the most frequent first."""
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{n:,} {reason}" for reason, n in ranked)


def _broken(verdicts: Sequence[Verdict]) -> str:
    """Why the last configuration that came to a compiler was refused; "" where none was."""
    return next((v.line for v in reversed(verdicts) if v.gate in ("shared", "compile", "interpreter")), "")


def _worth(verdict: Verdict) -> bool:
    """Whether a verdict is worth a row: not what arithmetic says again at once, nor what was never compiled."""
    if verdict.gate:
        return verdict.gate != "arithmetic" and verdict.reason not in _NOT_ITS_OWN
    return verdict.compile_s is not None


def _row(verdict: Verdict, store: Store, triton: str, scratch: _Scratch | None) -> Row:
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


def placer(store: Store, triton: str, cache: str | Path) -> Callable[[Verdict], int]:
    """Puts the kept kernels of a configuration where the bench worker's Triton looks first; how many there were."""
    binaries = Binaries(store.top)

    def place(verdict: Verdict) -> int:
        found = (binaries.get(name, triton) for name in verdict.cubins)
        return sum(len(place_kept(data, cache)) for data in found if data is not None)

    return place


def narrowed(task: Task, configs: int) -> Task:
    """The task with its spaces cut to about so many configurations, for a first look."""
    knobs = dict(task.problem.space.knobs)
    space = replace(task.problem.space, knobs=knobs)
    while space.size > configs:
        widest = max(knobs, key=lambda n: len(knobs[n]))
        kept = knobs[widest][::2] if len(knobs[widest]) > 2 else knobs[widest][:1]
        own = task.problem.default.get(widest)
        fewer = tuple(v for v in knobs[widest] if v in kept or v == own)
        if fewer == knobs[widest]:
            break  # what is left is the default and one value beside it
        knobs[widest] = fewer
        space = replace(space, knobs=dict(knobs))
    return replace(task, problem=replace(task.problem, space=space))
