"""The command line: `weft VERB ...`. One short function per verb, which calls `weft.api` and returns a Report.

A verb is a function under `@verb(...)`: its docstring is its help, `SPEC`, `TARGET` and the like are its parameters,
and `--json` and `--debug` are added to all. Exit codes: 0 ok, 1 a check failed, 2 usage, 3 bad spec, 4 infeasible,
5 device or backend missing, 70 a bug of weft, 130 interrupted.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

import click

from weft import __version__, api, cli_cache, cli_tune, outputs
from weft.cli_shell import FORCE, OUT, PLAN, SPEC, TARGET, Passes, Report, document, say, verb
from weft.environment import unknown
from weft.errors import UsageError, WeftError
from weft.frontends.problems import visible, warned

BUG, INTERRUPTED = 70, 130
STARVED = ("can't allocate memory", "out of memory")
"""How torch says that it got none."""


@verb(SPEC)
def check(spec: str, sets: tuple[str, ...], small: bool, train: bool) -> Report:
    """Validate SPEC: its form, its sizes, and that it makes a graph. Imports no torch."""
    from weft.codegen.plan.explain import decodes  # only when it is asked for: every verb imports this file

    found = api.check(spec, sets=sets, small=small, train=train)
    sizes = ", ".join(f"{dim} {size}" for dim, size in found["dims"].items())
    text = (
        f"{found['spec']}: ok\n{found['name']}: {found['layers']} layers, {found['parameters']:,} parameters\n"
        f"dims: {sizes}\ninputs: {', '.join(found['inputs'])}; outputs: {', '.join(found['outputs'])}\n"
        f"{decodes(found['decode']['why'])}"
    )
    return Report(found, text, warnings=warned(found["warnings"]))


@verb(OUT())
def schema(out: str | None) -> Report:
    """Print the JSON Schema of a spec, for editors."""
    from weft.frontends.document import json_schema  # only when it is asked for: every verb imports this file

    found = json_schema()
    if out is None:
        return Report({"json_schema": found}, document(found))
    outputs.write(out, document(found) + "\n")
    return Report({"json_schema": found, "path": out}, f"wrote {out}")


@verb(click.argument("kind", required=False), OUT(), FORCE)
def new(kind: str | None, out: str | None, **_: Any) -> Report:
    """Write a commented spec to start from. Without KIND: list the kinds."""
    from weft.frontends import new as templates  # only when it is asked for: every verb imports this file

    if kind is None:
        listing = "\n".join(f"{name:12} {line}" for name, line in templates.KINDS.items())
        return Report({"kinds": templates.KINDS}, listing)
    text = templates.text(kind)
    if out is None:
        return Report({"kind": kind, "text": text}, text.rstrip())
    outputs.write(out, text)
    return Report({"kind": kind, "text": text, "path": out}, f"wrote {out}; next: weft check {out}")


@verb()
def doctor() -> Report:
    """Look at this machine: versions, devices, cache, environment; each row ok, warn or fail, with a fix."""
    from weft import doctor as machine  # only when it is asked for: every verb imports this file

    rows = machine.rows()
    return Report({"rows": [r.as_json() for r in rows]}, machine.table(rows), ok=all(r.state != "fail" for r in rows))


@verb(
    SPEC,
    PLAN,
    click.option("--mesh", metavar="AXES", help="Device mesh such as dp=2,tp=4: the collectives it takes."),
    click.option("--verdicts", is_flag=True, help="Show why each pair of operations is fused or not."),
    click.option(
        "--print-after",
        cls=Passes,
        multiple=True,
        metavar="PASS",
        help="Show the graphs after a pass; repeatable.",
    ),
    OUT(),
    FORCE,
)
def plan(out: str | None, verdicts: bool, **given: Any) -> Report:
    """Decide everything about SPEC and say why: layouts, regions, what the backward recomputes, peak memory."""
    from weft.codegen.package.disk import as_json  # only when it is asked for: every verb imports this file
    from weft.codegen.plan import explain as views

    del given["force"]
    found = api.plan(given.pop("spec"), **given)
    parts = [views.summary(found), views.memory(found), views.layers(found)]
    parts += [views.verdicts(found)] if verdicts else []
    parts += [views.collectives(found)] if "mesh" in found else []
    if out is not None:
        outputs.write(out, as_json(found))
        parts.append(f"wrote {out}")
    return Report(found, "\n\n".join(p for p in parts if p))


@verb(
    SPEC,
    TARGET,
    click.option("--resolved", is_flag=True, help="Every value of the spec and where it comes from."),
    click.option("--kernels/--no-kernels", default=True, help="Compile the kernels, for a GPU target. Default: do."),
)
def explain(spec: str, **given: Any) -> Report:
    """Table of SPEC, or of the package in a folder: block, operation, kernel, parameters, FLOPs, bytes, pattern
    density, what is kept. For a GPU target also each kernel's registers, shared memory and occupancy; no GPU is needed,
    but seconds are."""
    from weft.autotune.inspection import beat  # only when it is asked for: every verb imports this file
    from weft.codegen.plan import explain as views

    found = api.explain(spec, watch=beat, **given)
    return Report(found, views.text(found), ok=not views.refused(found))


def _exported(path: str, given: Mapping[str, Any]) -> None:
    api.exportable(given["format"], path, given["force"])


@verb(
    SPEC,
    PLAN,
    click.option("--format", required=True, type=click.Choice(["onnx", "plan", "dot"]), help="What to write."),
    OUT(required=True, what="file, or folder for onnx,", tried=_exported),
    click.option(
        "--weights", type=click.Path(), metavar="PATH", help="ONNX with weights: a state_dict or safetensors."
    ),
    click.option("--external", is_flag=True, help="The weights in a file beside the graphs, as over 2 GB they are."),
    FORCE,
)
def export(out: str, **given: Any) -> Report:
    """Write SPEC, or the package in a folder, as ONNX graphs, as a plan or as a DOT drawing of the plan."""
    notes: list[str] = []
    paths = api.export(given.pop("spec"), given.pop("format"), out, say=notes.append, **given)
    lines = [*(f"wrote {p}" for p in paths), *(f"note: {n}" for n in notes)]
    return Report({"paths": paths, "notes": notes}, "\n".join(lines))


def _packaged(path: str, given: Mapping[str, Any]) -> None:
    from weft.codegen.package.disk import tried  # only when it is asked for: every verb imports this file

    tried(path, given["force"])


@verb(
    SPEC,
    PLAN,
    OUT(required=True, what="folder", tried=_packaged),
    click.option("--verify", "check_it", is_flag=True, help="Then compare it with the fp64 reference."),
    click.option("--pack", "packs", multiple=True, metavar="PACK", help="Tuning results, asked after the store."),
    click.option("--require-tuned", is_flag=True, help="Fail where a kernel of the target was not measured."),
    FORCE,
)
def compile(out: str, check_it: bool, force: bool, **given: Any) -> Report:
    """Write SPEC as a package: plain PyTorch that needs nothing of weft."""
    from weft.codegen.package.disk import write  # only when it is asked for: every verb imports this file

    files = api.package(given.pop("spec"), **given)
    data = {"path": str(write(files, out, force)), "files": sorted(files)}
    lines = sum(text.count("\n") for name, text in files.items() if name.endswith(".py"))
    text = f"wrote {out}: {len(files)} files, {lines:,} lines of Python"
    if not check_it:
        return Report(data, f"{text}; next: weft verify {out}")
    found = api.verify(out)
    return Report(data | {"verify": found.data()}, f"{text}\n{found.text()}", found.ok)


@verb(SPEC, PLAN)
def verify(spec: str, **given: Any) -> Report:
    """Compare SPEC's module, or a package's folder, with the fp64 reference: outputs, gradients, decoding, kernels."""
    found = api.verify(spec, **given)
    return Report(found.data(), f"{found.text()}\n{'ok' if found.ok else 'FAILED'}", found.ok)


def _tune() -> click.Command:
    """Find the fastest configurations of the kernels of SPEC, or of a package's folder, and keep every trial."""

    def found(**given: Any) -> Report:
        data, text, code = cli_tune.tune(**given)
        return Report(data, text, ok=code == 0, code=code)

    found.__doc__ = _tune.__doc__
    return verb(partial(SPEC, required=False), TARGET, *cli_tune.OPTIONS, name="tune")(found)


