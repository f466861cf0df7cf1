"""Reading a package whose files may be cut, edited or gone: what is wrong is said in one line, with the file and place.

text(path), data(path, schema)        a file that weft reads
with blaming(folder): ...             code of the package runs: what it raises is told with its file and line
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from weft.codegen.package.manifest import changed, digest, written_or_nothing
from weft.errors import FileError, UsageError, WeftError

SHAPES = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""What code raises that is given data of another shape."""
PLAN, CONFIGS = ("plan.json", "weft.plan/1"), ("configs.json", "weft.configs/1")


def text(path: Path) -> str:
    """The text of a file. Raises FileError."""
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise FileError(path, error.strerror or "cannot be read") from None
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line = before.count(b"\n") + 1
        raise FileError(path, "not UTF-8 text", line, error.start - before.rfind(b"\n")) from None


def data(path: Path, schema: str) -> dict[str, Any]:
    """The JSON object in a file of this schema. Raises FileError."""
    try:
        found = json.loads(text(path))
    except json.JSONDecodeError as error:
        raise FileError(path, f"not JSON: {error.msg}", error.lineno, error.colno) from None
    except (RecursionError, ValueError) as error:
        if isinstance(error, WeftError):
            raise
        raise FileError(path, "JSON that is nested too deep, or has a number too long") from None
    if not isinstance(found, dict) or "schema" not in found:
        raise FileError(path, f"not what weft wrote: an object of the schema {schema}", 1, 1)
    if found["schema"] != schema:
        raise FileError(path, f"has the schema {found['schema']!r:.60}, not {schema}; compile the package again")
    return found


def unchanged(folder: Path, name: str) -> None:
    """FileError where a file that nobody has reason to edit is not what the manifest, if there is one, says."""
    if name in written_or_nothing(folder) and name in changed(folder):
        raise FileError(folder / name, "changed since weft wrote it; compile the package again")


@contextmanager
def blaming(folder: str | os.PathLike[str]) -> Generator[None]:
    """Inside, what a package that is not as weft wrote it raises is a FileError: its file, its line and what it says.

    Of a package as it was written everything goes through: that is a fault of weft's own."""
    try:
        yield
    except WeftError:
        raise
    except (Exception, SystemExit) as error:
        folder = Path(folder).absolute()
        odd = [name for name in changed(folder) if name != CONFIGS[0]]  # tuning changes that one
        if not odd:
            raise
        path, line = place(error, folder) or (folder / odd[0], 0)
        said = f"{type(error).__name__}: {first_line(error):.200}"
        if str(path.relative_to(folder)) in odd:
            raise FileError(path, said, line) from error
        if not (folder / odd[0]).is_file():
            raise FileError(folder / odd[0], f"is gone; {said}") from error
        raise FileError(path, f"{said}; changed since weft wrote them: {', '.join(odd[:5])}", line) from error


def place(error: BaseException, folder: Path) -> tuple[Path, int] | None:
    """The file of the package, and the line in it, that an exception comes from; None where it comes from elsewhere."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_relative_to(folder):
        return Path(error.filename), error.lineno or 0
    if error.__cause__ is not None and (found := place(error.__cause__, folder)):
        return found  # of an error in an interpreted kernel, which the interpreter tells as its own
    frames = traceback.extract_tb(error.__traceback__)
    inside = [f for f in frames if Path(f.filename).is_relative_to(folder)]
    return (Path(inside[-1].filename), inside[-1].lineno or 0) if inside else None


def first_line(error: BaseException) -> str:
    """The first line of what an exception says."""
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    return next(iter(said.strip().splitlines()), "")


def configurations(folder: Path) -> dict[str, Any]:
    """configs.json: kernel -> arch -> dtype -> knob -> value. Raises FileError."""
    path = folder / CONFIGS[0]
    found = data(path, CONFIGS[1])
    kernels = _map(path, found.get("kernels"), "kernels")
    for kernel in sorted(p.stem for p in (folder / "kernels").glob("k[0-9]*.py")):
        if kernel not in kernels:
            raise FileError(path, f"kernels.{kernel} is missing")
    for kernel, archs in kernels.items():
        for arch, dtypes in _map(path, archs, f"kernels.{kernel}").items():
            if not (arch.startswith("sm_") and arch[3:].isdecimal()):
                raise FileError(path, f"kernels.{kernel}: {arch!r:.40} is no target")
            for dtype, knobs in _map(path, dtypes, f"kernels.{kernel}.{arch}").items():
                _knobs(path, knobs, f"kernels.{kernel}.{arch}.{dtype}")
    return found


def _knobs(path: Path, knobs: Any, where: str) -> None:
    for knob, value in _map(path, knobs, where).items():
        if isinstance(value, dict):
            _knobs(path, value, f"{where}.{knob}")
        elif isinstance(value, str | float) or value is None:
            raise FileError(path, f"{where}.{knob} is {json.dumps(value):.40}, not a whole number")


def _map(path: Path, found: Any, where: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise FileError(path, f"{where} is {json.dumps(found):.40}, not a map")
    return found


def load(folder: str | os.PathLike[str]) -> ModuleType:
    """Import the package in `folder` under a name made of its path and contents: two packages never meet.

    Raises UsageError when there is none, FileError for a damaged one.
    """
    folder = Path(folder).absolute()
    init = folder / "__init__.py"
    if not init.is_file():
        raise UsageError(f"{folder} holds no emitted package (no __init__.py)")
    if os.path.lexists(folder / PLAN[0]) or PLAN[0] in written_or_nothing(folder):
        data(folder / PLAN[0], PLAN[1])
    if (folder / "kernels").is_dir():
        configurations(folder)
    parts = [f"{p.relative_to(folder)}\n{text(p)}" for p in sorted(folder.rglob("*.py"))]
    name = f"weft_package_{digest(str(folder) + ''.join(parts))[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(folder)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with blaming(folder):
            spec.loader.exec_module(module)
    except BaseException:
        for inner in [n for n in sys.modules if n == name or n.startswith(f"{name}.")]:
            del sys.modules[inner]
        raise
    return module
