"""Files that nobody else can have planted: private folders, no links followed, every call to the system in one seam.

`Ops` is that seam: tests make its k-th call fail or the process die there.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_READ = os.O_RDONLY | _NOFOLLOW | getattr(os, "O_NONBLOCK", 0)  # a planted FIFO must not make the open wait
_OTHERS_WRITE = 0o022
Signature = tuple[int, int, int]
"""What tells one state of a file from another: inode, size in bytes, time of change in ns. (0, 0, 0): no file."""
ABSENT: Signature = (0, 0, 0)


class Ops:
    """The calls to the system that the store makes."""

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        return os.open(path, flags, mode)

    def read(self, fd: int, count: int) -> bytes:
        return os.read(fd, count)

    def write(self, fd: int, data: bytes) -> int:
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def fstat(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def lstat(self, path: str) -> os.stat_result:
        return os.lstat(path)

    def mkdir(self, path: str) -> None:
        os.mkdir(path, 0o700)

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    def replace(self, source: str, target: str) -> None:
        os.replace(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)


SYSTEM = Ops()


class UntrustedFile(OSError):
    """A file or folder that is not to be trusted; says which and why."""


def user() -> int | None:
    """The id of the user who runs this; None where the system has none."""
    return os.geteuid() if hasattr(os, "geteuid") else None


def again(call: Callable[..., Any], *args: Any) -> Any:
    """The call, repeated while a signal interrupts it."""
    while True:
        try:
            return call(*args)
        except InterruptedError:
            continue


def _trusted(status: os.stat_result, path: str, foreign: bool) -> None:
    if not foreign and user() is not None and status.st_uid not in (user(), 0):
        raise UntrustedFile(f"{path} belongs to another user")
    if status.st_mode & _OTHERS_WRITE:
        raise UntrustedFile(f"{path} can be written by other users; run chmod go-w {path}")


def folder(path: str, ops: Ops = SYSTEM, *, make: bool = False, foreign: bool = False) -> bool:
    """Whether the folder is there (or was made, readable by its owner only); UntrustedFile for a link, or for one that
    other users own or may write. foreign: another owner is all right, for reading only."""
    try:
        status = again(ops.lstat, path)
    except FileNotFoundError:
        if not make:
            return False
        with suppress(FileExistsError):  # another process was faster
            again(ops.mkdir, path)
        status = again(ops.lstat, path)
    except NotADirectoryError:
        raise UntrustedFile(f"{path} lies under what is no folder") from None
    if stat.S_ISLNK(status.st_mode) or not stat.S_ISDIR(status.st_mode):
        raise UntrustedFile(f"{path} is {'a link' if stat.S_ISLNK(status.st_mode) else 'no folder'}")
    _trusted(status, path, foreign)
    return True


def root_folder(path: str, ops: Ops = SYSTEM, *, make: bool = False, foreign: bool = False) -> bool:
    """`folder` for the top of a store: what lies above it is made if need be, and must not let others swap it."""
    above = os.path.dirname(os.path.abspath(path))
    if make and not os.path.isdir(above):
        os.makedirs(above, mode=0o700, exist_ok=True)
    found = folder(path, ops, make=make, foreign=foreign)
    if found:
        mode = os.stat(above).st_mode
        if mode & _OTHERS_WRITE and not mode & stat.S_ISVTX and user() is not None:
            raise UntrustedFile(f"{above} lets other users replace {os.path.basename(path)}")
    return found


def read(path: str, most: int, ops: Ops = SYSTEM, *, foreign: bool = False, start: int = 0) -> tuple[bytes, Signature]:
    """The bytes from `start` on and the state they were read in; OSError where there is no file, UntrustedFile for a
    link, a device, a file that other users own or may write, or one of more than `most` bytes."""
    fd = again(ops.open, path, _READ)
    try:
        status = again(ops.fstat, fd)
        if not stat.S_ISREG(status.st_mode):
            raise UntrustedFile(f"{path} is no file")
        _trusted(status, path, foreign)
        if status.st_size > most:
            raise UntrustedFile(f"{path} has {status.st_size} bytes; at most {most} are read")
        if start:
            os.lseek(fd, start, os.SEEK_SET)
        parts: list[bytes] = []
        left = status.st_size - start
        while left > 0:
            part = again(ops.read, fd, left)
            if not part:
                break
            parts.append(part)
            left -= len(part)
        return b"".join(parts), _signature(status)
    finally:
        ops.close(fd)


def signature(path: str) -> Signature:
    """The state of a file or folder, links not followed; ABSENT where it cannot be seen. One call, for hot paths."""
    try:
        status = os.lstat(path)
    except OSError:
        return ABSENT
    return status.st_ino, status.st_size, status.st_mtime_ns


def _signature(status: os.stat_result) -> Signature:
    return status.st_ino, status.st_size, status.st_mtime_ns


def names(path: str, ops: Ops = SYSTEM) -> list[str]:
    """The names in a folder, sorted; none where it is not there."""
    try:
        return sorted(again(ops.listdir, path))
    except FileNotFoundError:
        return []


def read_given(path: str, most: int) -> bytes:
    """The bytes of a file that a person named, whoever owns it, links followed; OSError as in `read`."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UntrustedFile(f"{path} is no file")
        if status.st_size > most:
            raise UntrustedFile(f"{path} has {status.st_size} bytes; at most {most} are read")
        return file.read(most)


def create(path: str, ops: Ops = SYSTEM, *, append: bool = False, mode: int = 0o600) -> int:
    """A descriptor of a new file, by default for its owner only; FileExistsError where there is one of that name."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | (os.O_APPEND if append else 0)
    return again(ops.open, path, flags, mode)


def write_all(fd: int, data: bytes, ops: Ops = SYSTEM) -> None:
    """Write to the end; what the system takes in one call is one write."""
    view = memoryview(data)
    while view:
        count = again(ops.write, fd, view)
        if count <= 0:
            raise OSError("nothing could be written")
        view = view[count:]


TEMP = ".tmp-"


def replace(path: str, data: bytes, ops: Ops = SYSTEM, *, sync: bool = True, mode: int = 0o600) -> None:
    """Put a whole file in place at once: readers see the old bytes or the new ones. OSError leaves the old ones."""
    temp = os.path.join(os.path.dirname(path), f"{TEMP}{os.getpid()}-{threading.get_ident()}-{os.urandom(6).hex()}")
    made = False
    try:
        fd = create(temp, ops, mode=mode)
        made = True
        try:
            write_all(fd, data, ops)
            if sync:
                again(ops.fsync, fd)
        finally:
            ops.close(fd)
        again(ops.replace, temp, path)
        made = False
    finally:
        if made:
            with suppress(OSError):
                ops.unlink(temp)
