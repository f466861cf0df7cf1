"""The walk down the measured rungs of the ladder: from the key itself to its neighbours, in every source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import nsmallest
from itertools import chain
from math import log2
from typing import Any, Protocol

from weft.cache.answer import Rung
from weft.cache.index import Index
from weft.cache.key import Key, Soft, release
from weft.cache.space import Space, judge
from weft.cache.summary import Best, Summary

_BUCKET = frozenset({"bucket"})
_TOOLS = frozenset({"triton", "ptxas"})
_DEVICE = frozenset({"gpu", "sms", "shared", "partition"})
_FIELDS = {
    Rung.BUCKET: (_BUCKET, _BUCKET),
    Rung.OLDER: (_BUCKET | _TOOLS, _TOOLS),
    Rung.SIBLING: (_BUCKET | _TOOLS | _DEVICE, _DEVICE),
}
"""In which fields a key of a rung may differ, and in one of which it must."""
_LOOKED_AT = 8
"""So many candidates of a rung are read before the next rung is tried."""


class ResultSource(Protocol):
    """Where results come from: the store, a pack."""

    @property
    def name(self) -> str:
        """What people know it by."""
        ...

    def index(self) -> Index:
        """All its keys side by side."""
        ...

    def key(self, name: str) -> Key | None:
        """The key of an id."""
        ...

    def summary(self, key: Key) -> Summary:
        """The best of a key; empty where it has none."""
        ...

    def watched(self, key: Key, asked: Key | None) -> tuple[str, ...]:
        """The paths that change when there is something new: for the key asked, for one that answered instead of it,
        or, with `asked` None, for a key without an answer of its own."""
        ...

    @property
    def version(self) -> int:
        """Changes when this process wrote to it."""
        ...


@dataclass(frozen=True)
class Option:
    """Something that could answer: a source's results for one key under one soft part."""

    rung: Rung
    rank: tuple[Any, ...]
    source: ResultSource
    key: Key
    soft: Soft | None
    tops: tuple[Best, ...]


