"""A package on disk: written whole or not at all, never over a person's edit, and imported under a name of its own.

`manifest.json` holds the SHA-256 of every file as weft wrote it; what differs from it was edited since.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from weft.errors import UsageError

MANIFEST = "manifest.json"
SCHEMA = "weft.manifest/1"


def digest(text: str | bytes) -> str:
    """SHA-256 of a file's contents, in hex."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def manifest(files: Mapping[str, str]) -> str:
    """The manifest of `files` (path below the package -> text) as JSON text."""
    return as_json({"schema": SCHEMA, "files": {name: digest(files[name]) for name in sorted(files)}})


def as_json(value: object) -> str:
    """JSON with sorted keys and a newline at the end: equal values give equal bytes."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True) + "\n"


def written(out: Path) -> dict[str, str]:
    """The hashes that `out` was written with, {} where there is no package. UsageError: a broken manifest."""
    try:
        found = json.loads((out / MANIFEST).read_text())
        return {str(k): str(v) for k, v in found["files"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, AttributeError, OSError) as error:
        raise UsageError(f"{out / MANIFEST} is not a manifest that weft wrote; --force replaces the package") from error


def edited(out: Path) -> list[str]:
    """Files of the package at `out` that no longer hold what weft wrote (deleted ones do not count)."""
    return [n for n, was in written(out).items() if (out / n).is_file() and digest((out / n).read_bytes()) != was]


def write(files: Mapping[str, str], out: str | os.PathLike[str], force: bool = False) -> Path:
    """Write the package to the folder `out` and return its path.

    The files go to a folder beside `out` which then takes its place, so nobody ever sees a half-written package; files
    that weft does not know are carried over. A file that was edited since is kept if weft would write what it wrote
    before; if not, UsageError names it and nothing is changed, unless `force`.
    """
    out = Path(out).absolute()
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} exists and is not a folder")
    kept = _kept(files, out, force)
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        _fill(fresh, {**files, MANIFEST: manifest(files)}, out, kept)
        _swap(fresh, out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return out


def _kept(files: Mapping[str, str], out: Path, force: bool) -> list[str]:
    """Edited files that stay as they are. Raises UsageError where an edit and a new text meet."""
    if force or not out.is_dir() or not any(out.iterdir()):
        return []
    before = written(out)
    if not before:
        raise UsageError(f"{out} is not empty and holds no package that weft wrote; --force writes into it")
    changed = edited(out)
    clash = [
        n for n in changed if n not in files or digest(files[n]) not in (before[n], digest((out / n).read_bytes()))
    ]
    clash += [n for n in files if n not in before and (out / n).exists()]
    if clash:
        raise UsageError(f"edited since weft wrote them: {', '.join(sorted(clash))} in {out}; --force overwrites")
    return [n for n in changed if n in files]


def _fill(fresh: Path, files: Mapping[str, str], out: Path, kept: list[str]) -> None:
    """Everything the new folder shall hold: the texts, the kept edits, and what weft does not know."""
    before = written_or_nothing(out)
    fresh.chmod(0o777 & ~_umask())
    strangers = [
        p
        for p in out.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts and str(p.relative_to(out)) not in before
    ]
    for p in strangers:
        target = fresh / p.relative_to(out)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(p, target)
    for name, text in files.items():
        target = fresh / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name in kept:
            shutil.copy2(out / name, target)
        else:
            target.write_bytes(text.encode())


def written_or_nothing(out: Path) -> dict[str, str]:
    """`written`, taking a broken manifest for none."""
    try:
        return {**written(out), MANIFEST: ""}
    except UsageError:
        return {MANIFEST: ""}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _swap(fresh: Path, out: Path) -> None:
    """Put `fresh` in the place of `out`; on failure `out` is what it was."""
    if not out.exists():
        fresh.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    out.rename(old / "old")
    try:
        fresh.rename(out)
    except OSError:
        (old / "old").rename(out)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def load(folder: str | os.PathLike[str]) -> ModuleType:
    """Import the package in `folder` under a name made of its path and contents: two packages never meet.

    Raises UsageError when there is none.
    """
    folder = Path(folder).absolute()
    init = folder / "__init__.py"
    if not init.is_file():
        raise UsageError(f"{folder} holds no emitted package (no __init__.py)")
    parts = [f"{p.relative_to(folder)}\n{p.read_text()}" for p in sorted(folder.rglob("*.py"))]
    name = f"weft_package_{digest(str(folder) + ''.join(parts))[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(folder)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
