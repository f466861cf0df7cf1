"""Which of the best is best. Clocks drift, so what was timed minutes apart cannot be compared to a percent.

The finalists run in rounds, one launch each, every round in another random order; what counts is the logarithm of the
ratio to a common reference, so that drift cancels, its mean over the rounds without the largest and the smallest. What
cannot be told apart is decided for the incumbent, which is there already, and else for the smaller resources.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weft.autotune.budget import Late
from weft.autotune.types import Status, Trial

ROUNDS = 25
FINALISTS = 8
WITHIN = 1.05
"""Finalists are at most this many times slower than the fastest."""
TIE = 0.01
"""An incumbent that is at most this much slower than the winner stays."""
_BOOTSTRAPS = 1000
_TRIMMED = 0.15  # of the rounds, at either end: what spikes hit; a median would throw away a third of what is known

Times = NDArray[np.float64]


@dataclass(frozen=True)
class FinalVerdict:
    """winner: place among the finalists. confidence: share of resampled races in which it is the fastest, or ties for
    that. behind: by how much each is slower than the fastest, as a fraction. why: for people."""

    winner: int
    confidence: float
    behind: tuple[float, ...]
    why: str


def field(trials: Sequence[Trial]) -> list[Trial]:
    """Who takes part: the fastest, and those that are little slower."""
    done = sorted((t.us, t.number, t) for t in trials if t.outcome.status is Status.OK and t.us is not None)
    return [t for us, _, t in done[:FINALISTS] if us <= WITHIN * done[0][0]]


def alone(trials: Sequence[Trial], rng: np.random.Generator) -> float:
    """How sure the fastest is where nothing else is near: the share of resampled trials in which it stays so."""
    done = sorted((t.us, t.number, t) for t in trials if t.outcome.status is Status.OK and t.us is not None)
    samples = [np.array(t.outcome.times_us) for _, _, t in done[:FINALISTS]]
    drawn = [np.median(s[rng.integers(0, len(s), (_BOOTSTRAPS, len(s)))], axis=1) for s in samples]
    return float((drawn[0] <= np.min(drawn, axis=0)).mean())


def race(
    count: int, launch: Callable[[int], float | None], rng: np.random.Generator, over: Callable[[], bool]
) -> Times:
    """Times in microseconds, [rounds, count]; NaN from the launch on at which a finalist failed. Ends early, with the
    rounds that are complete, when `over` says so. launch: one launch of a finalist, None where it failed, Late where it
    could not be made any more."""
    rounds: list[list[float]] = []
    failed: set[int] = set()
    while len(rounds) < ROUNDS:
        times = [float("nan")] * count
        for place in rng.permutation(count):
            if over():
                return np.array(rounds).reshape(len(rounds), count)
            try:
                us = launch(int(place)) if place not in failed else None
            except Late:
                return np.array(rounds).reshape(len(rounds), count)
            if us is None:
                failed.add(int(place))
            else:
                times[place] = us
        rounds.append(times)
    return np.array(rounds).reshape(len(rounds), count)


def decide(
    times: Times, incumbent: int | None, resources: Sequence[tuple[float, ...]], rng: np.random.Generator
) -> FinalVerdict | None:
    """The winner; None when no finalist ran to the end. resources: of each, smaller is better."""
    alive = [place for place in range(times.shape[1]) if np.isfinite(times[:, place]).all()]
    if not alive or not len(times):
        return None
    logs = np.log(times[:, alive])
    logs -= np.median(logs, axis=1, keepdims=True)  # what a round has in common is drift
    middle = _middle(logs[None])[0]
    drawn = _middle(logs[rng.integers(0, len(logs), (_BOOTSTRAPS, len(logs)))])
    top = int(np.argmin(middle))
    apart = drawn - drawn[:, [top]]
    # Told apart: in 19 of 20 resampled races it is behind the fastest.
    near = middle - middle[top] <= np.log1p(TIE)
    tied = [i for i in range(len(alive)) if i == top or (near[i] and float((apart[:, i] > 0).mean()) < 0.95)]
    chosen, why = top, "fastest"
    held = alive.index(incumbent) if incumbent in alive else None
    if held is not None and held != top and near[held]:
        chosen, why = held, f"incumbent, within {TIE:.0%} of the fastest"
    elif len(tied) > 1:
        chosen = min(tied, key=lambda i: (resources[alive[i]], middle[i]))
        why = "fastest" if chosen == top else "smaller, and not told apart from the fastest"
    lead = drawn[:, [chosen]] <= drawn + (0.0 if chosen == top else np.log1p(TIE))
    behind = [float("nan")] * times.shape[1]
    for i, place in enumerate(alive):
        behind[place] = float(np.expm1(middle[i] - middle[top]))
    return FinalVerdict(alive[chosen], float(lead.all(axis=1).mean()), tuple(behind), why)


def _middle(logs: Times) -> Times:
    """The mean over rounds without the extremes, [draws, finalists]; logs: [draws, rounds, finalists]."""
    rounds = logs.shape[1]
    cut = max(int(_TRIMMED * rounds), min(1, (rounds - 1) // 2))
    return np.sort(logs, axis=1)[:, cut : rounds - cut].mean(1)