def _cache() -> click.Group:
    """Look at the store of tuning results, share it, check it, tidy it up."""

    def command(name: str, function: Callable[..., Any], parameters: tuple[Any, ...]) -> click.Command:
        def found(**given: Any) -> Report:
            return Report(*function(**given))

        found.__doc__ = function.__doc__
        return verb(*parameters, name=f"cache.{name}")(found)

    return click.Group("cache", commands=[command(*row) for row in cli_cache.VERBS], help=_cache.__doc__)


@verb(click.argument("config", type=click.Path()), OUT(), FORCE, name="import.hf")
def hf(config: str, out: str | None, **_: Any) -> Report:
    """Write the spec of a Hugging Face CONFIG.json, or of the folder that holds one.

    What no spec says is refused by its name; what is left out is a note in the spec. Imports no torch."""
    found = api.import_hf(config)
    data = {"family": found.family.name, "notes": list(found.notes), "text": found.text}
    if out is None:
        return Report(data, found.text.rstrip())
    outputs.write(out, found.text)
    notes = "\n".join(f"note: {note}" for note in found.notes)
    return Report(data | {"path": out}, f"wrote {out}; next: weft check {out}", warnings=notes)


def _import() -> click.Group:
    """Write the spec of a model that is described elsewhere."""
    return click.Group("import", commands=[hf], help=_import.__doc__)


