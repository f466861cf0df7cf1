"""What the rows of one key come to: the best configurations per soft part. Derived, so it may be made again any time.

Which configuration is better is decided without a clock: a later round of finals before an earlier one, the winner a
round declared before the rest of it, then the lower time. A configuration is out when one row shows a wrong result,
or two rows show a crash, a time-out or the like.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from weft.cache.canonical import canonical, is_count, is_text
from weft.cache.key import Soft
from weft.cache.row import STRIKES, WRONG, Pairs, Row, RowInvalid, Source, Status, lower_median, pairs

# Plain values, since a thousand rows are counted in the time of a lookup.
_OK, _FINAL = Status.OK.value, Source.FINAL
_STRIKES, _WRONG = (frozenset(s.value for s in group) for group in (STRIKES, WRONG))
KEPT = 16
"""How many configurations per soft part are kept: enough that some are left when a space refuses the first."""


@dataclass(frozen=True)
class Best:
    """A configuration that won: its median time in microseconds, over how many trials, in which round of finals."""

    cfg: Pairs
    us: float
    trials: int = 1
    round: int = 0
    final: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """The knobs as a dictionary."""
        return dict(self.cfg)

    @property
    def order(self) -> tuple[Any, ...]:
        """Sorts the better one first."""
        return -self.round, not self.final, self.us, canonical(self.config)

    def data(self) -> dict[str, Any]:
        """As JSON data."""
        return {"cfg": self.config, "us": self.us, "trials": self.trials, "round": self.round, "final": self.final}

    @classmethod
    def parse(cls, data: Any) -> Best:
        """Of data from a file; RowInvalid when it is none."""
        try:
            us, trials, turn, final = (data[name] for name in ("us", "trials", "round", "final"))
            cfg = pairs(data["cfg"])
        except (KeyError, TypeError):
            raise RowInvalid("not a configuration that won") from None
        if type(us) is not float or not 0 < us <= 1e12 or type(final) is not bool:
            raise RowInvalid("field 'us' or 'final' is not of its type")
        if not is_count(trials) or not is_count(turn):
            raise RowInvalid("field 'trials' or 'round' is no count")
        return cls(cfg, us, trials, turn, final)


@dataclass(frozen=True)
class Summary:
    """The best of one key. tops: by the id of the soft part, best first. softs: what the ids mean, where known.
    counts: rows by status."""

    tops: Mapping[str, tuple[Best, ...]] = field(default_factory=dict[str, tuple[Best, ...]])
    softs: Mapping[str, Soft] = field(default_factory=dict[str, Soft])
    counts: Mapping[str, int] = field(default_factory=dict[str, int])

    def data(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "tops": {soft: [b.data() for b in found] for soft, found in sorted(self.tops.items())},
            "softs": {name: soft.flat() for name, soft in sorted(self.softs.items())},
            "counts": dict(sorted(self.counts.items())),
        }

    @classmethod
    def parse(cls, data: Any) -> Summary:
        """Of data from a file; RowInvalid, or KeyInvalid of a soft part, when it is none."""
        tops, softs, counts = (_object(data, name) for name in ("tops", "softs", "counts"))
        if not all(isinstance(found, list) for found in tops.values()) or not all(map(is_count, counts.values())):
            raise RowInvalid("not a summary")
        return cls(
            {soft: tuple(Best.parse(b) for b in found) for soft, found in tops.items()},
            {name: Soft.parse(soft) for name, soft in softs.items()},
            counts,
        )

    def near(self, wanted: Soft) -> list[tuple[str, tuple[Best, ...]]]:
        """The soft parts there are results under: the wanted one first, then those with most fields in common."""

        def far(name: str) -> tuple[int, int, str]:
            soft = self.softs.get(name)
            mine = wanted.flat()
            same = sum(mine[f] == v for f, v in soft.flat().items()) if soft else -1
            return -same, -len(self.tops[name]), name

        return [(name, self.tops[name]) for name in sorted(self.tops, key=far) if self.tops[name]]


def _object(data: Any, name: str) -> dict[str, Any]:
    found = data.get(name) if isinstance(data, dict) else None
    if not isinstance(found, dict) or not all(is_text(k, 64) for k in found):
        raise RowInvalid(f"field {name!r} is not an object")
    return found


@dataclass
class _Trials:
    """The rows of one configuration that count, by soft part: time, round, declared the winner."""

    cfg: Pairs
    times: dict[str, list[tuple[int, bool, float]]] = field(default_factory=dict[str, list[tuple[int, bool, float]]])
    strikes: int = 0
    wrong: bool = False


def summarise(rows: Iterable[Row], softs: Mapping[str, Soft] | None = None) -> Summary:
    """The summary of all rows of a key, in whatever order they come."""
    counts: dict[str, int] = {}
    trials: dict[str, _Trials] = {}
    for row in rows:
        status = row.status.value
        counts[status] = counts.get(status, 0) + 1
        # By its spelling, since 1, 1.0 and True are equal to Python.
        spelled = repr(row.cfg)
        seen = trials.get(spelled)
        if seen is None:
            seen = trials[spelled] = _Trials(row.cfg)
        if status == _OK:
            us = row.us
            if us is not None:
                seen.times.setdefault(row.soft, []).append((row.round, row.src is _FINAL, us))
        else:
            seen.strikes += status in _STRIKES
            seen.wrong |= status in _WRONG
    tops: dict[str, list[Best]] = {}
    for seen in trials.values():
        if seen.wrong or seen.strikes >= 2:
            continue
        for soft, times in seen.times.items():
            tops.setdefault(soft, []).append(_best(seen.cfg, times))
    kept = {soft: tuple(_sorted(found)[:KEPT]) for soft, found in tops.items()}
    return Summary(kept, dict(softs or {}), counts)


def _sorted(found: list[Best]) -> list[Best]:
    """Best first. Only those that may be kept are compared by their spelling, which costs most."""
    found.sort(key=_coarse)
    last = _coarse(found[min(KEPT, len(found)) - 1])
    return sorted((best for best in found if _coarse(best) <= last), key=_order)


def _coarse(best: Best) -> tuple[int, bool, float]:
    return -best.round, not best.final, best.us


def _order(best: Best) -> tuple[Any, ...]:
    return best.order


def _best(cfg: Pairs, times: list[tuple[int, bool, float]]) -> Best:
    """Of the trials of a configuration those of its latest round count, which were run side by side with the others."""
    if len(times) == 1:
        turn, final, us = times[0]
        return Best(cfg, us, 1, turn, final)
    last = max(turn for turn, _, _ in times)
    counted = [(final, us) for turn, final, us in times if turn == last]
    return Best(cfg, lower_median([us for _, us in counted]), len(counted), last, any(final for final, _ in counted))
