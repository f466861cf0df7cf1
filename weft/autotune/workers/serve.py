"""The child's side of a worker: JSON jobs over a private socket, one answer each, and a heartbeat between.

A frame is four bytes of length, little endian, and that much JSON; an empty frame is a heartbeat. Nothing else can get
onto the socket: what libraries print goes to stderr, which the parent keeps. When the parent is gone a second process,
which does nothing but wait for that, ends the whole group, so that no ptxas stays behind.

    serve(handle)     in a program started by `weft.autotune.workers.process.Worker`, as `python -m MODULE FD FD`
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

LENGTH = struct.Struct("<I")
BEAT_SECONDS = 1.0

Job = dict[str, Any]
Handler = Callable[[Job], dict[str, Any]]


class Line:
    """The socket: whole frames in, whole frames out, from any thread."""

    def __init__(self, fd: int) -> None:
        self.socket = socket.socket(fileno=fd)
        self._lock = threading.Lock()

    def read(self) -> Job | None:
        """The next job; None when the parent has hung up."""
        head = self._exactly(LENGTH.size)
        body = self._exactly(LENGTH.unpack(head)[0]) if head else None
        return None if body is None else json.loads(body)

    def _exactly(self, n: int) -> bytes | None:
        out = bytearray()
        while len(out) < n:
            got = self.socket.recv(n - len(out))
            if not got:
                return None
            out += got
        return bytes(out)

    def write(self, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        with self._lock:
            self.socket.sendall(LENGTH.pack(len(body)) + body)

    def beat(self) -> None:
        """Heartbeats until the parent is gone; then the end of this process and of all it started."""
        stop = threading.Event()
        while not stop.wait(BEAT_SECONDS):
            try:
                with self._lock:
                    self.socket.sendall(LENGTH.pack(0))
            except OSError:
                os.killpg(0, signal.SIGKILL)


def watch(line: int, life: int) -> None:
    """Start the process that ends this group once the other end of `life`, which only the parent has, is closed.

    A death signal would end the worker alone, and not what it started; a thread may be kept from running."""
    if os.fork():
        os.close(life)
        return
    os.close(line)  # or the parent would not see the worker end
    os.read(life, 1)
    os.killpg(0, signal.SIGKILL)


def isolate(memory: int = 0) -> None:
    """Dump no core, and have at most `memory` bytes of addresses (0: any)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def serve(handle: Handler, *, memory: int = 0) -> None:
    """Answer jobs until the parent hangs up. An exception is an answer too: {"raised", "message", "trace"}.

    "hello" is answered here: this process has then imported what it needs."""
    fd, life = map(int, sys.argv[1:3])
    watch(fd, life)
    line = Line(fd)
    os.dup2(2, 1)
    isolate(memory)
    threading.Thread(target=line.beat, daemon=True).start()
    while (job := line.read()) is not None:
        try:
            answer = {} if job.get("op") == "hello" else handle(job)
        except Exception as error:
            trace = "".join(traceback.format_exception(error))[-4000:]
            answer = {"raised": type(error).__name__, "message": said(error), "trace": trace}
        line.write(answer)
    os._exit(0)  # a daemon thread, a CUDA context or an atexit handler may otherwise keep us


def said(error: BaseException) -> str:
    """What an exception says, and below it what its causes say: Triton's own words are those of the first cause."""
    more = f"\n{said(error.__cause__)}" if error.__cause__ is not None else ""
    return f"{str(error)[-2000:]}{more}"[-4000:]


def cpu_seconds() -> float:
    """Of this process and of the children it has waited for."""
    parts = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(p.ru_utime + p.ru_stime for p in parts)