VERBS = (check, explain, plan, compile, verify, _tune(), export, _import(), schema, new, _cache(), doctor)


@click.group(
    commands=VERBS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 ok, 1 a check failed, 2 usage, 3 bad spec, 4 infeasible, 5 backend missing.",
)
@click.version_option(__version__, message="weft %(version)s")
def cli() -> None:
    """Compile a short specification of a sequence model to a readable PyTorch package."""


def run(arguments: Sequence[str] | None = None) -> int:
    """The program as a function: takes the arguments, returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    for name in unknown():
        say(f"warning: weft reads no variable {name}; `weft doctor` shows those it reads", people=True)
    try:
        if any("\0" in word for word in given):
            raise click.UsageError("no name of a file or of anything else holds a NUL")
        return cli.main(given, prog_name="weft", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message(), people=True)
        return 2
    except click.ClickException as error:
        _show(error)
        _failed(given, "UsageError", error.format_message())
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        say("interrupted", people=True)
        return INTERRUPTED
    except BrokenPipeError:
        _mute()
        return 0
    except WeftError as error:
        traceback.print_exc()
        return error.exit_code
    except Exception as error:
        kind, message, code = _told(error)
        if debug:
            traceback.print_exc()
        else:
            say(message, people=True)
        with suppress(OSError):
            _failed(given, kind, message.removeprefix("error: "))
        if isinstance(error, OSError):
            _mute()
        return code


def _show(error: click.ClickException) -> None:
    """As click shows it, but for what a terminal would act on."""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        usage = error.ctx.get_usage()
        say(f"{usage}\nTry '{error.ctx.command_path} --help' for help.\n", people=True)
    lines = f"Error: {error.format_message()}".expandtabs(4).splitlines()
    say("\n".join(map(visible, lines)), people=True)


def _failed(given: Sequence[str], kind: str, message: str) -> None:
    """The JSON document of a run that did not come to its verb's own."""
    if "--json" in given:
        word = next((a for a in given if a in cli.commands), "weft")
        say(document({"schema": f"weft.{word}/1", "ok": False, "error": {"kind": kind, "message": message}}))


def _told(error: Exception) -> tuple[str, str, int]:
    """What an exception that weft did not raise comes from, the system, a lack of memory or a bug: the kind, a line for
    people, the exit code."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return "system", f"error: {visible(where + error.strerror)}", UsageError.exit_code
    if isinstance(error, MemoryError) or any(said in str(error) for said in STARVED):
        return "memory", "error: there is not enough memory for this; --small and --set make a smaller model", 4
    line = visible(f"{type(error).__name__}: {error}".replace("\n", " "))[:300]
    return "internal", f"internal error: {line} (weft {__version__}; --debug shows where)", BUG


def _mute() -> None:
    """stdout takes no more, for its reader went away or its disk is full: nothing may be flushed to it at exit."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> NoReturn:
    """Run and leave with the exit code. A signal that asks to end ends it as an interrupt does: nothing is left."""
    gc.set_threshold(200_000, 30, 30)  # a verb makes many objects and few circles: looking costs a sixth of its time
    asked: list[int] = []

    def end(number: int, _: object) -> NoReturn:
        asked.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP) if os.name == "posix" else ():
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)
    code = run()
    sys.exit(128 + asked[0] if asked and code == INTERRUPTED else code)
