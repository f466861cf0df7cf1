"""Many drawn specs on several processes: the faults they have, and what they covered."""

import itertools
import multiprocessing
import os
import re
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.sweep.coverage import Pair, every_key, pairs
from tests.sweep.draw import Draw, Spec

TRIED = 8
"""Specs drawn for each that is run: the one with most options, and pairs of them, not yet seen."""
NEW = 300
"""What an option that was never taken counts for, in pairs of options."""
RENEWED = 100
"""Cases after which a process is replaced: the modules of their packages stay imported."""

STREAMS = 0.25
"""The share of specs of several streams."""
BESIDE = 10
"""Of so many cases one with the checks that are no comparison."""


@dataclass(frozen=True)
class Told:
    """A fault as a process tells it."""

    where: str
    what: str
    signature: str


@dataclass
class Found:
    """What one case gave. covered: the keys of the schema that its spec sets."""

    number: int
    spec: Spec
    with_kernels: bool
    covered: set[str]
    faults: list[Told]
    seconds: float


@dataclass
class Covered:
    """Keys of the schema that loaded specs set, pairs of keys, and pairs of options drawn together."""

    keys: set[str] = field(default_factory=set)
    pairs: set[Pair] = field(default_factory=set)
    options: set[Pair] = field(default_factory=set)

    def figures(self) -> dict[str, Any]:
        every = every_key()
        return {
            "keys": len(self.keys),
            "of_keys": len(every),
            "missing": sorted(every - self.keys),
            "pairs_of_keys": len(self.pairs),
            "of_pairs_of_keys": len(pairs(every)),
            "pairs_of_options": len(self.options),
        }


def drawn(
    seed: str, without: str = "^$", streams: float = STREAMS, tried: int = TRIED
) -> Iterator[tuple[Spec, list[str]]]:
    """Specs without end, each with the options that were taken for it.

    streams: the share that has several of them. tried: of so many drawn each time, the one with most that is new.
    without: a regular expression of options (`key=value`) that are left out, such as those of a known fault, which
    would hide all else of its case."""
    seen, together = Counter[str](), set[Pair]()
    for i in itertools.count():
        many = (Draw(f"{seed}.{i}.{j}", seen, streams) for j in itertools.count())
        fit = ((d.spec(), d.told) for d in many)
        kept = (x for x in fit if not any(re.search(without, t) for t in x[1]))
        some = itertools.islice(kept, tried)
        spec, told = max(some, key=lambda x: NEW * len({*x[1]} - {*seen}) + len(pairs(x[1]) - together))
        seen.update(told)
        together |= pairs(told)
        yield spec, told


def looked_beside(number: int) -> bool:
    return number % BESIDE == BESIDE // 2


def case(job: tuple[int, Spec, bool]) -> Found:
    """One case, in a process of the campaign."""
    from tests.sweep.compare import covered, faults_of  # torch, which the process that hands out the work does without

    number, spec, with_kernels = job
    began = time.process_time()
    faults = [Told(f.where, f.what, f.signature) for f in faults_of(spec, with_kernels, looked_beside(number))]
    return Found(number, spec, with_kernels, covered(spec), faults, time.process_time() - began)


def campaign(
    seed: str,
    cases: int,
    kernels: float,
    workers: int,
    without: str = "^$",
    first: int = 0,
    streams: float = STREAMS,
    only: Collection[int] = (),
) -> Iterator[tuple[Found, Covered]]:
    """Cases in their order, each with what was covered so far.

    kernels: every so many cases their kernels too; 0: never. first: the number of the first case that is run. only:
    these of them; empty: all. without, streams: as for `drawn`."""
    covered = Covered()
    jobs: list[tuple[int, Spec, bool]] = []
    for i, (spec, told) in enumerate(itertools.islice(drawn(seed, without, streams), cases)):
        covered.options |= pairs(told)
        if i >= first and (not only or i in only):
            jobs.append((i, spec, bool(kernels) and i % kernels < 1))
    with multiprocessing.get_context("spawn").Pool(workers, started, maxtasksperchild=RENEWED) as pool:
        for found in pool.imap(case, jobs):
            covered.keys |= found.covered
            covered.pairs |= pairs(found.covered)
            yield found, covered


def started() -> None:
    """One thread a process: that many cases run beside each other."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch  # torch, which the process that hands out the work does without

    torch.set_num_threads(1)
