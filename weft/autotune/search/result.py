"""How a search is asked for and what it found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weft.autotune.types import FAULTS, Config, Status, Subject, Trial

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@dataclass(frozen=True)
class Options:
    """seed: of every choice. sampler: a name of `sampler.NAMES`, or an Optuna sampler, which is kept inside the pool.
    resume: take outcomes from the journal instead of timing again. enough: stop at this share of the roofline.
    claim, release: of those who share a journal, see `weft.autotune.search.claims`: whether this process may try a
    configuration now, and what is told once its row is kept."""

    seed: int = 0
    sampler: str | BaseSampler = "pool"
    resume: bool = False
    enough: float | None = 0.95
    claim: Callable[[Config], bool] | None = None
    release: Callable[[Config], None] | None = None


@dataclass(frozen=True)
class Finalist:
    """times_us: its launches in the finals. behind: fraction by which it is slower than the fastest."""

    config: Config
    times_us: tuple[float, ...]
    behind: float


@dataclass(frozen=True)
class Final:
    """What the finals came to. winner: None where nothing ran."""

    winner: Config | None = None
    us: float | None = None
    confidence: float = 0.0
    why: str = ""
    finalists: tuple[Finalist, ...] = ()


@dataclass(frozen=True)
class Result:
    """What a search found. stopped: "budget", "trials", "pool", "roofline" or "interrupted". refused: enqueued
    configurations that were not tried, and why. seconds: by the budget's clock. study: the Optuna study."""

    subject: Subject
    trials: tuple[Trial, ...]
    final: Final
    stopped: str
    seconds: float = 0.0
    refused: tuple[str, ...] = ()
    study: Any = None

    @property
    def winner(self) -> Config | None:
        return self.final.winner

    @property
    def winner_us(self) -> float | None:
        return self.final.us

    @property
    def best(self) -> Trial | None:
        """The fastest of the trials that ran to their end."""
        return fastest(self.trials)

    @property
    def faults(self) -> dict[str, int]:
        """How many trials failed, by status."""
        return dict(Counter(t.outcome.status.value for t in self.trials if t.outcome.status in FAULTS))

    @property
    def recorded(self) -> int:
        """How many trials were known from an earlier run."""
        return sum(t.recorded for t in self.trials)

    def curve(self) -> list[float | None]:
        """The best time in microseconds after each trial."""
        return curve(self.trials)

    def rejected(self) -> Mapping[str, int]:
        """Why configurations were not timed, or gave no time: the gates' reasons, then what became of trials."""
        return {**self.subject.pool.rejected, **self.faults}


def fastest(trials: Sequence[Trial]) -> Trial | None:
    """The fastest of the trials that ran to their end; of equal ones the first."""
    done = [t for t in trials if t.outcome.status is Status.OK and t.us is not None]
    return min(done, key=lambda t: (t.us or 0.0, t.number)) if done else None


def curve(trials: Sequence[Trial]) -> list[float | None]:
    """The best time in microseconds after each trial."""
    out: list[float | None] = []
    for trial in trials:
        us = trial.us if trial.outcome.status is Status.OK else None
        before = out[-1] if out else None
        out.append(before if us is None else us if before is None else min(before, us))
    return out
