"""Compile launches in processes that may be killed: several at once, each with a deadline, each launch only once.

    with CompilePool(folder, workers=2) as pool:
        built = pool.shared(launch, "sm_90").result()      bytes of shared memory, 0.1 to 0.4 CPU-seconds
        built = pool.compile(launch, "sm_90").result()     registers, stack, instructions, about 1 CPU-second

Nothing is raised for what a launch does to its compiler: it is in `Built.reason`. Of a launch that the budget left no
time for, the result is that `Late` is raised; asked again with time left, it is compiled.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from weft.autotune.budget import FOREVER, Budget, Late
from weft.autotune.workers.launches import KernelLaunch
from weft.autotune.workers.process import Fault, JobAnswer, Worker
from weft.cache.row import Status

LEAST_SECONDS, MOST_TIMES = 30.0, 3.0
"""A deadline is at least so long, else so many times what 9 of 10 compilations took."""
PROGRAM = "weft.autotune.workers.compile"
Keep = Callable[[bytes], str]


@dataclass(frozen=True)
class Built:
    """What a compiler said of a launch.

    status: OK, COMPILE or TIMEOUT; reason: a class of failures, "" where there is none; detail: for people. shared,
    stack: bytes; regs: a thread. warps: after specialisation. dots: matrix products in the kernel; wgmma, mma: the
    instructions in the PTX that they became. cubin: where `keep` put the kernel.
    """

    status: Status
    reason: str = ""
    detail: str = ""
    shared: int | None = None
    regs: int | None = None
    stack: int | None = None
    warps: int | None = None
    dots: int = 0
    wgmma: int = 0
    mma: int = 0
    specialised: bool = False
    cubin: str = ""
    cpu_s: float = 0.0
    seconds: float = 0.0


@dataclass
class Spent:
    """What a kind of job has cost: how many, CPU-seconds as the workers counted them, seconds of waiting, faults."""

    jobs: int = 0
    cpu_s: float = 0.0
    seconds: float = 0.0
    faults: int = 0
    waits: list[float] = field(default_factory=list[float])

    def deadline(self) -> float:
        """Seconds the next job may take."""
        if len(self.waits) < 10:
            return LEAST_SECONDS
        return max(LEAST_SECONDS, MOST_TIMES * sorted(self.waits)[int(0.9 * len(self.waits))])


class CompilePool:
    """Workers that compile launches of the kernels in `folder`. keep: stores a compiled kernel, gives its name. budget:
    of all jobs; one job may have less."""

    def __init__(
        self, folder: str | Path, workers: int | None = None, keep: Keep | None = None, nice: int = 10,
        program: str = PROGRAM, budget: Budget = FOREVER,
    ) -> None:  # fmt: skip
        self.budget = budget
        n = workers or max(1, (os.cpu_count() or 1) - 1)
        self.folder, self.keep, self.spent = str(Path(folder).resolve()), keep, {"shared": Spent(), "compile": Spent()}
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        self._workers = [Worker(program, nice=nice, silent=float("inf")) for _ in range(n)]
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(n, "compile")
        self._done: dict[tuple[str, str, str], Future[Built]] = {}
        self._lock = threading.Lock()
        self._running = threading.Event()
        self._running.set()
        self._closed = False

    def __enter__(self) -> CompilePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def shared(self, launch: KernelLaunch, target: str, budget: Budget | None = None) -> Future[Built]:
        """Only the bytes of shared memory; None where this Triton's stages are not known."""
        return self._submit("shared", launch, target, budget or self.budget)

    def compile(self, launch: KernelLaunch, target: str, budget: Budget | None = None) -> Future[Built]:
        """All of it, down to the machine code."""
        return self._submit("compile", launch, target, budget or self.budget)

    @cached_property
    def versions(self) -> dict[str, Any]:
        """{"triton": version, "ptxas": {target: version}} of the workers; empty where they cannot compile.

        Late where the budget left no time to ask."""
        worker = self._idle.get()
        try:
            answer = worker.ask({"op": "version"}, LEAST_SECONDS, self.budget)
        finally:
            self._idle.put(worker)
        return {} if answer.data is None or answer.raised else answer.data

    def triton(self) -> str:
        """The version of Triton that compiles; "" without one."""
        return str(self.versions.get("triton", ""))

    def ptxas(self, target: str) -> str:
        """What the assembler for a target says of its version."""
        return named(str(self.versions.get("ptxas", {}).get(target, "")))

    def pause(self) -> None:
        """Start no further job until `resume`: finals want the machine for themselves."""
        self._running.clear()

    def resume(self) -> None:
        self._running.set()

    def close(self) -> None:
        """End all workers; what has not begun is cancelled."""
        self._closed = True
        self._running.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.interrupt()
        self._threads.shutdown(wait=True)
        for worker in self._workers:
            worker.kill()

    def _submit(self, op: str, launch: KernelLaunch, target: str, budget: Budget) -> Future[Built]:
        key = op, target, launch.key()
        with self._lock:
            found = self._done.get(key)
            if found is None or _without_answer(found):
                found = self._done[key] = self._threads.submit(self._run, op, launch, target, budget)
            return found

    def _run(self, op: str, launch: KernelLaunch, target: str, budget: Budget) -> Built:
        self._running.wait()
        worker = self._idle.get()
        try:
            if self._closed:
                raise CancelledError
            job = {"op": op, "folder": self.folder, "launch": launch.data(), "target": target}
            kept = {"keep": True} if self.keep and op == "compile" else {}
            answer = worker.ask(job | kept, self._deadline(op), budget)
            if self._closed:
                raise CancelledError
            built = self._built(answer)
        finally:
            self._idle.put(worker)
        self._count(op, answer)
        return built

    def _deadline(self, op: str) -> float:
        with self._lock:
            return self.spent[op].deadline()

    def _count(self, op: str, answer: JobAnswer) -> None:
        with self._lock:
            spent = self.spent[op]
            spent.jobs += 1
            spent.seconds += answer.seconds
            spent.cpu_s += float((answer.data or {}).get("cpu_s", 0.0))
            if answer.fault:
                spent.faults += 1
            else:
                spent.waits.append(answer.seconds)

    def _built(self, answer: JobAnswer) -> Built:
        data = answer.data
        if data is None:
            timeout = answer.fault in (Fault.TIMEOUT, Fault.SILENT)
            status, reason = (Status.TIMEOUT, "compile deadline") if timeout else (Status.COMPILE, "compiler crashed")
            return Built(status, reason, answer.reason, seconds=answer.seconds)
        if answer.raised:
            detail = first_line(str(data.get("message", "")))
            cpu = float(data.get("cpu_s", 0.0))
            return Built(Status.COMPILE, refusal(answer.raised, detail), detail, cpu_s=cpu, seconds=answer.seconds)
        kept = data.pop("kept", "")
        cubin = self.keep(_taken(kept)) if kept and self.keep else ""
        return Built(Status.OK, cubin=cubin, **data)


