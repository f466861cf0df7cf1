"""How many cases a campaign runs: a seeded sample in `make test`, the full count in `make soak`."""

import os
import random
from collections.abc import Iterable
from typing import TypeVar

from benchmarks.specs import CROSSED, EVERY

T = TypeVar("T")

SOAK = os.environ.get("WEFT_SOAK") == "1"
SHIPPED = EVERY if SOAK else CROSSED
"""The shipped specs that tests of what holds for every one go through: in `make test`, those that stand for others."""


def count(sample: int, soak: int) -> int:
    """`sample` cases by default, `soak` cases when WEFT_SOAK=1."""
    return soak if SOAK else sample


def some(cases: Iterable[T], sample: int) -> list[T]:
    """`sample` of the cases, always the same ones, by default; all of them when WEFT_SOAK=1."""
    every = list(cases)
    return every if SOAK or len(every) <= sample else random.Random(0).sample(every, sample)
