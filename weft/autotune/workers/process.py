"""Processes that may be killed at any time: a worker takes JSON jobs, has a deadline for each, and is replaced after
anything that is not an answer.

    with Worker("weft.autotune.workers.compile") as worker:
        answer = worker.ask({"op": "shared", ...}, seconds=30)
        answer.fault or answer.data

A worker has its own session, so that killing it also ends what it started (ptxas), its own folder for temporary files,
removed with it, and an environment of listed variables. It ends when this process does, however that ends.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from weft.autotune.budget import FOREVER, Budget, Late
from weft.autotune.workers.serve import LENGTH

MOST_ANSWER = 64 << 20  # bytes
SILENT_SECONDS = 30.0
START_SECONDS = 120.0
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT", "USER", "XDG_CACHE_HOME", "VIRTUAL_ENV")
_PREFIX = "weft-worker-"


class Fault(StrEnum):
    """Why a worker gave no answer."""

    TIMEOUT = "timeout"  # the deadline passed
    SILENT = "silent"  # no heartbeat: frozen
    CRASH = "crash"  # ended: by a signal, or by itself
    PROTOCOL = "protocol"  # what it sent is no answer


@dataclass(frozen=True)
class JobAnswer:
    """What came of a job. data: the answer, or None with the fault and, for people, the reason. seconds: of waiting."""

    data: dict[str, Any] | None
    seconds: float
    fault: Fault | None = None
    reason: str = ""

    @property
    def raised(self) -> str:
        """The name of the exception that the job raised in the worker, "" if it raised none."""
        return str(self.data.get("raised", "")) if self.data else ""


class Dead(Exception):
    """The worker ended while it was asked."""


def environment(tmp: str, more: Mapping[str, str]) -> dict[str, str]:
    """What a worker sees: listed variables, its own folder as TMPDIR, and this process's import path."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    return {**kept, "TMPDIR": tmp, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", **more}


