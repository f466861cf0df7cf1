"""What is known from elsewhere: in which order it is tried, and why it cannot do harm.

A configuration that won on another GPU is often good and sometimes at the foot of the wrong hill. So seeds are never
the whole opening: the first two are tried in turn with two points of a design that covers the pool. When the better of
those is faster than both seeds, the seeds are hostile: the rest of them is not tried, the model does not see them, and
what follows is, trial by trial, the search that would have been run without them, two trials later. Otherwise a point
of the design follows every two seeds, and when the design has found better than four or more seeds did, the rest of
them is not tried either; the model sees both and treats a seed as any other observation.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

MOST_SEEDS = 10
_PAIRS = 2  # so many seeds are tried in turn with the design, and told hostile when all of them lose
_A_TURN = 2  # seeds between two points of the design after that
_JUDGED = 2 * _A_TURN  # so many seeds are tried before they are judged
_ENOUGH = 3  # times the model needs to begin

Observed = Sequence[tuple[int, float | None]]
"""Rows of the pool with their times in microseconds, None where the trial failed, in the order they were asked."""


@dataclass(frozen=True)
class Opening:
    """The trials before the model is asked. seeds, design: rows of the pool; total: how many points of the design
    where there are no seeds; with good seeds half of them."""

    seeds: tuple[int, ...]
    design: tuple[int, ...]
    total: int

    def next(self, observed: Observed, taken: Collection[int]) -> tuple[int, str] | None:
        """The next row and "seed" or "design"; None when the opening is over. taken: rows tried or being tried."""
        times = {row: us for row, us in observed if us is not None}
        given_up = self.hostile(observed) or self.disappointing(times, taken)
        seeds = [] if given_up else [row for row in self.seeds if row not in taken]
        design = [row for row in self.design if row not in taken]
        covered = sum(row in taken and row not in self.seeds for row in self.design)
        tried = len(self.seeds) - len(seeds)
        if seeds and design and min(tried, covered) < _PAIRS:
            return (seeds[0], "seed") if tried <= covered else (design[0], "design")
        if seeds and tried < _A_TURN * (covered + 1):
            return seeds[0], "seed"
        wanted = self.total if given_up else max(self.total // 2, self.total - len(self.seeds))
        if design and (covered < wanted or len(set(times.values())) < _ENOUGH):
            return design[0], "design"
        return (seeds[0], "seed") if seeds else None

    def hostile(self, observed: Observed) -> bool:
        """Whether the first seeds lost to the points of the design that they were tried with; stays as it is."""
        none = float("inf")
        times = {row: none if us is None else us for row, us in observed}
        design = [row for row in self.design if row not in self.seeds][:_PAIRS]
        seeds = self.seeds[:_PAIRS]
        if len(seeds) < _PAIRS or not design or not times.keys() >= {*seeds, *design}:
            return False
        return min(times[row] for row in design) < min(times[row] for row in seeds)

    def disappointing(self, times: dict[int, float], taken: Collection[int]) -> bool:
        """Whether the seeds tried are worse than the design."""
        tried = sum(row in taken for row in self.seeds)
        if tried < min(_JUDGED, len(self.seeds)):
            return False
        none = float("inf")
        best = min((times.get(row, none) for row in self.seeds), default=none)
        return min((times.get(row, none) for row in self.design), default=none) < best
