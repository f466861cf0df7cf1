"""A recorded table searched many times: how good is what a sampler finds, and after how many trials.

found = replays(load("gemm_RTX_3090.json.gz"), seeds=10, warm=[load("gemm_RTX_2080_Ti.json.gz")])
found.fraction(100)        mean over the seeds of optimum / best found in 100 trials
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from statistics import fmean, pstdev
from typing import Any

from tabulate import tabulate

from weft.autotune.budget import Budget, BudgetShare
from weft.autotune.search.kernel import Search
from weft.autotune.search.replay import RecordedTable, Replay, key
from weft.autotune.search.result import Options, Result
from weft.autotune.search.rows import MemoryJournal, StoreJournal
from weft.autotune.space.seeds import MOST_SEEDS
from weft.autotune.types import Config, Journal
from weft.cache.canonical import digest
from weft.cache.key import Device, Key
from weft.cache.store import Store

TRIALS = 100
MARKS = (10, 25, 50, 100)
"""After so many trials the fraction of the optimum is reported."""


@dataclass(frozen=True)
class Replays:
    """Searches of one table that differ in their seed. curves: fraction of the optimum after each trial. unbegun: how
    many seeds the budget left no time for."""

    table: RecordedTable
    sampler: str
    warm: int
    results: tuple[Result, ...]
    curves: tuple[tuple[float, ...], ...]
    cpu_s: float
    unbegun: int = 0

    def fraction(self, trials: int) -> float:
        """Mean fraction of the optimum after so many trials, or after all where there were fewer."""
        return fmean(_at(curve, trials) for curve in self.curves)

    @property
    def winners(self) -> list[float]:
        """Fraction of the optimum that each search's winner has."""
        return [self.table.fraction(result.winner) for result in self.results]

    def data(self) -> dict[str, Any]:
        """As JSON data."""
        trials = max(map(len, self.curves))
        marks = [m for m in MARKS if m < trials] + [trials]
        return {
            "table": self.table.label, "device": self.table.device, "kernel": self.table.kernel,
            "configurations": len(self.table.configs), "sampler": self.sampler, "warm_seeds": self.warm,
            "seeds": len(self.results), "trials": trials,
            "fraction": {str(m): round(self.fraction(m), 4) for m in marks},
            "winner": {"mean": round(fmean(self.winners), 4), "min": round(min(self.winners), 4),
                       "deviation": round(pstdev(self.winners), 4),
                       "is_optimum": sum(w == 1.0 for w in self.winners)},
            "unbegun": self.unbegun,
            "cpu_s_per_search": round(self.cpu_s / len(self.results), 3),
        }  # fmt: skip


def _at(curve: Sequence[float], trials: int) -> float:
    return curve[min(trials, len(curve)) - 1] if curve else 0.0


def replays(
    table: RecordedTable,
    *,
    seeds: int = 1,
    seed: int = 0,
    trials: int | None = TRIALS,
    budget: Budget | None = None,
    sampler: Any = "pool",
    warm: Sequence[RecordedTable] = (),
    store: Store | None = None,
    watch: Callable[[Search], None] = lambda search: None,
) -> Replays:
    """Search a table `seeds` times, with the seeds from `seed` on.

    budget: of all searches, each of which gets the same; the first is begun in any case. warm: tables of the same
    kernel elsewhere, whose ten fastest become seeds. store: keep trials there, and take those of an earlier run with
    the same options as they are."""
    first, budget = foreign(table, warm), budget or Budget()
    found: list[Result] = []
    began = time.process_time()
    for one in range(seed, seed + seeds):
        if found and budget.left() <= 0:
            break
        about = [str(sampler), one, trials, [list(key(c)) for c in first]]
        journal: Journal = StoreJournal(store, key_of(table, about)) if store is not None else MemoryJournal()
        options = Options(seed=one, sampler=sampler, resume=store is not None)
        share = budget.part(budget.left() / (seed + seeds - one), trials)
        part = BudgetShare(one - seed + 1, seeds, budget)
        search = Search(table.subject(first), [Replay(table)], share, journal, options, watch=watch, part=part)
        found.append(search.run())
        if store is not None:
            store.flush()
        if found[-1].stopped == "interrupted":
            break
    name = sampler if isinstance(sampler, str) else type(sampler).__name__
    curves = tuple(tuple(table.best_us / us if us else 0.0 for us in result.curve()) for result in found)
    late = 0 if found[-1].stopped == "interrupted" else seeds - len(found)
    return Replays(table, name, len(first), tuple(found), curves, time.process_time() - began, late)


def foreign(table: RecordedTable, warm: Sequence[RecordedTable]) -> tuple[Config, ...]:
    """The fastest of other tables that this one has, taken in turn, at most ten."""
    ranked = (other.top(5 * MOST_SEEDS) for other in warm)
    inside = (config for config in chain.from_iterable(zip_longest(*ranked)) if config and key(config) in table.places)
    return tuple({key(config): config for config in inside}.values())[:MOST_SEEDS]


def key_of(table: RecordedTable, about: Any) -> Key:
    """The key that a replay's trials are kept under: of the table's content and how it is searched."""
    rows = [[list(key(c)), o.status.value, o.us] for c, o in zip(table.configs, table.outcomes)]
    return Key("replay", digest([table.label, rows, about]), Device("replay", table.device))


def table_text(found: Sequence[Replays]) -> str:
    """For a terminal."""
    rows = [r.data() for r in found]
    marks = sorted({int(m) for r in rows for m in r["fraction"]})
    head = ("table", "sampler", "seeds", *(f"@{m}" for m in marks), "winner", "worst", "optimum")
    body = [
        (r["table"], r["sampler"] + (" warm" if r["warm_seeds"] else ""), r["seeds"],
         *(f"{f:.3f}" if (f := r["fraction"].get(str(m))) is not None else "" for m in marks),
         f"{r['winner']['mean']:.3f}", f"{r['winner']['min']:.3f}", f"{r['winner']['is_optimum']}/{r['seeds']}")
        for r in rows
    ]  # fmt: skip
    return tabulate(body, head, disable_numparse=True)
