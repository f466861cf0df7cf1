"""What all verbs share: parameters, and how a function becomes a command whose failures are a line and a code.

`SPEC`, `TARGET`, `PLAN`, `OUT` and `FORCE` are parameters; `verb` makes a command of a function that returns a Report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from weft.errors import InfeasibleError, SpecError, WeftError


@dataclass(frozen=True)
class Report:
    """What a verb found: data for `--json`, text for people, and whether the check it stands for held.

    code: the exit code, where it is neither 0 nor 1."""

    data: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    ok: bool = True
    code: int | None = None


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
    )
    return _all(options)(function)


def OUT(*, required: bool = False, what: str = "file") -> Any:
    """Where the result goes."""
    return click.option("-o", "--out", type=click.Path(), required=required, help=f"The {what} to write.")


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
            return _run(word, lambda: function(**given), as_json, debug)

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
    if report.code is not None:
        return report.code
    return 0 if report.ok else 1


def _message(error: WeftError) -> str:
    if isinstance(error, SpecError):
        from weft.frontends.problems import render

        return render(error)
    from weft.frontends.problems import visible

    return "\n".join(f"error: {visible(line)}" if i == 0 else visible(line) for i, line in enumerate(_lines(error)))


def _lines(error: WeftError) -> list[str]:
    return str(error).splitlines() or [type(error).__name__]


def _error_data(error: WeftError) -> dict[str, Any]:
    if isinstance(error, SpecError):
        from weft.frontends.problems import as_json

        return {"problems": [as_json(p) for p in error.problems]}
    data: dict[str, Any] = {"error": {"kind": type(error).__name__, "message": str(error)}}
    if isinstance(error, InfeasibleError):
        data["error"]["smallest_bytes"] = error.smallest
    return data


def document(data: Any) -> str:
    import json

    return json.dumps(data, indent=2, ensure_ascii=True)


def say(text: str, people: bool = False) -> None:
    click.echo(text, err=people)
