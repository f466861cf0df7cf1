"""Exhaustive tuning tables: every configuration of one kernel of each kind, timed; the suite that searches replay.

    make gpu STAGES=tables        goes on where an earlier run ended; needs optuna

One task of each skeleton, half and part of a configuration, the heaviest of the shipped specs, its space cut to about
400 configurations. Tables go to benchmarks/tables/<gpu>/ as T4 documents, the winners of each to the pack that ships
with weft, weft/cache/pretuned/<gpu>/. Rows are kept as they are timed, in a store beside the tables' rows.
"""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.gpu.packages import Package, package
from benchmarks.gpu.programs import names
from benchmarks.gpu.stage import Stage
from weft.autotune.budget import Budget
from weft.autotune.search.result import Options
from weft.autotune.space.problems import Task, tasks
from weft.cache import pack, t4
from weft.cache.sources import export
from weft.cache.store import Store

ROOT = Path(__file__).parents[2]
CONFIGURATIONS = 400
WINNERS = 4  # of a key, in the pack


def run(stage: Stage) -> None:
    if importlib.util.find_spec("optuna") is None:
        stage.row("tables", skipped="optuna is not installed")
        return
    gpu, target = _gpu(stage)
    home = stage.path.parent if stage.rehearsal else ROOT / "build" / "gpu-tables"
    tables = (home if stage.rehearsal else ROOT / "benchmarks") / "tables" / gpu
    tables.mkdir(parents=True, exist_ok=True)
    with Store(home / "store") as store:
        found = chosen(target, stage.rehearsal)
        for name in stage.cases((n, n) for n in found):
            with stage.guarded(name):
                _record(stage, name, *found[name], store, tables / f"{name}.json")
        if not stage.rehearsal:
            place = ROOT / "weft" / "cache" / "pretuned" / gpu / f"{target}.weftpack"
            place.parent.mkdir(parents=True, exist_ok=True)
            pack.save(str(place), export(store, by="make gpu", target=target).winners(WINNERS).text())


def _gpu(stage: Stage) -> tuple[str, str]:
    if stage.rehearsal:
        return "rehearsal", "sm_90"
    p = torch.cuda.get_device_properties(0)
    return re.sub(r"\s+", "-", p.name.lower()), f"sm_{p.major}{p.minor}"


def chosen(target: str, rehearsal: bool) -> dict[str, tuple[Package, Task]]:
    """Name of a table -> the heaviest task of a skeleton, half, space and part."""
    best: dict[str, tuple[Package, Task]] = {}
    for spec in names()[:3] if rehearsal else names():
        made = package(spec, "small" if rehearsal else "published")
        regions = {r.kernel: r for r in made.regions}
        for task in tasks(made.planned, made.folder, target):
            if rehearsal and task.skeleton != "pointwise":
                continue  # a minute each in the interpreter
            half = made.half(regions[task.kernel])
            name = "-".join(dict.fromkeys(filter(None, (task.skeleton, half, task.problem.space.name, task.part))))
            if name not in best or task.weight > best[name][1].weight:
                best[name] = made, task
    return best


def _record(stage: Stage, name: str, made: Package, task: Task, store: object, path: Path) -> None:
    from weft.autotune.session import Session, Settings  # optuna, which need not be there

    assert isinstance(store, Store)
    options = Options(sampler="all", resume=True, enough=None)
    devices = ("cpu",) if stage.rehearsal else ("",)
    seconds = 10.0 if stage.rehearsal else max(10.0, stage.left)
    settings = Settings(task.problem.target, Budget(seconds), None, devices, options=options)
    session = Session(made.planned, made.folder, settings, store, rewrite=False)
    session.tasks = [_narrowed(task, 3 if stage.rehearsal else CONFIGURATIONS)]
    found = session.run()
    result = found.tuned[0].result
    path.write_bytes(t4.text(next(iter(found.pack.entries.values()))))
    stage.row(
        name, table=path.name, kernel=f"{made.name}.{task.problem.name}", trials=len(result.trials),
        stopped=result.stopped, before=dict(found.tuned[0].before), winner=dict(found.tuned[0].after),
    )  # fmt: skip


def _narrowed(task: Task, configs: int) -> Task:
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
