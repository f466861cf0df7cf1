"""What `weft tune` does, as functions: part of `weft.api`, which has them too. Imports nothing before it needs it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.api_export import saved_plan
from weft.errors import BackendError, UsageError
from weft.planning import open_spec, planned
from weft.targets import find

if TYPE_CHECKING:
    from pathlib import Path

    from weft.autotune.chosen import Chosen
    from weft.autotune.prepare import Prepared
    from weft.autotune.search.replays import Replays
    from weft.autotune.session import Found
    from weft.cache.answer import Answer
    from weft.codegen.plan.planner import Planned


def tune(
    source: Any,
    sets: Iterable[str] = (),
    small: bool = False,
    train: bool = True,
    target: str | None = None,
    *,
    seconds: float | None = None,
    trials: int | None = None,
    resume: bool = False,
    only: str = "",
    dtype: str = "bf16",
    devices: Sequence[str] = (),
    shared: str | os.PathLike[str] | None = None,
    storage: str = "",
    sampler: Any = "pool",
    seed: int = 0,
    watch: Any = None,
) -> Found:
    """Time the configurations of a spec's kernels, or of those of a package's folder, whose configs.json gets the
    winners; every trial is kept in the store.

    target: the machine's own by default. seconds: for all kernels, planning included, after which nothing begins and
    what is under way is ended; trials: at most of one. resume: believe what was timed before. only: part of a kernel's
    name. dtype: of the configurations, by any of its names. devices: as CUDA_VISIBLE_DEVICES names them. shared: a
    store that tuners on other hosts use too; storage: URL of an Optuna storage that they use. sampler: a name, or an
    Optuna sampler. Raises BackendError where the device is missing, UsageError for a name that is none.
    """
    from weft.autotune import names  # only when kernels are tuned: every verb imports this file
    from weft.autotune.budget import Budget
    from weft.autotune.search.result import Options
    from weft.autotune.session import Session, Settings
    from weft.cache.sources import Pretuned
    from weft.cache.store import Store
    from weft.codegen.plan.machine import own_target

    budget, kind = Budget(seconds), names.dtype(dtype)
    if isinstance(sampler, str):
        names.sampler(sampler)
    if target is not None:
        names.target(target)
    own = own_target()
    aim = target or own
    if aim == "cpu" or (own == "cpu" and not devices):
        raise BackendError("there is no GPU to tune on; --prepare needs none, and --replay searches a recorded table")
    names.target(aim)
    if storage:
        from weft.autotune.search.shared_study import tried  # only when kernels are tuned: every verb imports this file

        tried(storage)
    made, folder, rewrite = tunable(source, sets, small, train, aim)
    options = Options(seed=seed, sampler=sampler, resume=resume)
    settings = Settings(
        made.target.name, budget, trials, tuple(devices) or ("",), only, kind, shared=shared is not None,
        storage=storage, options=options,
    )  # fmt: skip
    with Store() as private, Store(shared) if shared is not None else private as store:
        others = (Pretuned(),) if store is private else (private, Pretuned())
        return Session(
            made, folder, settings, store, others, private=private, rewrite=rewrite,
            watch=watch or (lambda search: None),
        ).run()  # fmt: skip


def prepare(
    source: Any,
    sets: Iterable[str] = (),
    small: bool = False,
    train: bool = True,
    target: str | None = None,
    *,
    seconds: float | None = None,
    most: int | None = None,
    only: str = "",
    dtype: str = "bf16",
) -> Prepared:
    """Take the configurations of a spec's or a package's kernels through every gate that needs no GPU.

    target: the machine's own by default. seconds: for all kernels, planning included, after which nothing begins and
    what is under way is ended; most: configurations of a kernel that are compiled. dtype: of the configurations, by any
    of its names. UsageError for a name that is none.
    """
    from weft.autotune import names  # only when kernels are tuned: every verb imports this file
    from weft.autotune.budget import Budget
    from weft.autotune.prepare import prepare as run
    from weft.autotune.session import nothing
    from weft.autotune.space.problems import by_weight, tasks
    from weft.cache.store import Store

    budget, kind, aim = Budget(seconds), names.dtype(dtype), _aim(target, "--prepare")
    made, folder, _ = tunable(source, sets, small, train, aim)
    found = tasks(made, folder, aim, kind)
    chosen = by_weight(found, only) if only else found
    if not chosen:
        raise UsageError(nothing(only, [t.problem.name for t in found]))
    with Store() as store:
        bounds: dict[str, Any] = {"most": most} if most else {}
        return run(chosen, store, aim, budget=budget, **bounds)


def replay(
    table: str | os.PathLike[str],
    *,
    warm: Iterable[str | os.PathLike[str]] = (),
    seeds: int = 1,
    seed: int = 0,
    trials: int | None = None,
    seconds: float | None = None,
    sampler: Any = "pool",
    resume: bool = False,
    watch: Any = None,
) -> Replays:
    """Search a recorded table of Kernel Tuner or T4 instead of a GPU, with `seeds` seeds from `seed` on.

    warm: tables of the same kernel elsewhere, whose fastest become seeds. trials: default 100. seconds: of all
    searches. resume: keep the trials in the store, and take those of an earlier run as they are."""
    from weft.autotune import names  # only when kernels are tuned: every verb imports this file
    from weft.autotune.budget import Budget
    from weft.autotune.search.replay import load
    from weft.autotune.search.replays import TRIALS, replays
    from weft.cache.store import Store

    others, budget = [load(path) for path in warm], Budget(seconds)
    if isinstance(sampler, str) and names.sampler(sampler) in names.SEEDLESS and others:
        takers = ", ".join(n for n in names.SAMPLERS if n not in names.SEEDLESS)
        raise UsageError(f"sampler {sampler} takes no seeds, so --warm says nothing to it; these do: {takers}")
    limit = TRIALS if trials is None and seconds is None else trials
    watched = {"watch": watch} if watch else {}
    store = Store() if resume else None
    try:
        return replays(
            load(table), seeds=seeds, seed=seed, trials=limit, budget=budget, sampler=sampler, warm=others,
            store=store, **watched,
        )  # fmt: skip
    finally:
        if store is not None:
            store.close()


def configured(
    files: Mapping[str, str], planned: Planned, spec: str, packs: Iterable[str | os.PathLike[str]] = (),
    require: bool = False,
) -> dict[str, str]:  # fmt: skip
    """The files of a package with the configurations that the store, packs and what ships with weft know for its
    target; says once how they are known. spec: what `weft tune` would be given.

    require, or $WEFT_REQUIRE_TUNED: CheckFailed where a kernel of the target was not measured."""
    from weft.cache import place  # only when kernels are tuned: every verb imports this file
    from weft.cache.answer import require as measured

    if require and planned.target.kind != "gpu":
        raise UsageError("--require-tuned needs to know what for: --target sm_90, say")
    found = _chosen(planned, spec, packs)
    if (require or place.require_tuned()) and planned.target.kind == "gpu":
        measured(found.answers)
    if line := found.line():
        place.say_once(line, line)
    return {**files, **found.files}


def tuned(
    source: Any, sets: Iterable[str] = (), small: bool = False, train: bool = True, target: str | None = None
) -> Mapping[str, Answer]:
    """How the configuration of every kernel of a spec, or of a package's folder, is known, by the kernel's name.

    target: the machine's own by default. CheckFailed names every kernel that was not measured for it."""
    from weft.cache.answer import require  # only when kernels are tuned: every verb imports this file

    aim = _aim(target, "--require-tuned")
    found = _chosen(tunable(source, sets, small, train, aim)[0], os.path.basename(os.fspath(source)))
    require(found.answers)
    return found.answers


