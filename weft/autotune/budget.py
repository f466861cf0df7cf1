"""How long a search may take: seconds by a clock that tests can replace, or a number of trials, or both.

Of a search the budget is looked at between trials. What a session was given as a whole holds inside them too: no job of
a worker begins after it, one under way is ended with it, and who waits for that is told by `Late`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from weft.errors import UsageError

Clock = Callable[[], float]
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


def seconds_of(text: str) -> float:
    """Of "90", "90s", "10m", "1.5h"; UsageError for anything else."""
    number, unit = text.strip().rstrip("smh"), text.strip()[len(text.strip().rstrip("smh")) :]
    try:
        value = float(number) * _UNITS[unit]
    except (ValueError, KeyError):
        value = math.nan
    if not 0 < value < 1e8:
        raise UsageError(f"a budget is a time such as 90s, 10m or 1h, not {text!r}")
    return value


class Late(Exception):
    """The budget is used up: what was asked for was not begun, or was ended. Says nothing of a configuration."""


@dataclass
class Budget:
    """seconds: of the clock, from when it is made; trials: those known from an earlier run included. None: no limit."""

    seconds: float | None = None
    trials: int | None = None
    clock: Clock = time.monotonic
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def used(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.started

    def left(self) -> float:
        """Seconds; infinite without a limit."""
        return math.inf if self.seconds is None else self.seconds - self.used

    def part(self, seconds: float, trials: int | None = None) -> Budget:
        """A budget from now on, of at most what this one has left."""
        most = min(seconds, self.left())
        return Budget(None if most == math.inf else most, trials, clock=self.clock)

    def over(self, trials: int, reserve: float = 0.0) -> bool:
        """Whether no further trial may begin. reserve: seconds kept for what comes after the trials."""
        return (self.trials is not None and trials >= self.trials) or self.left() <= reserve


FOREVER = Budget()


@dataclass(frozen=True)
class BudgetShare:
    """A search as one of several that share a budget: the `place`th, from 1 on, of `of`."""

    place: int
    of: int
    budget: Budget

    def left(self, seconds: float) -> float:
        """Seconds until all are done, where this one takes so many more: the others take what those so far took."""
        used = self.budget.used + seconds
        return min(seconds + used / self.place * (self.of - self.place), self.budget.left())


ALONE = BudgetShare(1, 1, FOREVER)


@dataclass
class Deadlines:
    """How long one call of a runner may take, in seconds; learns what is usual.

    most: for the first call of a configuration, which compiles or loads it and checks its result; once ten are known,
    ten times what nine of ten took is enough. run: for samples, or twenty times what the best would take.
    """

    most: float = 30.0
    run: float = 1.0
    _seen: list[float] = field(default_factory=list[float])

    @classmethod
    def of(cls, budget: Budget) -> Deadlines:
        """A configuration that takes a tenth of the budget is not worth it."""
        return cls() if budget.seconds is None else cls(most=min(30.0, max(2.0, budget.seconds / 10)))

    def saw(self, seconds: float) -> None:
        """A first call that ended by itself took this long."""
        self._seen.append(seconds)

    def first(self) -> float:
        if len(self._seen) < 10:
            return self.most
        return min(self.most, max(2.0, 10 * sorted(self._seen)[len(self._seen) * 9 // 10]))

    def launch(self, samples: int, best_us: float | None) -> float:
        return max(self.run, 20 * samples * (best_us or 0.0) * 1e-6)
