"""`weft tune`: the verb over the autotuner, as a function that gives (data, text, exit code)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from weft import outputs
from weft.cli_shell import output
from weft.errors import UsageError

if TYPE_CHECKING:
    from weft.autotune.progress import Progress

INTERRUPTED = 130
Found = tuple[dict[str, Any], str, int]


def _study(path: str, given: Mapping[str, Any]) -> None:
    from weft.autotune.types import STUDIES

    if not path.endswith(STUDIES):
        raise UsageError(f"a study is written to a file that ends in {', '.join(STUDIES)}, not {path}")
    if os.path.lexists(path):
        raise UsageError(f"{path} exists; a study is written to a new file")
    outputs.tried(path)


def _added(path: str, given: Mapping[str, Any]) -> None:
    from weft.cache import pack

    outputs.tried(path, force=True)
    if os.path.isfile(path):
        pack.read(path)


OPTIONS: tuple[Any, ...] = (
    click.option("--budget", metavar="TIME", help="How long it may take, such as 90s, 10m or 1h."),
    click.option("--trials", type=click.IntRange(1), metavar="N", help="Most configurations timed of a kernel."),
    click.option("--prepare", is_flag=True, help="Every gate that needs no GPU, into a pack; times nothing."),
    click.option("--require-tuned", is_flag=True, help="Time nothing: exit 1 unless every kernel was measured."),
    click.option("--resume", is_flag=True, help="Take what an earlier run timed as it is, and go on."),
    click.option("--kernel", default="", metavar="NAME", help="Only kernels with this in their name."),
    click.option("--dtype", default="bf16", metavar="T", help="Of the configurations; default bf16."),
    click.option("--device", "devices", multiple=True, metavar="D", help="A GPU, as CUDA_VISIBLE_DEVICES names it."),
    click.option("--shared", type=click.Path(), metavar="DIR", help="A store that tuners on other hosts use as well."),
    click.option("--storage", default="", metavar="URL", help="An Optuna storage that other tuners use as well."),
    click.option("--sampler", default="pool", metavar="NAME", help="pool, random, all, tpe, nsga2, cmaes or gp."),
    click.option("--seed", default=0, metavar="N", help="Of every choice; default 0."),
    click.option("--replay", type=click.Path(), metavar="TABLE", help="Search a recorded table instead of a GPU."),
    click.option("--seeds", type=click.IntRange(1), default=1, metavar="N", help="Replay with so many seeds."),
    click.option("--warm", multiple=True, type=click.Path(), metavar="TABLE", help="Replay: seeds from this table."),
    output("--html", metavar="PATH", help="Also write the report as one HTML file."),
    output("--study", tried=_study, metavar="PATH", help="Also write the trials for optuna-dashboard."),
    output("-o", "--out", tried=_added, metavar="PACK", help="The pack to write or to add to."),
    click.option("--force", is_flag=True, help="Overwrite the HTML file."),
)


def tune(spec: str | None, **given: Any) -> Found:
    """Look at the options and do what they ask for."""
    from weft.autotune.budget import seconds_of

    if (spec is None) == (given["replay"] is None):
        raise UsageError("tune takes a SPEC, the folder of a package, or --replay TABLE")
    given["seconds"] = seconds_of(given.pop("budget")) if given["budget"] else None
    if given["replay"] is not None:
        return _replay(given)
    for name in ("warm", "seeds"):
        if given[name] not in ((), 1):
            raise UsageError(f"--{name} goes with --replay")
    if given["shared"] and given["storage"]:
        raise UsageError("--shared and --storage are two ways to share; give one")
    if given["require_tuned"]:
        return _required(spec, given)
    return _prepare(spec, given) if given["prepare"] else _package(spec, given)


def _progress() -> Progress:
    from weft.autotune.progress import Progress

    return Progress()


def _replay(given: dict[str, Any]) -> Found:
    from weft import api
    from weft.autotune import report
    from weft.autotune.replays import table_text

    with _progress() as progress:
        found = api.replay(
            given["replay"], warm=given["warm"], seeds=given["seeds"], seed=given["seed"], trials=given["trials"],
            seconds=given["seconds"], sampler=given["sampler"], resume=given["resume"], watch=progress.watch,
        )  # fmt: skip
    last = found.results[-1]
    results = [report.data(r) for r in found.results]
    paths = _written(given, results, f"{found.table.label}, replayed", last.study)
    data = {"mode": "replay", **found.data(), "paths": paths, "kernels": results}
    parts = [report.text(last)] if len(results) == 1 else []
    text = "\n\n".join([*parts, table_text([found]), *(f"wrote {path}" for path in paths)])
    return data, text, INTERRUPTED if last.stopped == "interrupted" else 0


def _required(spec: str | None, given: dict[str, Any]) -> Found:
    from weft import api

    found = api.tuned(spec, given["sets"], given["small"], given["train"], given["target"])
    names = ", ".join(found)
    return {"mode": "required", "kernels": {n: a.data() for n, a in found.items()}}, f"tuned: {names}", 0


def _prepare(spec: str | None, given: dict[str, Any]) -> Found:
    from weft import api

    with _progress() as progress:
        found = api.prepare(
            spec, given["sets"], given["small"], given["train"], given["target"], seconds=given["seconds"],
            most=given["trials"], only=given["kernel"], dtype=given["dtype"], watch=progress.note,
        )  # fmt: skip
    paths = [_pack(given["out"], found.pack)] if given["out"] else []
    data = {"mode": "prepare", **found.data(), "paths": paths}
    return (
        data,
        "\n".join([found.text(), *(f"wrote {path}: {found.pack.rows} rows" for path in paths)]),
        int(bool(found.broken)),
    )


def _package(spec: str | None, given: dict[str, Any]) -> Found:
    from weft import api

    with _progress() as progress:
        found = api.tune(
            spec, given["sets"], given["small"], given["train"], given["target"], seconds=given["seconds"],
            trials=given["trials"], resume=given["resume"], only=given["kernel"], dtype=given["dtype"],
            devices=given["devices"], shared=given["shared"], storage=given["storage"], sampler=given["sampler"],
            seed=given["seed"], watch=progress.watch,
        )  # fmt: skip
    data = found.data()
    study = found.tuned[-1].result.study if found.tuned else None
    paths = _written(given, data["kernels"], spec or "", study)
    paths += [_pack(given["out"], found.pack)] if given["out"] else []
    text = "\n".join([found.text(), *(f"wrote {path}" for path in paths)])
    if found.interrupted:
        text += "\ninterrupted: what was timed is kept; --resume goes on from there"
    return {"mode": "tune", **data, "paths": paths}, text, INTERRUPTED if found.interrupted else 0


def _pack(path: str, made: Any) -> str:
    """Write a pack; what a pack that is there holds stays in it."""
    from weft.cache import pack

    if os.path.isfile(path):
        made = pack.read(path) | made
    pack.save(path, made.text())
    return path


def _written(given: dict[str, Any], results: list[dict[str, Any]], title: str, study: Any) -> list[str]:
    """The HTML report and the study, where they are asked for."""
    paths: list[str] = []
    if given["html"]:
        from weft.autotune.report_html import page

        outputs.write(given["html"], page(results, os.path.basename(title)))
        paths.append(given["html"])
    if given["study"] and study is not None:
        from weft.autotune.study import export

        export(study, given["study"])
        paths.append(given["study"])
    return paths
