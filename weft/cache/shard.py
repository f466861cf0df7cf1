"""Shards: one file per writer, appended a line at a time, and the reading of all of a key's shards."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from hashlib import blake2b
from typing import Any

from weft.cache import files, lines
from weft.cache.canonical import canonical
from weft.cache.files import SYSTEM, Ops, UntrustedFile
from weft.cache.key import KeyInvalid, Soft
from weft.cache.lines import Health
from weft.cache.row import Row, RowInvalid

MOST_SHARD = 1 << 28  # bytes
_NAME = re.compile(r"([a-z0-9.-]{1,40})-([0-9]{1,10})-([0-9a-f]{8,40})\.jsonl")
_SYNC_SECONDS = 1.0
_TRIES = 8


def host() -> str:
    """The name of this machine, as part of a file name."""
    name = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
    return re.sub(r"[^a-z0-9.-]", "-", name.lower())[:40].strip("-.") or "host"


def shard_name() -> str:
    """A name that no other writer takes: host, process, start and some chance."""
    return f"{host()}-{os.getpid()}-{time.time_ns():x}{os.urandom(4).hex()}.jsonl"


def writer_of(name: str) -> tuple[str, int] | None:
    """The host and process of a shard's name; None for another name."""
    found = _NAME.fullmatch(name)
    return (found[1], int(found[2])) if found else None


class Writer:
    """The only one who appends to its shard; makes it with the first row. Raises OSError where a row did not get in."""

    def __init__(self, folder: str, owner: str, soft: Soft | None, ops: Ops = SYSTEM) -> None:
        self.folder, self.soft, self.ops = folder, soft, ops
        self.path = ""
        self._seed = lines.seed(owner)
        self._fd: int | None = None
        self._told: Soft | None = None
        self._torn = False
        self._synced = time.monotonic()

    def append(self, row: Row) -> None:
        """Write a row's line in one write; on its way to disk within a second, whatever becomes of this process."""
        self._put(lines.encode(row.text, self._seed))

    def head(self) -> None:
        """Have the shard say which soft part it was written under, also without rows."""
        if self._told != self.soft:
            self._put(b"")

    def _put(self, data: bytes) -> None:
        if self._fd is None:
            path = os.path.join(self.folder, shard_name())
            self._fd = files.create(path, self.ops, append=True)
            self.path = path
        if self.soft is not None and self._told != self.soft:
            data = lines.encode(canonical({"soft": self.soft.flat()}), self._seed) + data
        if self._torn:
            data = b"\n" + data
        self._torn = True
        files.write_all(self._fd, data, self.ops)
        self._torn, self._told = False, self.soft
        if files.again(self.ops.fstat, self._fd).st_nlink == 0:  # tidied away under a writer that slept for days
            self._start_over()
            raise OSError("the shard was removed")
        if time.monotonic() - self._synced >= _SYNC_SECONDS:
            self.sync()

    def _start_over(self) -> None:
        if self._fd is not None:
            with suppress(OSError):
                self.ops.close(self._fd)
        self._fd, self._told, self._torn = None, None, False

    def sync(self) -> None:
        """Have what was written reach the disk."""
        if self._fd is not None:
            self._synced = time.monotonic()
            files.again(self.ops.fsync, self._fd)

    def close(self) -> None:
        """Sync and let go."""
        fd = self._fd
        if fd is not None:
            with suppress(OSError):
                self.sync()
            self._fd = None
            with suppress(OSError):
                self.ops.close(fd)


class _Gone(Exception):
    """A shard that was read is no longer what it was."""


class ShardFold:
    """What all shards of a key hold, read on from where the last look ended."""

    def __init__(
        self, folder: str, owner: str, ops: Ops = SYSTEM, foreign: bool = False, only: frozenset[str] = frozenset()
    ) -> None:
        self.folder, self.ops, self.foreign, self.only = folder, ops, foreign, only
        self._seed = lines.seed(owner)
        self._reset()

    def _reset(self) -> None:
        self.rows: list[Row] = []
        self.softs: dict[str, Soft] = {}
        self.health = Health()
        self.refused: dict[str, str] = {}
        self.changed = True
        self._parts: dict[str, tuple[int, int, int]] = {}  # inode, size seen, bytes used
        self._seen: set[bytes] = set()

    def refresh(self) -> None:
        """Look again. A shard that another process folded into a new one starts the reading over."""
        for _ in range(_TRIES):
            names = [name for name in files.names(self.folder, self.ops) if writer_of(name)]
            names = [name for name in names if name in self.only] if self.only else names
            try:
                if not self._parts.keys() <= set(names):
                    raise _Gone
                for name in names:
                    self._read(name)
                return
            except FileNotFoundError:
                continue
            except _Gone:
                self._reset()

    def sizes(self) -> dict[str, int]:
        """The shards that were read and how long they were."""
        return {name: size for name, (_, size, _) in sorted(self._parts.items())}

    def torn(self) -> int:
        """How many shards end in a line that is not finished."""
        return sum(size > used for _, size, used in self._parts.values())

    def _read(self, name: str) -> None:
        path = os.path.join(self.folder, name)
        inode, size, used = self._parts.get(name, (0, 0, 0))
        status = files.again(self.ops.lstat, path)
        if inode and (status.st_ino != inode or status.st_size < used):
            raise _Gone
        if inode and status.st_size == size:
            return
        try:
            data, (inode, size, _) = files.read(path, MOST_SHARD, self.ops, foreign=self.foreign, start=used)
        except FileNotFoundError:
            raise
        except OSError as error:
            self.refused[name] = (
                str(error) if isinstance(error, UntrustedFile) else (error.strerror or "cannot be read")
            )
            return
        self.refused.pop(name, None)
        complete, length = lines.whole(data)
        for line in complete:
            self._take(line)
        self._parts[name] = inode, size, used + length
        self.changed = True

    def _take(self, line: bytes) -> None:
        if not line:
            return  # a writer starts a new line after a torn one
        data = lines.decode(line, self._seed)
        if data is None:
            self.health.damaged += 1
            return
        mark = blake2b(line, digest_size=16).digest()
        if mark in self._seen:
            return
        self._seen.add(mark)
        self._keep(data)

    def _keep(self, data: Any) -> None:
        try:
            if isinstance(data, dict) and data.keys() == {"soft"}:
                soft = Soft.parse(data["soft"])
                self.softs[soft.id] = soft
                return
            self.rows.append(Row.parse(data))
            self.health.rows += 1
        except (RowInvalid, KeyInvalid):
            self.health.foreign += 1