def _without_answer(future: Future[Built]) -> bool:
    return future.done() and (future.cancelled() or isinstance(future.exception(), Late))


def refusal(error: str, detail: str) -> str:
    """The class of failures that an exception of the compiler belongs to."""
    if error == "PTXASError" or "ptxas" in detail:
        return "ptxas refuses it"
    if error in ("OutOfMemoryError", "MemoryError"):
        return "compiler out of memory"
    if error in ("CompilationError", "CompileTimeAssertionFailure", "UnsupportedLanguageConstruct"):
        return "kernel refuses it" if error == "CompileTimeAssertionFailure" else "Triton refuses it"
    return "compiler fails"


def first_line(text: str) -> str:
    """The last line that says something: where Triton puts the message itself."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" ^\t")]
    return lines[-1][:300] if lines else ""


def named(said: str) -> str:
    """The version of an assembler as keys have it, of all that it says of itself."""
    return next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "")[:100]


def _taken(path: str) -> bytes:
    data = Path(path).read_bytes()
    Path(path).unlink()
    return data


def results(futures: Iterable[Future[Built]]) -> Iterator[Built]:
    """Of futures, in order."""
    for future in futures:
        yield future.result()


def summary(pool: CompilePool) -> dict[str, Any]:
    """What the pool has spent, as data."""
    return {
        op: {"jobs": s.jobs, "cpu_s": round(s.cpu_s, 3), "seconds": round(s.seconds, 3), "faults": s.faults}
        for op, s in pool.spent.items()
    }
