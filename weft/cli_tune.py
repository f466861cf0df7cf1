"""`weft tune`: the verb over the autotuner, as a function that gives (data, text, exit code)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import click
from click.core import ParameterSource

from weft import api, outputs
from weft.cli_shell import output
from weft.errors import UsageError

INTERRUPTED = 130
Found = tuple[dict[str, Any], str, int]


def _study(path: str, given: Mapping[str, Any]) -> None:
    from weft.autotune.types import STUDIES  # only when kernels are tuned: `weft --help` imports this file

    if not path.endswith(STUDIES):
        raise UsageError(f"a study is written to a file that ends in {', '.join(STUDIES)}, not {path}")
    if os.path.lexists(path):
        raise UsageError(f"{path} exists; a study is written to a new file")
    outputs.tried(path)


def _added(path: str, given: Mapping[str, Any]) -> None:
    from weft.cache import pack  # only when kernels are tuned: `weft --help` imports this file

    outputs.tried(path, force=True)
    if os.path.isfile(path):
        pack.read(path)


_SEED = 2**31 - 1
OPTIONS: tuple[Any, ...] = (
    click.option("--budget", metavar="TIME", help="How long all of it may take, such as 90s, 10m or 1h."),
    click.option("--trials", type=click.IntRange(1), metavar="N", help="Most configurations timed, or compiled."),
    click.option("--prepare", is_flag=True, help="Every gate that needs no GPU, into a pack; times nothing."),
    click.option("--require-tuned", is_flag=True, help="Time nothing: exit 1 unless every kernel was measured."),
    click.option("--resume", is_flag=True, help="Take what an earlier run timed as it is, and go on."),
    click.option("--kernel", default="", metavar="NAME", help="Only kernels with this in their name."),
    click.option("--dtype", default="bf16", metavar="T", help="Of the configurations: bf16, f16 or f32; default bf16."),
    click.option("--device", "devices", multiple=True, metavar="D", help="A GPU, as CUDA_VISIBLE_DEVICES names it."),
    click.option("--shared", type=click.Path(), metavar="DIR", help="A store that tuners on other hosts use as well."),
    click.option("--storage", default="", metavar="URL", help="An Optuna storage that other tuners use as well."),
    click.option("--sampler", default="pool", metavar="NAME", help="pool, random, all, tpe, nsga2, cmaes or gp."),
    click.option("--seed", type=click.IntRange(0, _SEED), default=0, metavar="N", help="Of every choice; default 0."),
    click.option("--replay", type=click.Path(), metavar="TABLE", help="Search a recorded table instead of a GPU."),
    click.option("--seeds", type=click.IntRange(1), default=1, metavar="N", help="Replay with so many seeds."),
    click.option("--warm", multiple=True, type=click.Path(), metavar="TABLE", help="Replay: seeds from this table."),
    output("--html", metavar="PATH", help="Also write the report as one HTML file."),
    output("--study", tried=_study, metavar="PATH", help="Also write the trials for optuna-dashboard."),
    output("-o", "--out", tried=_added, metavar="PACK", help="The pack to write or to add to."),
    click.option("--force", is_flag=True, help="Overwrite the HTML file."),
)


GPU, PREPARE, REQUIRED, REPLAY = "a GPU", "--prepare", "--require-tuned", "--replay"
"""What a run of the verb works with."""
_SPEC = (GPU, PREPARE, REQUIRED)
TAKEN: dict[str, tuple[str, ...]] = {
    "spec": _SPEC, "sets": _SPEC, "small": _SPEC, "train": _SPEC, "target": _SPEC, "budget": (GPU, PREPARE, REPLAY),
    "trials": (GPU, PREPARE, REPLAY), "prepare": (PREPARE,), "require_tuned": (REQUIRED,), "resume": (GPU, REPLAY),
    "kernel": (GPU, PREPARE), "dtype": (GPU, PREPARE), "devices": (GPU,), "shared": (GPU,), "storage": (GPU,),
    "sampler": (GPU, REPLAY), "seed": (GPU, REPLAY), "replay": (REPLAY,), "seeds": (REPLAY,), "warm": (REPLAY,),
    "html": (GPU, PREPARE, REPLAY), "study": (GPU, REPLAY), "out": (GPU, PREPARE), "force": (GPU, PREPARE, REPLAY),
}  # fmt: skip
"""Of each parameter, which of those it says something to; elsewhere it is refused."""


def tune(spec: str | None, **given: Any) -> Found:
    """Look at the options and do what they ask for."""
    from weft.autotune import names  # only when kernels are tuned: `weft --help` imports this file
    from weft.autotune.budget import seconds_of

    if (spec is None) == (given["replay"] is None):
        raise UsageError("tune takes a SPEC, the folder of a package, or --replay TABLE")
    mode = REPLAY if given["replay"] is not None else REQUIRED if given["require_tuned"] else GPU
    mode = PREPARE if mode == GPU and given["prepare"] else mode
    _meant(mode, spec, given)
    given["seconds"] = seconds_of(given.pop("budget")) if given["budget"] is not None else None
    given["dtype"], given["sampler"] = names.dtype(given["dtype"]), names.sampler(given["sampler"])
    if mode == REPLAY:
        return _replay(given)
    verbs = {REQUIRED: _required, PREPARE: _prepare, GPU: _package}
    return verbs[mode](spec, given)


def _meant(mode: str, spec: str | None, given: Mapping[str, Any]) -> None:
    """UsageError for an option that would do nothing, with what it goes with."""
    context = click.get_current_context()
    for param in context.command.params:
        name = param.name or ""
        if name not in TAKEN or context.get_parameter_source(name) is ParameterSource.DEFAULT:
            continue
        option = param.secondary_opts[0] if given.get(name) is False and param.secondary_opts else param.opts[-1]
        if mode not in TAKEN[name]:
            raise UsageError(f"{option} says nothing to {mode}; it goes with {', '.join(TAKEN[name])}")
        if name == "train" and spec is not None and os.path.isdir(spec):
            raise UsageError(f"a package was made with or without its backward; {option} goes with a spec")
    if given["force"] and not given["html"]:
        raise UsageError("--force overwrites the file of --html PATH, which is not given")
    if given["shared"] and given["storage"]:
        raise UsageError("--shared and --storage are two ways to share; give one")
    if given["shared"]:
        outputs.tried_folder(given["shared"])


def _replay(given: dict[str, Any]) -> Found:
    from weft.autotune.report import tables  # only when kernels are tuned: `weft --help` imports this file
    from weft.autotune.report.progress import Progress
    from weft.autotune.search.replays import table_text

    with Progress() as progress:
        found = api.replay(
            given["replay"], warm=given["warm"], seeds=given["seeds"], seed=given["seed"], trials=given["trials"],
            seconds=given["seconds"], sampler=given["sampler"], resume=given["resume"], watch=progress.watch,
        )  # fmt: skip
    last = found.results[-1]
    results = [tables.data(r) for r in found.results]
    studies = {f"weft seed {given['seed'] + i}": r.study for i, r in enumerate(found.results) if r.study is not None}
    paths = _written(given, results, f"{found.table.label}, replayed", studies)
    data = {"mode": "replay", **found.data(), "paths": paths, "kernels": results}
    parts = [tables.text(last)] if len(results) == 1 else []
    late = f"the budget is used up; {found.unbegun} of {given['seeds']} seeds were not begun; it takes a longer one"
    parts += [table_text([found]), *([late] if found.unbegun else []), *map(_wrote, paths)]
    return data, "\n\n".join(parts), INTERRUPTED if last.stopped == "interrupted" else int(bool(found.unbegun))


def _required(spec: str | None, given: dict[str, Any]) -> Found:
    found = api.tuned(spec, given["sets"], given["small"], given["train"], given["target"])
    names = ", ".join(found)
    return {"mode": "required", "kernels": {n: a.data() for n, a in found.items()}}, f"tuned: {names}", 0


def _prepare(spec: str | None, given: dict[str, Any]) -> Found:
    from weft.autotune.report.html import prepared_page  # only when kernels are tuned: `weft --help` imports this file

    found = api.prepare(
        spec, given["sets"], given["small"], given["train"], given["target"], seconds=given["seconds"],
        most=given["trials"], only=given["kernel"], dtype=given["dtype"],
    )  # fmt: skip
    data, paths, lines = {"mode": "prepare", **found.data()}, list[str](), [found.text()]
    if given["html"]:
        outputs.write(given["html"], prepared_page(data, f"{os.path.basename(spec or '')}, prepared"))
        paths.append(given["html"])
        lines.append(_wrote(given["html"]))
    if given["out"]:
        paths.append(_pack(given["out"], found.pack))
        lines.append(f"{_wrote(given['out'])}: {found.pack.rows} rows")
    return data | {"paths": paths}, "\n".join(lines), int(not found.ok)


def _package(spec: str | None, given: dict[str, Any]) -> Found:
    from weft.autotune.report.progress import Progress  # only when kernels are tuned: `weft --help` imports this file

    with Progress() as progress:
        found = api.tune(
            spec, given["sets"], given["small"], given["train"], given["target"], seconds=given["seconds"],
            trials=given["trials"], resume=given["resume"], only=given["kernel"], dtype=given["dtype"],
            devices=given["devices"], shared=given["shared"], storage=given["storage"], sampler=given["sampler"],
            seed=given["seed"], watch=progress.watch,
        )  # fmt: skip
    data = found.data()
    studies = {f"weft {t.task.problem.name}": t.result.study for t in found.tuned if t.result.study is not None}
    paths = _written(given, data["kernels"], spec or "", studies)
    paths += [_pack(given["out"], found.pack)] if given["out"] else []
    text = "\n".join([found.text(), *map(_wrote, paths)])
    if found.interrupted:
        text += "\ninterrupted: what was timed is kept; --resume goes on from there"
    code = INTERRUPTED if found.interrupted else int(bool(found.unbegun))
    return {"mode": "tune", **data, "paths": paths}, text, code


def _wrote(path: str) -> str:
    return f"wrote {path}"


def _pack(path: str, made: Any) -> str:
    """Write a pack; what a pack that is there holds stays in it."""
    from weft.cache import pack  # only when kernels are tuned: `weft --help` imports this file

    if os.path.isfile(path):
        made = pack.read(path) | made
    pack.save(path, made.text())
    return path


def _written(given: dict[str, Any], results: list[dict[str, Any]], title: str, studies: Mapping[str, Any]) -> list[str]:
    """The HTML report and the studies, where they are asked for."""
    paths: list[str] = []
    if given["html"]:
        from weft.autotune.report.html import page  # only when kernels are tuned: `weft --help` imports this file

        outputs.write(given["html"], page(results, os.path.basename(title)))
        paths.append(given["html"])
    if given["study"]:
        from weft.autotune.search.study import export  # only when kernels are tuned: `weft --help` imports this file

        export(studies, given["study"])
        paths.append(given["study"])
    return paths
