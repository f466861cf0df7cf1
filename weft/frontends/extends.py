"""`extends: base.yaml`: read a spec and what it builds on, merged into one document whose places follow their files.

Maps merge key by key, anything else is replaced. A base lies in the spec's own directory or below it, so that opening a
spec reads nothing a person would not expect.
"""

import os
import stat
import sys
from pathlib import Path as FilePath
from typing import Any

from weft.errors import Path, Place, Problem, SpecError, UsageError
from weft.frontends.suggest import nearest
from weft.frontends.yaml_loader import MAX_BYTES, Document, decode, load

MAX_CHAIN = 8
STDIN = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")


def read_document(path: str) -> Document:
    """The document at `path` with its bases merged in; UsageError when there is no such file.

    `-` is stdin. That and a pipe, such as a shell's `<(...)`, are read once; their bases lie in the folder one stands
    in, or below it."""
    if path in STDIN or _is_pipe(path):
        nameless = path.startswith(("/dev/fd/", "/proc/"))  # one shell's number for it
        name = "<stdin>" if path in STDIN else "<pipe>" if nameless else path
        return _extended(load(decode(_stream(path), name), name), "", os.getcwd(), ())
    if not os.path.exists(path):
        raise UsageError(f"{path}: no such file")
    if os.path.isdir(path):
        takers = "verify, explain, export and tune take the folder of a package"
        raise UsageError(f"{path} is a directory, and a spec is a file; {takers}")
    return _chain(path, os.path.dirname(os.path.realpath(path)), ())


def _is_pipe(path: str) -> bool:
    try:
        return not stat.S_ISREG(mode := os.stat(path).st_mode) and not stat.S_ISDIR(mode)
    except (OSError, ValueError):
        return False


def _stream(path: str) -> bytes:
    """What comes through stdin or a pipe, and no more than is looked at."""
    stdin: Any = sys.stdin
    try:
        if path not in STDIN:
            with open(path, "rb") as file:
                return file.read(MAX_BYTES + 1)
        if stdin is None:
            raise UsageError("stdin is closed")
        return stdin.buffer.read(MAX_BYTES + 1) if hasattr(stdin, "buffer") else stdin.read(MAX_BYTES + 1).encode()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or 'cannot be read'}") from None


def _chain(path: str, root: str, seen: tuple[str, ...]) -> Document:
    return _extended(load(decode(_read(path), path), path), path, root, seen)


def _extended(document: Document, path: str, root: str, seen: tuple[str, ...]) -> Document:
    """The document, which stands at `path` ("": nowhere), merged into what it builds on."""
    if not isinstance(document.data, dict) or "extends" not in document.data:
        return document
    base = document.data.pop("extends")
    place = document.places.pop(("extends",))
    document.keys.pop(("extends",))
    here = (*seen, os.path.realpath(path)) if path else seen
    return _merge(_chain(_base_path(base, path, root, here, place), root, here), document)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UsageError(f"{path}: not a regular file")
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or 'cannot be read'}") from None


def _base_path(base: object, path: str, root: str, seen: tuple[str, ...], place: Place) -> str:
    """Where `base` lies, as a person would write it; refuses everything that leaves `root` or loops."""

    def refuse(message: str, hint: str = "") -> SpecError:
        return SpecError([Problem("W0012", message, ("extends",), hint, place=place)])

    if not isinstance(base, str) or not base or len(base) > 255:
        raise refuse("extends names one file", "extends: base.yaml")
    if os.path.isabs(base) or "\\" in base or FilePath(base).suffix not in (".yaml", ".yml", ".json"):
        raise refuse(f"extends takes a relative path to a .yaml, .yml or .json file, not '{base}'")
    target = os.path.join(os.path.dirname(path), base)
    real = os.path.realpath(target)
    if os.path.commonpath([real, root]) != root:
        raise refuse(f"'{base}' lies outside the spec's directory", "copy it next to the spec")
    if real in seen:
        raise refuse(f"'{base}' extends itself" if real == seen[-1] else f"'{base}' leads back to itself")
    if len(seen) >= MAX_CHAIN:
        raise refuse(f"more than {MAX_CHAIN} files extend each other")
    if not os.path.isfile(real):
        near = did_you_mean_file(base, os.path.dirname(target) or ".")
        raise refuse(f"no file '{base}'", near)
    return target


def did_you_mean_file(name: str, folder: str) -> str:
    """A hint naming the spec file in `folder` most like `name`."""
    try:
        found = [entry for entry in os.listdir(folder) if entry.endswith((".yaml", ".yml", ".json"))]
    except OSError:
        return ""
    near = nearest(os.path.basename(name), found[:1000])
    return f"did you mean '{near}'?" if near else ""


def _merge(base: Document, over: Document) -> Document:
    merged = Document(over.name)

    def copy(source: Document, value: object, path: Path) -> object:
        merged.places[path] = source.place(path)
        if path in source.keys:
            merged.keys[path] = source.keys[path]
        if isinstance(value, dict):
            return {key: copy(source, child, (*path, key)) for key, child in value.items()}
        if isinstance(value, list):
            return [copy(source, child, (*path, i)) for i, child in enumerate(value)]
        return value

    def both(low: object, high: object, path: Path) -> object:
        if not (isinstance(low, dict) and isinstance(high, dict)):
            return copy(over, high, path)
        merged.places[path] = over.place(path)
        if path in over.keys:
            merged.keys[path] = over.keys[path]
        out = {key: copy(base, child, (*path, key)) for key, child in low.items() if key not in high}
        fresh = {k: both(low[k], v, (*path, k)) if k in low else copy(over, v, (*path, k)) for k, v in high.items()}
        return {key: fresh[key] if key in fresh else out[key] for key in [*low, *(k for k in high if k not in low)]}

    merged.data = both(base.data, over.data, ())
    return merged
