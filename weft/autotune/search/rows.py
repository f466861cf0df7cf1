"""Trials as rows of the store, and back."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from weft.autotune.types import STRIKES, WRONG, Config, Outcome, Row, Source, Status
from weft.cache.key import Key, Soft
from weft.cache.store import Store

_EXTRA = ("compile_s", "shared", "regs", "stack", "error", "clock_mhz", "cubin")


class StoreJournal:
    """The rows of one key in the store."""

    def __init__(self, store: Store, key: Key, soft: Soft | None = None) -> None:
        self.store, self.key, self.soft = store, key, soft or Soft()

    def rows(self) -> Sequence[Row]:
        return [row for row in self.store.rows(self.key) if row.soft == self.soft.id]

    def append(self, row: Row) -> bool:
        return self.store.append(self.key, row, self.soft)


class MemoryJournal:
    """Rows that last as long as the process."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def rows(self) -> Sequence[Row]:
        return tuple(self._rows)

    def append(self, row: Row) -> bool:
        self._rows.append(row)
        return True


def row_of(
    config: Config, outcome: Outcome, features: dict[str, float], src: Source = Source.TUNE, round: int = 0
) -> Row:
    """The row of a trial. features: numbers, what the compiler knows of the configuration."""
    extra: dict[str, Any] = {name: outcome.extra[name] for name in _EXTRA if outcome.extra.get(name) is not None}
    return Row.of(
        config, outcome.status, reason=outcome.reason, times_us=outcome.times_us, features=features, src=src,
        round=round, t=int(time.time() * 1000) / 1000, **extra,
    )  # fmt: skip


def recorded(rows: Iterable[Row]) -> dict[str, Row]:
    """What became of every configuration that was tried, by its id; of several trials the one with the lowest text."""
    found: dict[str, Row] = {}
    for row in rows:
        if row.src is Source.TUNE and (row.times_us or row.status is not Status.OK):
            held = found.get(row.cfg_id)
            found[row.cfg_id] = row if held is None else min(row, held, key=lambda r: r.text)
    return found


def outcome_of(row: Row) -> Outcome:
    """What a row says."""
    extra = {name: getattr(row, name) for name in _EXTRA if getattr(row, name) not in (None, "")}
    return Outcome(row.status, row.times_us, row.reason, extra)


def barred(rows: Iterable[Row]) -> dict[str, str]:
    """Configurations that may not be tried again, by id, with the reason: a wrong result, or two failures."""
    strikes: Counter[str] = Counter()
    out: dict[str, str] = {}
    for row in rows:
        if row.status in WRONG:
            out[row.cfg_id] = f"{row.status.value} before"
        elif row.status in STRIKES:
            strikes[row.cfg_id] += 1
            if strikes[row.cfg_id] >= 2:
                out.setdefault(row.cfg_id, "failed twice before")
    return out
