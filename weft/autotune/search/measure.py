"""Times one configuration no longer than it deserves: one launch, a few, all, and away as soon as it cannot win.

1 launch      given up when above 4 times the best
5 launches    given up when above 1.5 times the best
25 launches   the median counts
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from weft.autotune.budget import Clock, Deadlines, Late
from weft.autotune.types import Config, Fidelity, Level, Outcome, Runner, Status

STEPS = ((Level.LAUNCH, 1, 4.0), (Level.SAMPLES, 5, 1.5), (Level.FULL, 25, None))
"""Level, samples, and above how many times the best a configuration is given up."""
_MOST_US = 1e12


@dataclass
class Stopwatch:
    """Times configurations with a runner; whatever the runner does, the answer is an outcome, unless it is Late."""

    runner: Runner
    clock: Clock
    deadlines: Deadlines = field(default_factory=Deadlines)
    watch: Callable[[Config, Fidelity, Outcome], None] | None = None
    """Called after every call of the runner."""

    def measure(self, config: Config, best_us: float | None) -> Outcome:
        """Up the levels, against the best time so far; seconds of the outcome are those of all levels."""
        began, outcome = self.clock(), Outcome(Status.CRASH)
        for level, samples, worst in STEPS:
            limit = None if best_us is None or worst is None else worst * best_us
            outcome = self.call(config, level, samples, limit, best_us)
            if level is Level.LAUNCH and outcome.status is not Status.TIMEOUT:
                self.deadlines.saw(outcome.seconds)
            if outcome.status is not Status.OK:
                break
            assert outcome.us is not None
            if limit is not None and outcome.us > limit:
                times = f"{samples} launches" if samples > 1 else "a launch"
                why = f"{times} of {outcome.us:.4g} us, above {worst} times the best"
                outcome = replace(outcome, status=Status.SLOW, reason=outcome.reason or why)
                break
        return replace(outcome, seconds=self.clock() - began)

    def call(
        self, config: Config, level: Level, samples: int, give_up_us: float | None, best_us: float | None
    ) -> Outcome:
        """One call of the runner, its answer checked."""
        seconds = self.deadlines.launch(samples, best_us)
        if level is Level.LAUNCH:
            seconds += self.deadlines.first()
        fidelity = Fidelity(level, samples, seconds, give_up_us)
        began = self.clock()
        try:
            outcome = checked(self.runner.time(dict(config), fidelity))
        except Late:
            raise
        except Exception as error:
            outcome = Outcome(Status.CRASH, reason=f"the runner raised {type(error).__name__}: {error}"[:300])
        outcome = replace(outcome, seconds=self.clock() - began)
        if self.watch is not None:
            self.watch(config, fidelity, outcome)
        return outcome


def checked(outcome: Outcome) -> Outcome:
    """The outcome, with status invalid_time where it claims times that cannot be."""
    timed = outcome.status in (Status.OK, Status.SLOW)
    right = all(type(t) in (int, float) and math.isfinite(t) and 0 < t <= _MOST_US for t in outcome.times_us)
    if timed and not (right and (outcome.times_us or outcome.status is Status.SLOW)):
        return replace(outcome, status=Status.INVALID_TIME, times_us=(), reason=f"times {outcome.times_us!r}"[:200])
    return outcome if timed else replace(outcome, times_us=())
