"""The words of the tuner: what a search is given, what it asks of a runner, what it gets back.

    Subject(label, pool, ...)  ->  search  ->  runner.time(config, fidelity) -> Outcome

Standard library only, so that workers and the front door may import it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

from weft.cache.row import STRIKES, WRONG, Row, Source, Status, Value, config_id, lower_median

Config = dict[str, Value]
STUDIES = (".db", ".sqlite", ".sqlite3", ".log", ".journal", ".jsonl")
"""How the file of an Optuna study may end: SQLite's, then those of a journal."""
"""A value for every knob."""

FAULTS = WRONG | STRIKES | {Status.COMPILE}
"""What may become of a trial that was let through the gates and still gives no time."""

__all__ = [
    "FAULTS", "Config", "Fidelity", "Journal", "Level", "Outcome", "Pool", "Row", "Runner", "Source", "Status",
    "Subject", "Trial", "Value", "config_id", "lower_median",
]  # fmt: skip


class Level(IntEnum):
    """How carefully a configuration is timed, cheapest first."""

    LAUNCH = 1  # one launch, after its result was checked
    SAMPLES = 2  # a few launches
    FULL = 3  # enough for a median
    FINAL = 4  # one launch of the race between the best


@dataclass(frozen=True)
class Fidelity:
    """How to time one configuration. samples: how many. seconds: the deadline, after which the outcome is a timeout.
    give_up_us: a runner may stop with status slow once a sample, in microseconds, is above it."""

    level: Level
    samples: int
    seconds: float
    give_up_us: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a runner says. times_us: the samples, in microseconds, positive and finite where status is ok or slow.

    reason: one line for people. extra: what may stand in a row of the store besides (`compile_s`, `shared`, `regs`,
    `stack`, `error`, `clock_mhz`, `cubin`). seconds: how long it took by the tuner's clock; filled in by the search.
    """

    status: Status
    times_us: tuple[float, ...] = ()
    reason: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seconds: float = 0.0

    @property
    def us(self) -> float | None:
        """The median of the samples in microseconds; None without any."""
        return lower_median(self.times_us) if self.times_us else None


class Runner(Protocol):
    """What can time a configuration. It never raises for what a configuration does; `close` ends its processes."""

    def time(self, config: Config, fidelity: Fidelity) -> Outcome:
        """Time it; the first call for a configuration also checks its result."""
        ...

    def close(self) -> None:
        """Let go of the device."""
        ...


@dataclass(frozen=True)
class Pool:
    """What may be tried, after every gate. features: name -> one number a configuration, what the compiler knows of
    them (bytes of shared memory, registers, waves); rejected: reason -> how many; seconds: CPU-seconds by gate."""

    configs: tuple[Config, ...]
    features: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])
    rejected: Mapping[str, int] = field(default_factory=dict[str, int])
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])

    def __len__(self) -> int:
        return len(self.configs)


@dataclass(frozen=True)
class Subject:
    """One kernel to tune.

    label: its name for people. incumbent: what it runs with today, always timed. seeds: foreign configurations that
    won elsewhere, best first; those outside the pool are ignored. prior: estimated microseconds a configuration of the
    pool takes, by the cost model; None without one. roofline_us: no configuration can be faster. share: of the model's
    time, what budgets are divided by.
    """

    label: str
    pool: Pool
    incumbent: Config | None = None
    seeds: tuple[Config, ...] = ()
    prior: Sequence[float] | None = None
    roofline_us: float | None = None
    share: float = 1.0


@dataclass(frozen=True)
class Trial:
    """One configuration and what became of it. number: from 0, in the order asked. origin: who proposed it ("seed",
    "design", "model", "uniform", "enqueued", ...). recorded: known from an earlier run, so nothing was run."""

    number: int
    config: Config
    outcome: Outcome
    origin: str = ""
    recorded: bool = False

    @property
    def us(self) -> float | None:
        """Microseconds where it is a time to rank by, None for a fault."""
        return self.outcome.us if self.outcome.status in (Status.OK, Status.SLOW) else None


class Journal(Protocol):
    """Where the trials of one kernel are kept."""

    def rows(self) -> Sequence[Row]:
        """Every row so far, other processes' included."""
        ...

    def append(self, row: Row) -> bool:
        """Keep a row; False when it is held in memory only."""
        ...
