"""Files that a person asked for: tried before the work that fills them, put in place whole, as the umask has it.

    tried("plan.json", force)             UsageError at once, not after the work, where it cannot be written
    write("plan.json", text)

A link stays a link, and what it points to is written. A device or a pipe is written to, and so is a file whose folder
takes no other (one that is mounted by itself). Anything else is made beside its place and then takes it: nobody sees
half of a file, and a full disk leaves what was there. A folder is written in place, file by file: it may be the one a
shell stands in, or the top of a disk. Every error is a UsageError of one line.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

from weft.cache.files import SYSTEM, again, create, write_all
from weft.errors import UsageError

Path = str | os.PathLike[str]
_HELD = (errno.EBUSY, errno.EXDEV)
"""What the system says of a file that is a mount point: nothing can take its place."""
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)


def tried(path: Path, force: bool = False) -> None:
    """UsageError where a file cannot be written there, or is there already and may not be overwritten."""
    with refusing(path):
        target, status = _place(path)
        if status is None:
            _trial(os.path.dirname(target))
        elif stat.S_ISREG(status.st_mode):
            if not force:
                raise UsageError(f"{path} exists; --force overwrites it")
            if not os.access(target, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def tried_folder(path: Path) -> None:
    """UsageError where there can be no such folder, or no file in it. Makes nothing."""
    with refusing(path):
        target = _real(path)
        while (status := _status(target)) is None:
            target = os.path.dirname(target)
        if not stat.S_ISDIR(status.st_mode):
            raise UsageError(f"{path}: {'is a file' if target == _real(path) else f'{target} is a file'}, not a folder")
        _trial(target)


def write(path: Path, data: str | bytes) -> None:
    """Put a file in its place; see `Batch`."""
    with Batch() as batch:
        batch.add(path, data)


class Batch:
    """Files that take their places together, when the `with` block ends well; else nothing is left of them.

    UsageError where one cannot be made."""

    def __init__(self) -> None:
        self.ops = SYSTEM
        self.made: list[str] = []  # folders, outermost first
        self.ready: list[tuple[Path, str, str]] = []  # path, its place, the file made beside it
        self.direct: list[tuple[Path, str, Callable[[int], object]]] = []

    def __enter__(self) -> Batch:
        return self

    def folder(self, path: Path) -> None:
        """A folder, with those above it, to be there from now on."""
        with refusing(path):
            target, missing = _real(path), list[str]()
            while _status(target) is None:
                missing.append(target)
                target = os.path.dirname(target)
            for one in reversed(missing):
                with suppress(FileExistsError):
                    os.mkdir(one)  # as the umask has it
                    self.made.append(one)

    def add(self, path: Path, data: str | bytes) -> None:
        """A file of these contents; its folder is there."""
        whole = data.encode() if isinstance(data, str) else data
        self.fill(path, lambda fd: write_all(fd, whole, self.ops))

    def fill(self, path: Path, into: Callable[[int], object]) -> None:
        """A file that `into` writes to a descriptor: now, or when the files take their places if it has to be there."""
        with refusing(path):
            target, status = _place(path)
            if status is not None and not stat.S_ISREG(status.st_mode):
                self.direct.append((path, target, into))
                return
            beside = _beside(os.path.dirname(target))
            try:
                fd = create(beside, self.ops, mode=0o666)
            except OSError as error:
                if status is None or error.errno not in _CLOSED or not os.access(target, os.W_OK):
                    raise
                self.direct.append((path, target, into))
                return
            self.ready.append((path, target, beside))
            try:
                if status is not None:
                    os.fchmod(fd, stat.S_IMODE(status.st_mode))
                into(fd)
            finally:
                self.ops.close(fd)

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._take()
                self.made.clear()
        finally:
            for entry in self.ready:
                with suppress(OSError):
                    os.unlink(entry[2])
            for folder in reversed(self.made):
                with suppress(OSError):
                    os.rmdir(folder)

    def _take(self) -> None:
        while self.ready:
            path, target, beside = self.ready[0]
            with refusing(path):
                try:
                    again(self.ops.replace, beside, target)
                except OSError as error:
                    if error.errno not in _HELD:
                        raise
                    with open(beside, "rb") as made:
                        self._pour(target, lambda fd: write_all(fd, made.read(), self.ops))
                    os.unlink(beside)
            del self.ready[0]
        for path, target, into in self.direct:
            with refusing(path):
                self._pour(target, into)

    def _pour(self, target: str, into: Callable[[int], object]) -> None:
        """Write over a file in place, or to a device or a pipe."""
        fd = again(self.ops.open, target, os.O_WRONLY | os.O_TRUNC)
        try:
            into(fd)
        finally:
            self.ops.close(fd)


@contextmanager
def refusing(path: Path) -> Generator[None]:
    """Inside, what the system refuses is a UsageError of one line about this path."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except UnicodeEncodeError:
        raise UsageError(f"{path}: no name that a file can have") from None


def _place(path: Path) -> tuple[str, os.stat_result | None]:
    """Where a file of that path lies, links followed, and what is there."""
    target = _real(path)
    status = _status(target)
    if (status is not None and stat.S_ISDIR(status.st_mode)) or os.fspath(path).endswith(os.sep):
        raise UsageError(f"{path} is a folder, not a file")
    above = os.path.dirname(target)
    if status is None and not os.path.isdir(above):
        raise UsageError(f"{path}: there is no folder {os.path.dirname(os.fspath(path)) or above}")
    return target, status


def _real(path: Path) -> str:
    text = os.fspath(path)
    if not text or "\0" in text:
        raise UsageError("a path to write to may not be empty" if not text else "a path may not hold a NUL")
    return os.path.realpath(text)


def _status(target: str) -> os.stat_result | None:
    try:
        return os.stat(target)
    except FileNotFoundError:
        return None


def _beside(folder: str) -> str:
    return os.path.join(folder, f".weft-{os.urandom(6).hex()}")


def _trial(folder: str) -> None:
    """Whether a file can be made there."""
    trial = _beside(folder)
    os.close(create(trial))
    os.unlink(trial)
