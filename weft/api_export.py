"""What `weft export` does, as functions: part of `weft.api`, which has them too. Imports nothing before it needs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft import outputs
from weft.calls import public
from weft.errors import FileError, UsageError
from weft.planning import open_spec, plan, program

if TYPE_CHECKING:
    from weft.ir.program import Program

FORMATS = ("onnx", "plan", "dot")


@public
def export(
    source: Any,
    format: str,
    out: str,
    sets: Iterable[str] = (),
    small: bool = False,
    train: bool = True,
    target: str | None = None,
    memory: str | int | None = None,
    optimizer: str = "none",
    force: bool = False,
    weights: str | os.PathLike[str] | None = None,
    external: bool = False,
    say: Callable[[str], object] | None = None,
) -> list[str]:
    """Write a spec, or the package in a folder, in one of FORMATS; gives the paths written.

    plan and dot are files; onnx is a folder that gets portable.onnx and semantic.onnx, of the model without training.
    weights: a state_dict that torch saved, or a safetensors file, whose tensors the ONNX graphs hold; external: in a
    file beside them. say: told what the files do not keep of the spec: its dtypes, where they are not all float32.
    """
    exportable(format, out, force)
    path = Path(out)
    if format == "onnx":
        from weft.codegen.onnx import dtypes  # only when it is asked for: every verb imports this file
        from weft.codegen.onnx import export as write

        made = _exported(source, sets, small)
        if say is not None and (lost := dtypes(made)):
            say(lost)
        return [str(p) for p in write(made, path, weights, external).values()]
    if weights is not None or external:
        raise UsageError("--weights and --external go with --format onnx")
    from weft.codegen.package.disk import as_json  # only when it is asked for: every verb imports this file
    from weft.codegen.plan.dot import dot

    made = saved_plan(source) or plan(source, sets, small, train, target, memory, optimizer)
    outputs.write(path, dot(made) if format == "dot" else as_json(made))
    return [str(path)]


def _exported(source: Any, sets: Iterable[str], small: bool) -> Program:
    """The program of a spec without training, or of the package in a folder."""
    if not isinstance(source, str | os.PathLike) or not os.path.isdir(source):
        return program(open_spec(source, sets, small), False)
    from weft.codegen.package.saved import read  # only when it is asked for: every verb imports this file

    if list(sets) or small:
        raise UsageError("a package has its sizes; --set and --small go with a spec")
    return read(source)


def exportable(format: str, out: str | os.PathLike[str], force: bool = False) -> None:
    """UsageError where `export` could not write to `out`, or may not."""
    if format not in FORMATS:
        raise UsageError(f"no format is called {format!r}; known: {', '.join(FORMATS)}")
    if format != "onnx":
        outputs.tried(out, force)
        return
    outputs.tried_folder(out)
    if not force and os.path.isdir(out) and os.listdir(out):
        raise UsageError(f"{out} exists; --force overwrites it")


def saved_plan(source: Any) -> dict[str, Any] | None:
    """The plan of a package on disk; None when `source` is no folder. Raises FileError where it is damaged."""
    if not isinstance(source, str | os.PathLike) or not Path(source).is_dir():
        return None
    from weft.codegen.package import reading  # only when it is asked for: every verb imports this file
    from weft.codegen.plan import explain as views
    from weft.codegen.plan.dot import dot

    name, schema = reading.PLAN
    found = reading.data(Path(source) / name, schema)
    reading.unchanged(Path(source), name)
    try:
        views.table(found)
        dot(found)
    except reading.SHAPES as error:
        raise FileError(Path(source) / name, f"not a plan that weft wrote: {type(error).__name__} {error}") from error
    return found