class LadderWalk:
    """One walk down the measured rungs."""

    def __init__(self, sources: Sequence[ResultSource], key: Key, soft: Soft, space: Space) -> None:
        self.sources, self.key, self.soft = sources, key, soft
        self.accept = judge(space)
        self.refused = 0
        self.hit = False
        self._bucket = dict(key.bucket)
        self._indexes: list[tuple[ResultSource, Index, dict[frozenset[str], list[str]]]] | None = None

    def run(self) -> tuple[Option | None, Best | None]:
        """The first option on the ladder with a configuration that the space accepts."""
        own: list[Option] = []
        for place, source in enumerate(self.sources):
            found = self._options(source, self.key, Rung.EXACT, (0.0, place))
            own += found
            best = self._accepted(found[0]) if found else None
            if best is not None and found[0].rung is Rung.EXACT:
                self.hit = True
                return found[0], best
        self.hit = self._first(own) is not None
        buckets = self._on(Rung.BUCKET)
        found = self._first([*own, *buckets])
        farther = chain(self._levels(Rung.OLDER), self._levels(Rung.SIBLING)) if found is None else ()
        for options in farther:
            found = self._first(options)
            if found is not None:
                break
        return found or (None, None)

    def seeds(self, most: int) -> list[tuple[Option, Best]]:
        """Different configurations that the space accepts, from the key itself, then its neighbours rung by rung, then
        other keys of the skeleton on the architecture: where a search may start, none of them an answer."""
        found: dict[str, tuple[Option, Best]] = {}
        for options in self._all_options():
            for option in sorted(options, key=lambda o: (o.rung.step, o.rank)):
                for best in option.tops:
                    if len(found) < most and repr(best.cfg) not in found and self.accept(best.config):
                        found[repr(best.cfg)] = option, best
            if len(found) >= most:
                break
        return list(found.values())

    def _all_options(self) -> Iterator[list[Option]]:
        yield [o for at, s in enumerate(self.sources) for o in self._options(s, self.key, Rung.EXACT, (0.0, at))]
        yield from map(self._on, (Rung.BUCKET, Rung.OLDER, Rung.SIBLING))
        others = [
            (len(fields), name, source)
            for source, _, groups in self._all()
            for fields, names in groups.items()
            if fields and not fields & {"skeleton", "arch"}
            for name in names
        ]
        keys = [
            (rank, source, source.key(name)) for rank, name, source in nsmallest(_LOOKED_AT, others, key=_first_two)
        ]
        yield [o for rank, source, key in keys if key for o in self._options(source, key, Rung.SIBLING, (rank,))]

    def _first(self, options: list[Option]) -> tuple[Option, Best] | None:
        for option in sorted(options, key=lambda o: (o.rung.step, o.rank)):
            best = self._accepted(option)
            if best is not None:
                return option, best
        return None

    def _accepted(self, option: Option) -> Best | None:
        for best in option.tops:
            if self.accept(best.config):
                return best
        self.refused = max(self.refused, len(option.tops))
        return None

    def _options(self, source: ResultSource, key: Key, hard: Rung, rank: tuple[Any, ...]) -> list[Option]:
        found = source.summary(key)
        out: list[Option] = []
        for turn, (name, tops) in enumerate(found.near(self.soft)):
            rung = hard if name == self.soft.id or hard.step > Rung.STALE.step else Rung.STALE
            out.append(Option(rung, (*rank, turn), source, key, found.softs.get(name), tops))
        return out

    def _on(self, rung: Rung) -> list[Option]:
        """What the nearest keys of a rung hold."""
        return [option for options in self._levels(rung) for option in options]

    def _levels(self, rung: Rung) -> Iterator[list[Option]]:
        """The same, and no more of it than is asked for: first what comes before all else whatever its values are."""
        levels: dict[tuple[Any, ...], list[tuple[int, ResultSource, Index, frozenset[str], list[str]]]] = {}
        allowed, needed = _FIELDS[rung]
        for place, (source, index, groups) in enumerate(self._all()):
            for fields, names in groups.items():
                if fields <= allowed and fields & needed:
                    levels.setdefault(_level(rung, fields), []).append((place, source, index, fields, names))
        left = _LOOKED_AT
        for level in sorted(levels):
            ranked = [
                ((*rank, place), name, source)
                for place, source, index, fields, names in levels[level]
                for name in names
                if (rank := self._rank(rung, index, name, fields)) is not None
            ]
            nearest = nsmallest(left, ranked, key=_first_two)
            keys = [(rank, source, source.key(name)) for rank, name, source in nearest]
            yield [o for rank, source, key in keys if key for o in self._options(source, key, rung, (*level, *rank))]
            left -= len(nearest)
            if not left:
                return

    def _rank(self, rung: Rung, index: Index, name: str, fields: frozenset[str]) -> tuple[Any, ...] | None:
        """How near a key of this rung and level is; None when it cannot be compared."""
        try:
            apart = _apart(self._bucket, index.value(name, "bucket")) if "bucket" in fields else 0.0
            if rung is Rung.BUCKET or apart is None:
                return None if apart is None else (apart,)
            tools = _tools(self.key.triton, index.value(name, "triton")) if "triton" in fields else (False, ())
            if rung is Rung.OLDER:
                return *tools, apart
            sms = abs(log2((1 + self.key.device.sms) / (1 + index.value(name, "sms"))))
            return sms, *tools, apart
        except (TypeError, ValueError, IndexError, ZeroDivisionError, OverflowError):
            return None  # an index that was tampered with

    def _all(self) -> list[tuple[ResultSource, Index, dict[frozenset[str], list[str]]]]:
        if self._indexes is None:
            indexes = [(source, source.index()) for source in self.sources]
            self._indexes = [(source, index, index.groups(self.key)) for source, index in indexes]
        return self._indexes

    def nearest(self) -> Key | None:
        """The key with the fewest differing fields; one of the same kernel, or at least skeleton, if there is one."""
        ranked = [
            (("skeleton" in fields, "kernel" in fields, len(fields), min(names)), source)
            for source, _, groups in self._all()
            for fields, names in groups.items()
            if fields
        ]
        for (*_, name), source in sorted(ranked, key=lambda r: r[0]):
            key = source.key(name)
            if key is not None:
                return key
        return None


def _level(rung: Rung, fields: frozenset[str]) -> tuple[Any, ...]:
    """What of the fields in which a key differs decides before their values do."""
    if rung is Rung.BUCKET:
        return ()
    own = ("bucket" in fields,)
    return own if rung is Rung.OLDER else (*own, "triton" in fields, len(fields & _DEVICE))


def _first_two(ranked: tuple[Any, str, ResultSource]) -> tuple[Any, str]:
    return ranked[:2]


@lru_cache(maxsize=256)
def _tools(wanted: str, found: str) -> tuple[bool, tuple[int, ...]]:
    """Sorts older versions first, among them the newest."""
    its = release(found)
    return its > release(wanted), tuple(-n for n in its)


def _apart(wanted: Mapping[str, int], found: Any) -> float | None:
    """How far two shapes are, in doublings; None when they are not of the same dims."""
    if not isinstance(found, dict) or wanted.keys() != found.keys():
        return None
    return sum(abs(log2((1 + size) / (1 + found[dim]))) for dim, size in wanted.items())
