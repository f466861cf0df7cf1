"""The kernels of one package, tuned one after another; the winners go into its configs.json, the trials into the store.

    found = Session(planned, folder, Settings("sm_90", Budget(600)), Store()).run()

A kernel gets the share of the budget that it has of the model's time; what one does not use is left to the next. The
budget of all holds: what is under way at its end is ended, and nothing begins after it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft import outputs
from weft.autotune.budget import Budget, BudgetShare, Late
from weft.autotune.gates.gatekeeper import Gatekeeper
from weft.autotune.gates.runner import BenchRunner
from weft.autotune.prepare import placer, prepared, unbegun
from weft.autotune.report.progress import micros
from weft.autotune.report.tables import data, spelled, text
from weft.autotune.search.claims import Claims
from weft.autotune.search.kernel import Search
from weft.autotune.search.result import Options, Result
from weft.autotune.search.rows import StoreJournal
from weft.autotune.search.shared_study import SharedStudy
from weft.autotune.space.neighbours import neighbours
from weft.autotune.space.problems import POLICY, Task, by_weight, key, tasks
from weft.autotune.types import Config, Journal, Subject, Value
from weft.autotune.workers.compile_pool import CompilePool
from weft.autotune.workers.device import INTERPRETER, device_of
from weft.cache.key import Device, Key
from weft.cache.lease import Leases
from weft.cache.pack import Pack
from weft.cache.search import ResultSource
from weft.cache.sources import export
from weft.cache.store import Store
from weft.codegen.package.disk import as_json
from weft.codegen.package.reading import CONFIGS, configurations
from weft.errors import BackendError, UsageError
from weft.progress import doing
from weft.targets import find

if TYPE_CHECKING:
    from weft.codegen.plan.planner import Planned

_LEAST_SECONDS = 5.0
_STAGING_SECONDS = 0.2  # what the shared-memory gate takes a configuration
_STAGING_SHARE = 0.25  # of the budget, at most
_POOL_SHARE = 0.5  # of the budget, after which the gates stop to ask about the space as a whole
Watch = Callable[[Search], None]


@dataclass(frozen=True)
class Settings:
    """target: "sm_90". budget: of the whole session; trials: at most of one kernel, None for no limit. devices: as
    CUDA_VISIBLE_DEVICES names them, "" for the first, "cpu" for the interpreter. only: part of a kernel's name, or a
    skeleton. dtype: of the configurations. shared: whether other tuners use the store as well; storage: URL of an
    Optuna storage that they use. options: of every search."""

    target: str
    budget: Budget = field(default_factory=Budget)
    trials: int | None = None
    devices: tuple[str, ...] = ("",)
    only: str = ""
    dtype: str = "bf16"
    workers: int | None = None
    shared: bool = False
    storage: str = ""
    options: Options = field(default_factory=Options)


@dataclass(frozen=True)
class Tuned:
    """One kernel: what it ran with, and what it runs with now."""

    task: Task
    key: Key
    before: Config
    result: Result

    @property
    def after(self) -> Config:
        """The winner; what was there, where nothing ran."""
        return self.result.winner or self.before

    @property
    def changed(self) -> bool:
        return self.after != self.before

    def line(self) -> str:
        """What changed, for people."""
        name, found = self.task.problem.name, data(self.result)
        if not self.changed:
            return f"{name}: stays at {spelled(self.before)}"
        knobs = ", ".join(f"{k} {self.before.get(k)} -> {v}" for k, v in self.after.items() if self.before.get(k) != v)
        was, now = found["incumbent_us"], found["winner_us"]
        gain = f"; {micros(was)} -> {micros(now)}" if was and now else ""
        return f"{name}: {knobs}{gain}"


@dataclass(frozen=True)
class Found:
    """What a session came to. path: the configs.json that was written, "" where nothing changed or none is kept.
    unbegun: kernels that the budget left no time for."""

    target: str
    device: str
    tuned: tuple[Tuned, ...]
    pack: Pack
    path: str = ""
    unbegun: tuple[str, ...] = ()

    @property
    def interrupted(self) -> bool:
        return any(t.result.stopped == "interrupted" for t in self.tuned)

    def data(self) -> dict[str, Any]:
        """As JSON data."""
        rows = [
            {"before": t.before, "after": t.after, "changed": t.changed, "key": t.key.id, **data(t.result)}
            for t in self.tuned
        ]
        return {"target": self.target, "device": self.device, "configs": self.path, "kernels": rows} | {
            "unbegun": list(self.unbegun)
        }

    def text(self) -> str:
        """For a terminal."""
        changes = [f"{'wrote ' + self.path if self.path else 'no file changed'}:", *(t.line() for t in self.tuned)]
        late = [unbegun(self.unbegun, len(self.tuned))] if self.unbegun else []
        return "\n\n".join([*(text(t.result) for t in self.tuned), "\n".join(changes), *late])


class Session:
    """One run over a package. folder: of the package; store: gets the trials; private: has compiled kernels, default
    the store; rewrite: whether the package's configs.json gets the winners."""

    def __init__(
        self, planned: Planned, folder: str | os.PathLike[str], settings: Settings, store: Store,
        sources: Sequence[ResultSource] = (), *, private: Store | None = None, rewrite: bool = True,
        watch: Watch = lambda search: None,
    ) -> None:  # fmt: skip
        self.folder, self.settings, self.store, self.private = Path(folder), settings, store, private or store
        self.sources: tuple[ResultSource, ...] = (store, *sources)
        self.rewrite, self.watch = rewrite, watch
        found = tasks(planned, self.folder, settings.target, settings.dtype)
        self.tasks = by_weight(found, settings.only) if settings.only else found
        if not self.tasks:
            raise UsageError(nothing(settings.only, [t.problem.name for t in found]))
        if rewrite:
            outputs.tried(self.folder / CONFIGS[0], force=True)

    def run(self) -> Found:
        """All kernels, the heaviest first. BackendError where there is no device for the target."""
        settings, done, device = self.settings, list[Tuned](), Device(self.settings.target)
        with ExitStack() as stack:
            cache = stack.enter_context(tempfile.TemporaryDirectory(prefix="weft-tune-"))
            folder = self.tasks[0].problem.workload.folder
            compilers = stack.enter_context(CompilePool(folder, settings.workers, budget=settings.budget))
            with suppress(Late):
                device = self._device(self.tasks[0])
                self._each(done, device, compilers, cache)
        self.store.flush()
        path = self._write(done) if self.rewrite and any(t.changed for t in done) else ""
        made = export(self.store, [t.key for t in done], by="weft tune", target=settings.target)
        late = tuple(t.problem.name for t in self.tasks if all(t is not d.task for d in done))
        return Found(settings.target, device.gpu or device.arch, tuple(done), made, path, late)

    def _each(self, done: list[Tuned], device: Device, compilers: CompilePool, cache: str) -> None:
        """One kernel after another, until there is no time left; one without a trial in its time was not begun."""
        budget, weight = self.settings.budget, sum(t.weight for t in self.tasks) or 1.0
        for task in self.tasks:
            if budget.left() <= 0:
                return
            share = budget.left() * min(1.0, task.weight / weight if weight else 1.0)
            weight -= task.weight
            one = self._tune(
                task, device, compilers, cache, budget.part(max(_LEAST_SECONDS, share), self.settings.trials)
            )
            if one.result.trials or one.result.stopped != "budget":
                done.append(one)
            if one.result.stopped == "interrupted":
                return

    def _device(self, task: Task) -> Device:
        doing("asking the device")
        with BenchRunner(task.problem, None, device=self.settings.devices[0], budget=self.settings.budget) as runner:
            facts = runner.device()
        device, self._soft = device_of(facts, self.settings.target)
        if device.arch != self.settings.target:
            raise BackendError(
                f"this machine has {device.arch} ({device.gpu}), not {self.settings.target}; --prepare needs no device"
            )
        return device

    def _tune(self, task: Task, device: Device, compilers: CompilePool, cache: str, budget: Budget) -> Tuned:
        problem, settings = task.problem, self.settings
        policy = INTERPRETER if device.gpu == INTERPRETER else POLICY
        own = key(task, device, compilers.triton(), compilers.ptxas(settings.target), policy)
        before = self._configured(task)
        with ExitStack() as stack:
            journal, options = self._shared(stack, StoreJournal(self.store, own, self._soft), problem.space.knobs)
            keeper = stack.enter_context(Gatekeeper(problem, compilers, watch=partial(_gate, problem.name)))
            for source in self.sources:
                if isinstance(source, Store | Pack):
                    keeper.recall(prepared(source, own))
            place = placer(self.private, keeper.triton, cache)
            runners = [
                stack.enter_context(
                    BenchRunner(problem, keeper, device=d, cache=cache, place=place, budget=settings.budget)
                )
                for d in settings.devices
            ]
            subject = self._subject(task, keeper, before, neighbours(self.sources, own, self._soft), budget)

            def watch(search: Search) -> None:
                (compilers.pause if search.phase == "finals" else compilers.resume)()
                self.watch(search)

            part = BudgetShare(1 + self.tasks.index(task), len(self.tasks), settings.budget)
            search = Search(subject, runners, budget, journal, options, watch=watch, ahead=keeper.ahead, part=part)
            try:
                result = search.run()
            finally:
                compilers.resume()
        return Tuned(task, own, before, result)

    def _shared(
        self, stack: ExitStack, own: StoreJournal, knobs: Mapping[str, Sequence[Value]]
    ) -> tuple[Journal, Options]:
        """The journal of a search and its options, where other tuners work on the same."""
        options = self.settings.options
        if self.settings.storage:
            study = stack.enter_context(SharedStudy(own, self.settings.storage, knobs))
            return study, replace(options, claim=study.take, release=study.release)
        if self.settings.shared:
            name = f"{own.key.id} {own.soft.id}"
            claims = stack.enter_context(Claims(own, Leases(os.path.join(self.store.top, "leases")), name))
            return own, replace(options, claim=claims.take, release=claims.release)
        return own, options

    def _subject(
        self, task: Task, keeper: Gatekeeper, before: Config, seeds: Iterable[Config], budget: Budget
    ) -> Subject:
        p, target = task.problem, find(self.settings.target)
        # Of a space too large for it, shared memory is asked about one by one, when a configuration's turn comes.
        staging = len(p.space.enumerate(p.target, p.given)) * _STAGING_SECONDS
        upto = "shared" if staging <= budget.left() * _STAGING_SHARE else "wrapper"
        pool = keeper.pool(upto, seconds=budget.left() * _POOL_SHARE)
        inside = [keeper.canonical(seed) for seed in (before, *seeds) if self._fits(task, seed)]
        incumbent = inside[0] if inside and self._fits(task, before) else None
        matrix = target.matrix.get(task.problem.dtype, target.matrix["f32"])
        roofline = 1e6 * max(task.bytes / target.bandwidth, task.flops / matrix)
        prior = pool.features.get("estimate")
        return Subject(p.name, pool, incumbent, tuple(inside), prior, roofline or None, task.weight)

    def _fits(self, task: Task, config: Config) -> bool:
        return not task.problem.space.refusal(task.problem.target, task.problem.given, config)

    # configs.json

    def _configured(self, task: Task) -> Config:
        """What the package runs the kernel with today, the knobs of the task's space."""
        try:
            found = _place(configurations(self.folder), task, self.settings)
            return {k: found[k] for k in task.problem.space.knobs}
        except (KeyError, TypeError):
            return dict(task.problem.default)

    def _write(self, done: Sequence[Tuned]) -> str:
        """Put the winners into configs.json; the file is replaced as a whole."""
        document, path = configurations(self.folder), self.folder / CONFIGS[0]
        for tuned in done:
            _place(document, tuned.task, self.settings).update(tuned.after)
        try:
            outputs.write(path, as_json(document))
        except UsageError as error:
            raise UsageError(f"{error}; the trials are kept in the store") from None
        return str(path)


def _gate(name: str, gate: str, done: int, total: int) -> None:
    """Tell the person who waits how far the gates before a search are."""
    doing(f"{name}: {gate}", done, total)


def _place(document: dict[str, Any], task: Task, settings: Settings) -> dict[str, Any]:
    found = document["kernels"].setdefault(task.kernel, {})
    for name in (settings.target, settings.dtype, *([task.part] if task.part else [])):
        found = found.setdefault(name, {})
    return found


def nothing(only: str, names: Sequence[str]) -> str:
    """Why there is nothing to tune."""
    if not names:
        return "no kernel of this package has a search space for that target"
    return f"no kernel has {only!r} in its name; there are {', '.join(names)}"