class Worker:
    """One process running `module`, started when first asked.

    env: more environment variables. silent: seconds without a heartbeat after which it counts as frozen. nice: how
    far it stands back behind other processes. starts: how often it was started.
    """

    def __init__(
        self, module: str, *, env: Mapping[str, str] | None = None, silent: float = SILENT_SECONDS, nice: int = 0,
        args: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.module, self.env, self.silent, self.nice, self.args = module, dict(env or {}), silent, nice, tuple(args)
        self.starts = 0
        self.tmp = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._life: int | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int | None:
        """Of the running process, which is also its process group and session."""
        return self._process.pid if self._process else None

    def start(self, seconds: float = START_SECONDS) -> None:
        """Start the process, unless it runs, and wait until it has imported what it needs."""
        if self._process is not None and self._process.poll() is None:
            return
        self.kill()
        self.tmp = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-")
        ours, theirs = socket.socketpair()
        life, self._life = os.pipe()
        program = [sys.executable, "-m", self.module, str(theirs.fileno()), str(life), *self.args]
        if self.nice:
            program = ["nice", "-n", str(self.nice), *program]
        with theirs, open(self._log(), "wb") as log:
            self._process = subprocess.Popen(
                program, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(self.tmp, self.env),
                pass_fds=(theirs.fileno(), life), start_new_session=True,
            )  # fmt: skip
        os.close(life)
        ours.setblocking(False)
        self._socket = ours
        self.starts += 1
        self._exchange(b'{"op": "hello"}', time.monotonic() + min(seconds, START_SECONDS))

    def kill(self) -> int | None:
        """End the process, all it started and its folder; its exit status, None if it did not run."""
        process, self._process = self._process, None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        status = None
        if process is not None:
            status = process.poll()
            _end(process)
            process.wait()
        if self._life is not None:
            os.close(self._life)
            self._life = None
        if self.tmp:
            shutil.rmtree(self.tmp, ignore_errors=True)
            self.tmp = ""
        return status

    def interrupt(self) -> None:
        """End the process while another thread waits in `ask`, which then answers with a crash."""
        if self._process is not None:
            _end(self._process)

    def ask(self, job: Mapping[str, Any], seconds: float, budget: Budget = FOREVER) -> JobAnswer:
        """The answer to a job within so many seconds, a start not counted; the process is gone after any fault.

        Late where the budget, which a start does count to, ends before that."""
        began, left = time.monotonic(), budget.left()
        if left <= 0:
            raise Late
        ends = began + left
        try:
            self.start(left)
            began = time.monotonic()
            data = self._exchange(json.dumps(job).encode(), min(began + seconds, ends))
            return JobAnswer(data, time.monotonic() - began)
        except TimeoutError as error:
            fault = Fault.SILENT if error.args else Fault.TIMEOUT
            reason = str(error) or f"no answer within {seconds:.3g} s"
        except (Dead, OSError):
            fault, reason = Fault.CRASH, self._epitaph()
        except ValueError as error:
            fault, reason = Fault.PROTOCOL, f"not an answer: {error}"
        self.kill()
        if fault is Fault.TIMEOUT and budget.left() <= 0:
            raise Late
        return JobAnswer(None, time.monotonic() - began, fault, reason)

    def _exchange(self, job: bytes, deadline: float) -> dict[str, Any]:
        assert self._socket is not None
        with selectors.DefaultSelector() as selector:
            self._send(LENGTH.pack(len(job)) + job, selector, deadline)
            while True:
                size = LENGTH.unpack(self._receive(LENGTH.size, selector, deadline))[0]
                if size > MOST_ANSWER:
                    raise ValueError(f"says it has {size} bytes")
                if size:
                    data = json.loads(self._receive(size, selector, deadline))
                    if not isinstance(data, dict):
                        raise ValueError("not an object")
                    return data

    def _send(self, data: bytes, selector: selectors.BaseSelector, deadline: float) -> None:
        assert self._socket is not None
        selector.register(self._socket, selectors.EVENT_WRITE)
        left = memoryview(data)
        while left:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            left = left[self._socket.send(left) :]
        selector.modify(self._socket, selectors.EVENT_READ)

    def _receive(self, n: int, selector: selectors.BaseSelector, deadline: float) -> bytes:
        assert self._socket is not None
        out = bytearray()
        while len(out) < n:
            left = deadline - time.monotonic()
            if not selector.select(max(0.0, min(left, self.silent))):
                if self._ended():
                    raise Dead
                raise TimeoutError(*([] if left <= self.silent else [f"frozen: silent for {self.silent:.3g} s"]))
            got = self._socket.recv(n - len(out))
            if not got:
                raise Dead
            out += got
        return bytes(out)

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _epitaph(self) -> str:
        """How the process ended, and the last line it printed."""
        try:
            status = self._process.wait(2) if self._process else None
        except subprocess.TimeoutExpired:
            status = None
        said = self._said()
        return f"{_ending(status)}{': ' + said if said else ''}"

    def _log(self) -> str:
        return os.path.join(self.tmp, "stderr")

    def _said(self) -> str:
        with suppress(OSError), open(self._log(), "rb") as f:
            f.seek(0, os.SEEK_END)
            f.seek(max(0, f.tell() - 2000))
            lines = [line.strip() for line in f.read().decode("utf-8", "replace").splitlines() if line.strip()]
            return lines[-1][:300] if lines else ""
        return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the group of a process; of one that has been waited for, what may be left of its group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _ending(status: int | None) -> str:
    if status is None:
        return "hung up"
    if status == -signal.SIGKILL:
        return "killed (SIGKILL), as the system does when memory runs out"
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return f"exited with status {status}"


def sweep() -> int:
    """Remove folders of workers whose parents are gone; how many there were."""
    found = 0
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        owner = path.name.removeprefix(_PREFIX).split("-")[0]
        with suppress(OSError):
            if path.stat().st_uid == os.getuid() and owner.isdecimal() and not os.path.exists(f"/proc/{owner}"):
                shutil.rmtree(path, ignore_errors=True)
                found += 1
    return found
