"""What is known from elsewhere: in which order it is tried, and why it cannot do harm.

A configuration that won on another GPU is often good and sometimes at the foot of the wrong hill. So seeds are never
the whole opening: after every two of them one point of a design that covers the pool is tried. When the design finds
better than the seeds did, the seeds have shown that they do not fit this GPU, and the rest of them is not tried. The
model sees both and treats a seed as any other observation; it neither starts at the seeds nor stays with them. The
price of bad seeds is thus four trials, and what follows is the search that would have been run without them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

MOST_SEEDS = 10
_A_TURN = 2  # seeds between two points of the design
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
        given_up = self.disappointing(times, taken)
        seeds = [] if given_up else [row for row in self.seeds if row not in taken]
        design = [row for row in self.design if row not in taken]
        covered = len(self.design) - len(design)
        if seeds and len(self.seeds) - len(seeds) < _A_TURN * (covered + 1):
            return seeds[0], "seed"
        wanted = self.total if given_up else max(self.total // 2, self.total - len(self.seeds))
        if design and (covered < wanted or len(set(times.values())) < _ENOUGH):
            return design[0], "design"
        return (seeds[0], "seed") if seeds else None

    def disappointing(self, times: dict[int, float], taken: Collection[int]) -> bool:
        """Whether the seeds tried are worse than the design."""
        tried = sum(row in taken for row in self.seeds)
        if tried < min(_JUDGED, len(self.seeds)):
            return False
        none = float("inf")
        best = min((times.get(row, none) for row in self.seeds), default=none)
        return min((times.get(row, none) for row in self.design), default=none) < best
