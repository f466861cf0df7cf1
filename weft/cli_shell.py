"""What all verbs share: parameters, and how a function becomes a command whose failures are a line and a code.

`SPEC`, `TARGET`, `PLAN`, `OUT` and `FORCE` are parameters; `verb` makes a command of a function that returns a Report.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from weft import outputs
from weft.errors import InfeasibleError, SpecError, UsageError, WeftError
from weft.frontends.problems import as_json, render, visible
from weft.progress import Working, clear


@dataclass(frozen=True)
class Report:
    """What a verb found: data for `--json`, text for people, and whether the check it stands for held.

    code: the exit code, where it is neither 0 nor 1. warnings: for people, on stderr."""

    data: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    ok: bool = True
    code: int | None = None
    warnings: str = ""


def SPEC(function: Any, required: bool = True) -> Any:
    """The spec a verb works on, and how to change its sizes."""
    options = (
        click.argument("spec", type=click.Path(), required=required),
        click.option("--set", "sets", multiple=True, metavar="DIM=VALUE", help="Change a dim; may be repeated."),
        click.option("--small", is_flag=True, help="Apply the spec's `small:` map: a model that runs in a second."),
        click.option("--train/--no-train", default=True, help="With or without backward. Default: with."),
    )
    return _all(options)(function)


def TARGET(function: Any) -> Any:
    """The machine whose prices count."""
    text = "cpu, sm_80, sm_90, sm_100, sm_120 or gfx942; default: this machine."
    return click.option("--target", metavar="T", help=text)(function)


def PLAN(function: Any) -> Any:
    """What a plan is made for."""
    options = (
        TARGET,
        click.option("--memory", metavar="BYTES", help="Peak memory allowed, such as 60GB or 24GiB."),
        click.option("--optimizer", default="none", metavar="O", help="Count what it takes: adamw, sgd, lamb, lars."),
    )
    return _all(options)(function)


Try = Callable[[str, Mapping[str, Any]], object]
"""UsageError where a path cannot be written to, told what else was given."""


class OutputOption(click.Option):
    """A path that a verb writes to. Every one is tried before the verb begins: `tried` says how."""

    def __init__(self, names: Sequence[str], tried: Try, **options: Any) -> None:
        super().__init__(names, type=click.Path(), **options)
        self.tried = tried


class Passes(click.Option):
    """Its help ends in the name of every pass, read when that help is asked for."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        from weft.passes.pipeline import PIPELINE  # other verbs, and their help, do without these files

        record = super().get_help_record(ctx)
        names = ", ".join(p.name for p in PIPELINE)
        return record and (record[0], f"{record[1]} In their order: {names}.")


def output(*names: str, tried: Try | None = None, **options: Any) -> Any:
    """An `OutputOption` as a parameter; by default a file, which is overwritten where that is allowed."""
    return click.option(*names, cls=OutputOption, tried=tried or _file, **options)


def _file(path: str, given: Mapping[str, Any]) -> None:
    outputs.tried(path, given.get("force", True))


def _tried(given: Mapping[str, Any]) -> None:
    """Every path that the verb at hand would write to."""
    found: dict[str, str] = {}
    for param in click.get_current_context().command.params:
        path = given.get(param.name or "")
        if isinstance(param, OutputOption) and path is not None:
            param.tried(path, given)
            other = found.setdefault(os.path.realpath(path), param.opts[-1])
            if other != param.opts[-1]:
                raise UsageError(f"{other} and {param.opts[-1]} are one file: {path}")


def OUT(*, required: bool = False, what: str = "file", tried: Try | None = None) -> Any:
    """Where the result goes."""
    return output("-o", "--out", tried=tried, required=required, help=f"The {what} to write.")


def FORCE(function: Any) -> Any:
    """Permission to overwrite."""
    return click.option("--force", is_flag=True, help="Overwrite what is there.")(function)


def _all(options: Sequence[Any]) -> Callable[[Any], Any]:
    def apply(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


def verb(*parameters: Any, name: str | None = None) -> Callable[[Callable[..., Report]], click.Command]:
    """Make a command of a function that returns a Report."""

    def make(function: Callable[..., Report]) -> click.Command:
        word = name or function.__name__.rstrip("_")

        def run(as_json: bool, debug: bool, **given: Any) -> int:
            def body() -> Report:
                _tried(given)
                return function(**given)

            return _run(word, body, as_json, debug)

        run.__doc__ = function.__doc__
        shared = (
            click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
            click.option("--debug", is_flag=True, help="Show a traceback when something goes wrong."),
        )
        return click.command(word.rpartition(".")[2])(_all((*parameters, *shared))(run))

    return make


def _run(word: str, body: Callable[[], Report], as_json: bool, debug: bool) -> int:
    schema = {"schema": f"weft.{word}/1"}
    try:
        with Working(terminal=False if as_json else None):
            report = body()
    except WeftError as error:
        if debug:
            raise
        say(_message(error), people=True)
        if as_json:
            say(document(schema | {"ok": False} | _error_data(error)))
        return error.exit_code
    if as_json:
        say(document(schema | {"ok": report.ok} | report.data))
    if report.text:
        say(report.text, people=as_json)
    if report.warnings:
        say(report.warnings, people=True)
    if report.code is not None:
        return report.code
    return 0 if report.ok else 1


def _message(error: WeftError) -> str:
    if isinstance(error, SpecError):
        return render(error)
    return "\n".join(f"error: {visible(line)}" if i == 0 else visible(line) for i, line in enumerate(_lines(error)))


def _lines(error: WeftError) -> list[str]:
    return str(error).splitlines() or [type(error).__name__]


def _error_data(error: WeftError) -> dict[str, Any]:
    if isinstance(error, SpecError):
        return {"problems": [as_json(p) for p in error.problems]}
    data: dict[str, Any] = {"error": {"kind": type(error).__name__, "message": str(error)}}
    if isinstance(error, InfeasibleError):
        data["error"]["smallest_bytes"] = error.smallest
    return data


def document(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=True)


def say(text: str, people: bool = False) -> None:
    """Print to stdout, or to stderr for people; what the terminal's encoding lacks as an escape."""
    clear()
    try:
        click.echo(text, err=people)
    except UnicodeEncodeError as error:
        click.echo(text.encode(error.encoding, "backslashreplace").decode(error.encoding), err=people)
    except OSError:
        if not people:  # who reads no errors has an exit code
            raise
