"""Which keys can be of the segments of some queries, by what numbers there are in every few keys.

A bound: what it leaves out is of another segment, whatever the order of the numbers; where they rise or fall along a
row, as those of packed documents do, it leaves nearly nothing in.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Ranges = tuple[tuple[int, int], ...]
GRAIN = 64  # keys that are told apart


def edges(x: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The least and the greatest of each `block` neighbours of x [B, N]: [B, blocks] each."""
    short = -x.shape[1] % block
    x = torch.cat([x, x[:, -1:].expand(-1, short)], 1) if short else x
    x = x.unflatten(1, (-1, block))
    return x.amin(2), x.amax(2)


@dataclass(frozen=True)
class SegmentBounds:
    """Of keys in steps of GRAIN the least and greatest segment [B, steps], and the segments [B, N] of queries."""

    queries: Tensor
    least: Tensor
    greatest: Tensor

    @staticmethod
    def of(queries: Tensor, keys: Tensor, block: int) -> "SegmentBounds | None":
        """None where nothing is to be gained, and where numbers cannot be read without waiting for them."""
        here = all(type(x) is Tensor and x.device.type == "cpu" for x in (queries, keys))
        if not here or keys.shape[1] <= block:
            return None
        return SegmentBounds(queries, *edges(keys, GRAIN))

    def within(self, start: int, stop: int, ranges: Iterable[tuple[int, int]], rows: slice = slice(None)) -> Ranges:
        """What is left of key ranges, in steps, that queries start..stop-1 of these rows of the batch can see."""
        own = self.queries[rows, start:stop]
        low, high = own.amin(1, keepdim=True), own.amax(1, keepdim=True)
        seen = ((self.greatest[rows] >= low) & (self.least[rows] <= high)).any(0).tolist()
        return tuple(part for lo, hi in ranges for part in _runs(seen, lo, hi))


def _runs(seen: list[bool], lo: int, hi: int) -> Iterator[tuple[int, int]]:
    """The stretches of lo..hi-1 in steps that are seen."""
    start = -1
    for at in range(lo // GRAIN, -(-hi // GRAIN)):
        if seen[at] and start < 0:
            start = max(lo, at * GRAIN)
        elif not seen[at] and start >= 0:
            yield start, at * GRAIN
            start = -1
    if start >= 0:
        yield start, hi
