"""How a kernel is timed on a GPU: CUDA graphs, cold L2, events around each replay. Imports torch.

Fixed before anything was measured with it: N(0, 1) operands, one process, the kernel captured once, the L2 cache
overwritten before every replay, the time between two events, and for races one replay of each in turn. On a CPU (the
interpreter, in tests) the wall clock around one run.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import torch

WARM = 3
_MICRO = 1e6


class Clock(Protocol):
    """Times one prepared kernel."""

    def sample(self) -> float:
        """Microseconds of one run, caches cold."""
        ...


class GraphClock:
    """A kernel captured as a CUDA graph."""

    def __init__(self, run: Callable[[], Any], flush: torch.Tensor) -> None:
        self.flush = flush
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.kept = run()
        self.start = torch.cuda.Event(enable_timing=True)
        self.stop = torch.cuda.Event(enable_timing=True)
        self.sample()

    def sample(self) -> float:
        self.flush.zero_()
        self.start.record()
        self.graph.replay()
        self.stop.record()
        self.stop.synchronize()
        return self.start.elapsed_time(self.stop) * 1e3


class WallClock:
    """A kernel on the CPU."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self.run = run

    def sample(self) -> float:
        began = time.perf_counter()
        self.run()
        return (time.perf_counter() - began) * _MICRO


def flusher(device: str) -> torch.Tensor | None:
    """Memory twice as large as the L2 cache; None on a CPU."""
    if not device.startswith("cuda"):
        return None
    size = torch.cuda.get_device_properties(device).L2_cache_size
    return torch.empty(max(2 * size, 64 << 20), dtype=torch.uint8, device=device)


def clock(run: Callable[[], Any], flush: torch.Tensor | None) -> Clock:
    """The way to time a kernel on the device of `flush`."""
    return WallClock(run) if flush is None else GraphClock(run, flush)


def samples(timer: Clock, n: int, seconds: float, give_up_us: float | None) -> tuple[list[float], bool]:
    """Up to n samples within so many seconds, at least one; and whether one was over `give_up_us`, which ends them."""
    out, end = list[float](), time.monotonic() + seconds
    while len(out) < n and (not out or time.monotonic() < end):
        out.append(timer.sample())
        if give_up_us is not None and out[-1] > give_up_us:
            return out, True
    return out, False


def clock_mhz(device: str) -> float | None:
    """The multiprocessors' clock now; None where the driver does not say."""
    with suppress(Exception):
        return float(torch.cuda.clock_rate(device))
    return None


def device_facts(device: str) -> dict[str, Any]:
    """What a key must know of the device: its name, multiprocessors, bytes of shared memory, memory, arch."""
    if not device.startswith("cuda"):
        return {"gpu": "", "sms": 0, "shared": 0, "memory": 0, "arch": ""}
    p = torch.cuda.get_device_properties(device)
    return {
        "gpu": p.name, "sms": p.multi_processor_count, "arch": f"sm_{p.major}{p.minor}", "memory": p.total_memory,
        "shared": getattr(p, "shared_memory_per_block_optin", 0),
    }  # fmt: skip


def order(rounds: int, n: int, seed: int) -> Sequence[Sequence[int]]:
    """For each round of a race a random order of the n that run."""
    rng = random.Random(seed)
    return [rng.sample(range(n), n) for _ in range(rounds)]
