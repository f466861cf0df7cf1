"""A system that fails, or dies, at a chosen call."""

import errno
import os
from collections.abc import Callable
from typing import Any

from weft.cache.files import Ops

CRASHES = ("crash before", "crash after", "crash mid")
ERRORS = ("ENOSPC", "EIO", "EROFS", "EACCES", "EDQUOT", "EINTR")
AFTER = ("EIO after", "EINTR after")  # the system did it and says it did not
MODES = (*CRASHES, *ERRORS, *AFTER, "ENOSPC mid")
_CALLS = ("open", "read", "write", "fsync", "close", "fstat", "lstat", "mkdir", "listdir", "replace", "unlink")
_SAID = {"EINTR": ("open", "read", "write", "fsync", "mkdir", "replace", "listdir", "lstat", "fstat")}


class Crash(BaseException):
    """The process is gone."""


class Faulty(Ops):
    """The call number `at`, counted from 1, goes wrong as `mode` says; with `stays` every one after it does too."""

    def __init__(self, at: int, mode: str, stays: bool = False) -> None:
        self.at, self.mode, self.stays = at, mode, stays
        self.calls = 0
        self.dead = False

    def _hurt(self, name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if self.dead:
            raise Crash
        self.calls += 1
        due = self.calls == self.at or (self.stays and self.calls > self.at)
        word, _, when = self.mode.partition(" ")
        if not due or name not in _SAID.get(word, _CALLS):
            return real(*args)
        if when == "after":
            real(*args)
        elif when == "mid" and name == "write":
            real(args[0], bytes(args[1])[: len(args[1]) // 2])
        if word == "crash":
            self.dead = True
            raise Crash
        code = getattr(errno, word)
        raise OSError(code, os.strerror(code))


def _hurting(name: str) -> Callable[..., Any]:
    def call(self: Faulty, *args: Any) -> Any:
        return self._hurt(name, getattr(Ops, name).__get__(self), args)

    return call


for _name in _CALLS:
    setattr(Faulty, _name, _hurting(_name))
