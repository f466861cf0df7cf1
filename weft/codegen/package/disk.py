"""A package on disk: written in place, file by file, and never over a person's edit."""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from weft import outputs
from weft.codegen.package.manifest import MANIFEST as MANIFEST
from weft.codegen.package.manifest import as_json as as_json
from weft.codegen.package.manifest import digest, digest_of, manifest, written, written_or_nothing
from weft.codegen.package.manifest import edited as edited
from weft.codegen.package.reading import load as load
from weft.errors import UsageError

Out = str | os.PathLike[str]


def tried(out: Out, force: bool = False) -> None:
    """UsageError where no package can be written to the folder `out`, as far as that is known without the package."""
    outputs.tried_folder(out)
    folder = Path(os.path.realpath(out))
    if not force and folder.is_dir() and any(folder.iterdir()) and not written(folder):
        raise UsageError(f"{out} is not empty and holds no package that weft wrote; --force writes into it")


def write(files: Mapping[str, str], out: Out, force: bool = False) -> Path:
    """Write the package into the folder `out` and return its path.

    Every file is made beside its place and takes it when all are made, the manifest last; what weft wrote before and
    writes no more goes away, what it does not know stays. A file that was edited since is kept if weft would write what
    it wrote before; if not, UsageError names it and nothing is changed, unless `force`.
    """
    tried(out, force)
    folder = Path(os.path.realpath(out))
    before = written_or_nothing(folder)
    kept = [] if force else _kept(files, before, folder)
    fresh = {name: text.encode() for name, text in files.items() if name not in kept}
    fresh = {name: data for name, data in fresh.items() if not _holds(folder / name, data)}
    with outputs.Batch() as batch:
        for name, data in [*fresh.items(), (MANIFEST, manifest(files).encode())]:
            batch.folder((folder / name).parent)
            batch.add(folder / name, data)
    stale = [name for name in before if name not in files]
    with outputs.refusing(out):
        for name in stale:
            if (folder / name).is_file():
                (folder / name).unlink()
        _forget(folder, [*fresh, *stale])
    return Path(out).absolute()


def _kept(files: Mapping[str, str], before: Mapping[str, str], out: Path) -> list[str]:
    """Edited files that stay as they are. Raises UsageError where an edit and a new text meet."""
    changed = edited(out)
    clash = [n for n in changed if n not in files or digest(files[n]) not in (before[n], digest_of(out / n))]
    clash += [n for n in files if n not in before and (out / n).exists() and not _holds(out / n, files[n].encode())]
    if clash:
        raise UsageError(f"edited since weft wrote them: {', '.join(sorted(clash))} in {out}; --force overwrites")
    return [n for n in changed if n in files]


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False


def _forget(folder: Path, names: Iterable[str]) -> None:
    """Remove what Python compiled of these files, for it tells versions apart by the second, and emptied folders."""
    for name in names:
        path = folder / name
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink(missing_ok=True)
        for above in (path.parent / "__pycache__", *path.parents):
            if above == folder:
                break
            with suppress(OSError):  # not empty, or not there
                above.rmdir()
