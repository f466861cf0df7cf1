"""Leases: which of several processes, on this host or others, works on something just now. Files, no locks.

A lease is the file with the highest generation of its name; taking one over makes the next generation with O_EXCL, so
of all who try exactly one succeeds. A holder on this host is dead when its process is gone; one on another host, or of
an earlier boot, when its file has not changed for as long as it promised, by the clock of the one who watches: clocks
of two hosts are never compared.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from weft.cache import files
from weft.cache.canonical import canonical, is_count, is_text
from weft.cache.files import SYSTEM, Ops
from weft.cache.shard import host

_MOST = 4096  # bytes
_NAME = re.compile(r"([0-9a-f]{32})\.([0-9]{1,12})\.lease")


def boot_id() -> str:
    """What names this boot of this machine, and where process ids have another meaning, as in a container, that too;
    "" where the system does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read(64).strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def started(pid: int) -> str:
    """When a process began, in ticks since boot: with the pid it names a process. "" where the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read(4096).rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def alive(pid: int, start: str) -> bool:
    """Whether the process that began then is still there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is there and another user's
    return not start or started(pid) in (start, "")


@dataclass(frozen=True)
class Lease:
    """Held. Renew it before `seconds` are over, release it when done."""

    leases: Leases
    name: str
    generation: int
    nonce: str
    seconds: float

    @property
    def path(self) -> str:
        return self.leases.path(self.name, self.generation)

    def held(self) -> bool:
        """Whether it is still this process's: a process that was stopped for long may have lost it."""
        return self.leases.top(self.name) == self.generation and self.leases.nonce(self.path) == self.nonce

    def renew(self) -> bool:
        """Promise to work for another term; False when it was lost."""
        return self.held() and self.leases.write(self, released=False)

    def release(self) -> None:
        """Let others have it."""
        if self.held():
            self.leases.write(self, released=True)

    def drop(self) -> None:
        """Remove it: what it was for is done, as who takes the next can see elsewhere."""
        if self.held():
            self.leases.remove(self.path)


class Leases:
    """The leases in a folder; keeps what it saw of other hosts' leases, so use one for all tries."""

    def __init__(
        self, folder: str, *, ops: Ops = SYSTEM, clock: Callable[[], float] = time.monotonic, hostname: str = ""
    ) -> None:
        self.folder, self.ops, self.clock = folder, ops, clock
        self.host, self.boot = hostname or host(), boot_id()
        self._watched: dict[str, tuple[bytes, float]] = {}

    def take(self, name: str, seconds: float = 60.0) -> Lease | None:
        """The lease of a name, if nobody who lives holds it; None otherwise. OSError: no such folder can be."""
        self._make()
        top = self.top(name)
        if top and not self._free(self.path(name, top)):
            return None
        lease = Lease(self, name, top + 1, os.urandom(8).hex(), seconds)
        try:
            fd = files.create(lease.path, self.ops)
        except FileExistsError:
            return None
        try:
            files.write_all(fd, self._text(lease, released=False), self.ops)
        finally:
            self.ops.close(fd)
        if self.top(name) != lease.generation:  # others took and left it while this process slept
            self.remove(lease.path)
            return None
        for generation in self._generations(name):
            if generation < lease.generation:
                self.remove(self.path(name, generation))
        return lease

    def path(self, name: str, generation: int) -> str:
        """The file of a generation."""
        return os.path.join(self.folder, f"{sha256(name.encode()).hexdigest()[:32]}.{generation}.lease")

    def top(self, name: str) -> int:
        """The highest generation there is; 0 when there is none."""
        return max(self._generations(name), default=0)

    def write(self, lease: Lease, *, released: bool) -> bool:
        """Put the lease's text in place; False where that fails."""
        try:
            files.replace(lease.path, self._text(lease, released=released), self.ops, sync=False)
            return True
        except OSError:
            return False

    def nonce(self, path: str) -> str:
        """The nonce in a lease's file."""
        found = self._read(path)[1]
        return str(found["nonce"]) if found else ""

    def sweep(self) -> int:
        """Remove leases that nobody holds; how many."""
        count = 0
        for file in files.names(self.folder, self.ops):
            path = os.path.join(self.folder, file)
            if _NAME.fullmatch(file) and self._free(path):
                count += self.remove(path)
        return count

    def _generations(self, name: str) -> list[int]:
        owner = os.path.basename(self.path(name, 0))[:32]
        matches = map(_NAME.fullmatch, files.names(self.folder, self.ops))
        return [int(m[2]) for m in matches if m is not None and m[1] == owner]

    def _make(self) -> None:
        parts = [os.path.dirname(os.path.dirname(self.folder)), os.path.dirname(self.folder), self.folder]
        files.root_folder(parts[0], self.ops, make=True)
        for part in parts[1:]:
            files.folder(part, self.ops, make=True)

    def remove(self, path: str) -> bool:
        """Unlink a file of the folder; False where that fails."""
        with suppress(OSError):
            self.ops.unlink(path)
            return True
        return False

    def _text(self, lease: Lease, *, released: bool) -> bytes:
        pid = os.getpid()
        data = {
            "name": lease.name[:200], "host": self.host, "pid": pid, "start": started(pid), "boot": self.boot,
            "seconds": lease.seconds, "nonce": lease.nonce, "beat": os.urandom(4).hex(), "released": released,
        }  # fmt: skip
        return canonical(data).encode()

    def _read(self, path: str) -> tuple[bytes, dict[str, Any] | None]:
        try:
            data, _ = files.read(path, _MOST, self.ops)
        except OSError:
            return b"", None
        try:
            found = json.loads(data)
            texts = all(is_text(found[k]) for k in ("name", "host", "start", "boot", "nonce"))
            right = texts and is_count(found["pid"], 2**31) and isinstance(found["released"], bool)
            right = right and type(found["seconds"]) in (int, float) and 0 <= found["seconds"] <= 1e6
            return data, found if right else None
        except (ValueError, KeyError, TypeError, RecursionError):
            return data, None

    def _free(self, path: str) -> bool:
        """Whether the holder of a file let go, is gone, or has been silent for its term."""
        data, found = self._read(path)
        if found and found["released"]:
            return True
        # Two machines may have one name, but not one boot.
        if found and found["host"] == self.host and found["boot"] == self.boot != "":
            return not alive(found["pid"], found["start"])
        now = self.clock()
        before, since = self._watched.get(path, (None, now))
        if before != data:
            self._watched[path] = data, now
            return False
        return now - since > (found["seconds"] if found else 60.0)
