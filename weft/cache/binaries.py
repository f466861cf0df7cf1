"""Compiled kernels, private to this user on this machine: never in a pack, named by the hash of their content, checked
when they are read, served to the Triton version that made them only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256

from weft.cache import files
from weft.cache.canonical import digest
from weft.cache.files import SYSTEM, Ops
from weft.cache.place import say_once

MOST_CUBIN = 1 << 26  # bytes
_HASH = re.compile(r"[0-9a-f]{64}")


class Binaries:
    """The folder of compiled kernels under the top folder of a store."""

    def __init__(self, top: str, ops: Ops = SYSTEM) -> None:
        self.top, self.ops = top, ops
        self.folder = os.path.join(top, "cubins")

    def put(self, data: bytes, triton: str) -> str:
        """Keep a cubin; its hash, also where it could not be kept."""
        name = sha256(data).hexdigest()
        path = self._path(name, triton)
        try:
            if len(data) > MOST_CUBIN:
                raise OSError(f"a cubin of {len(data)} bytes is over the limit")
            files.root_folder(os.path.dirname(self.top), self.ops, make=True)
            for part in (self.top, self.folder, os.path.dirname(path)):
                files.folder(part, self.ops, make=True)
            if self.get(name, triton) is None:
                files.replace(path, data, self.ops, sync=False)
        except OSError as error:
            say_once(f"cubins {self.folder}", f"compiled kernels are not kept: {error}")
        return name

    def get(self, name: str, triton: str) -> bytes | None:
        """The cubin of a hash, if this Triton version made it and it still has that hash."""
        if not _HASH.fullmatch(name):
            return None
        path = self._path(name, triton)
        try:
            if not all(files.folder(p, self.ops) for p in (self.top, self.folder, os.path.dirname(path))):
                return None
            data, _ = files.read(path, MOST_CUBIN, self.ops)
        except OSError:
            return None
        return data if sha256(data).hexdigest() == name else None

    def sweep(self, kept: set[str], old: Callable[[str], bool]) -> tuple[int, int]:
        """Remove the cubins that are not among these hashes and whose path is `old`: (files, bytes)."""
        count = size = 0
        for version in files.names(self.folder, self.ops):
            inner = os.path.join(self.folder, version)
            for file in files.names(inner, self.ops) if os.path.isdir(inner) else []:
                path = os.path.join(inner, file)
                if _HASH.fullmatch(file) and file not in kept and old(path):
                    with suppress(OSError):
                        amount = self.ops.lstat(path).st_size
                        self.ops.unlink(path)
                        count, size = count + 1, size + amount
        return count, size

    def _path(self, name: str, triton: str) -> str:
        return os.path.join(self.folder, digest(["triton", triton]), name)