def _aim(target: str | None, option: str) -> str:
    """A target that kernels are tuned for, by default the machine's own."""
    from weft.autotune import names  # only when kernels are tuned: every verb imports this file
    from weft.codegen.plan.machine import own_target

    aim = own_target() if target is None else names.target(target)
    if aim == "cpu":
        raise UsageError(f"{option} needs to know what for: --target sm_90, say")
    return names.target(aim)


def _chosen(planned: Planned, spec: str, packs: Iterable[str | os.PathLike[str]] = ()) -> Chosen:
    from weft.autotune.chosen import choose  # only when kernels are tuned: every verb imports this file
    from weft.cache import pack
    from weft.cache.sources import ladder
    from weft.cache.store import Store

    # Opened to read: compiling makes no folder and writes no index into the store.
    paths = [packs] if isinstance(packs, str | os.PathLike) else packs
    asked = ladder(Store(readonly=True), [pack.read(os.fspath(p)) for p in paths])
    return choose(planned, asked, planned.target.name, f"weft tune {spec} --target {planned.target.name}")


def tunable(source: Any, sets: Iterable[str], small: bool, train: bool, target: str) -> tuple[Planned, Path, bool]:
    """The plan for a target, the folder its kernels lie in, and whether that folder is the user's."""
    from weft.codegen.build import files_of, temporary  # only when kernels are tuned: every verb imports this file

    if isinstance(source, str | os.PathLike) and Path(source).is_dir():
        from weft.codegen.package.saved import read  # only when kernels are tuned: every verb imports this file
        from weft.codegen.plan.planner import (
            plan as decide,
        )

        if list(sets) or small:
            raise UsageError("a package has its sizes; --set and --small go with a spec")
        made = read(source)
        dims = (saved_plan(source) or {}).get("dims", {})
        sizes = made.resolve(**{d: int(dims[d]) for d in made.runtime if d in dims})
        return decide(made, sizes, find(target)), Path(source), True
    found = planned(open_spec(source, sets, small), train, target)
    return found, temporary(files_of(found)), False
