"""Competitors timed against each other: one process, in turns, medians; one that fails is a row, not an end."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from weft.autotune.workers import timing

ROUNDS = 25
Run = Callable[[], Any]


class EventClock:
    """Launches as they come, for what cannot be captured in a CUDA graph."""

    def __init__(self, run: Run, flush: torch.Tensor) -> None:
        self.run, self.flush = run, flush
        self.start, self.stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(timing.WARM):
            run()

    def sample(self) -> float:
        self.flush.zero_()
        self.start.record()
        self.run()
        self.stop.record()
        self.stop.synchronize()
        return self.start.elapsed_time(self.stop) * 1e3


@dataclass(frozen=True)
class Time:
    """us: median microseconds; low, high: the quartiles. how: "graph", "events" or "wall". why: it did not run."""

    us: float = 0.0
    low: float = 0.0
    high: float = 0.0
    rounds: int = 0
    how: str = ""
    why: str = ""

    def data(self) -> dict[str, Any]:
        if self.why:
            return {"why": self.why}
        return {"us": self.us, "low": self.low, "high": self.high, "rounds": self.rounds, "how": self.how}


def race(runs: Mapping[str, Run], device: str, seconds: float, rounds: int = ROUNDS) -> dict[str, Time]:
    """Median times of all, each once a round in random order, caches cold; at least three rounds on a GPU."""
    flush = timing.flusher(device)
    least = 3 if flush is not None else 1
    clocks: dict[str, tuple[timing.Clock, str]] = {}
    out: dict[str, Time] = {}
    for name, run in runs.items():
        try:
            clocks[name] = _clock(run, flush)
        except Exception as error:
            out[name] = Time(why=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200])
    names, end = list(clocks), time.monotonic() + seconds
    found: dict[str, list[float]] = {name: [] for name in names}
    for k, turn in enumerate(timing.order(rounds, len(names), 0)):
        if k >= least and time.monotonic() > end:
            break
        for i in turn:
            found[names[i]].append(clocks[names[i]][0].sample())
    for name, times in found.items():
        times.sort()
        low, high = times[len(times) // 4], times[-1 - len(times) // 4]
        out[name] = Time(median(times), low, high, len(times), clocks[name][1])
    return {name: out[name] for name in runs}


def _clock(run: Run, flush: torch.Tensor | None) -> tuple[timing.Clock, str]:
    run()
    if flush is None:
        return timing.clock(run, None), "wall"
    torch.cuda.synchronize()
    try:
        return timing.clock(run, flush), "graph"
    except RuntimeError:
        torch.cuda.synchronize()
        return EventClock(run, flush), "events"
