"""The lookup: which configuration to run, how it is known, and which command would do better.

    exact -> bucket -> stale -> older Triton -> sibling GPU -> analytic -> default

Sources are asked in their order on every rung: the user's own store first, then packs. A configuration is taken only
if the given space accepts it, so the worst that a file can do is to be slow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weft.cache import files
from weft.cache.answer import Answer, Rung
from weft.cache.key import Difference, Key, Soft
from weft.cache.search import LadderWalk, ResultSource
from weft.cache.space import Space, judge

Analytic = Callable[[], Mapping[str, Any] | None] | Mapping[str, Any] | None
_State = tuple[tuple[str, files.Signature], ...]


@dataclass(frozen=True)
class _Kept:
    """An answer and the state of the files that it came from."""

    answer: Answer
    space: Space
    default: Mapping[str, Any]
    versions: tuple[int, ...]
    state: _State

    def suits(self, space: Space, default: Mapping[str, Any]) -> bool:
        """Whether a search with this space and default would come to the same."""
        if self.space is space:
            return self.default == default
        answer = self.answer
        return answer.us is not None and not answer.refused and judge(space)(answer.config)


def _state(sources: Iterable[ResultSource], key: Key, asked: Key | None) -> _State:
    return tuple((path, files.signature(path)) for source in sources for path in source.watched(key, asked))


class Ladder:
    """Lookups over sources, in their order. An answer is kept while the files it came from stay as they are."""

    def __init__(self, sources: Sequence[ResultSource]) -> None:
        self.sources = tuple(sources)
        self._kept: dict[tuple[str, str], _Kept] = {}

    def lookup(
        self,
        key: Key,
        soft: Soft,
        space: Space,
        default: Mapping[str, Any],
        *,
        analytic: Analytic = None,
        command: str = "",
    ) -> Answer:
        """The configuration to run for a key. Never raises for what a file holds.

        space: judges every configuration that comes from a file. default, analytic: used, unjudged, when nothing was
        measured. command: what would do better; default "weft tune SPEC --target <arch>"."""
        kept = self._kept.get((key.id, soft.id))
        if kept is not None and kept.suits(space, default) and self._fresh(kept):
            return kept.answer
        search = LadderWalk(self.sources, key, soft, space)
        versions = tuple(source.version for source in self.sources)
        state, missing = _state(self.sources, key, key), _state(self.sources, key, None)
        option, best = search.run()
        command = command or f"weft tune SPEC --target {key.device.arch}"
        if option is not None and best is not None:
            differs = (*key.differs(option.key), *_soft_differs(soft, option.soft))
            done = option.rung is Rung.EXACT
            answer = Answer(
                best.config, option.rung, best.us, option.source.name, option.key, differs, search.hit, search.refused,
                "" if done else command,
            )  # fmt: skip
        else:
            answer = self._unmeasured(search, key, analytic, default, command)
        if answer.rung is not Rung.EXACT:
            state = missing + (_state((option.source,), option.key, key) if option else ())
        self._kept[key.id, soft.id] = _Kept(answer, space, dict(default), versions, state)
        return answer

    def seeds(self, key: Key, soft: Soft, space: Space, most: int = 10) -> list[dict[str, Any]]:
        """Different configurations to begin a search with, the most related first; the space accepts all of them.

        They come from this key, other shapes, other Tritons, sibling GPUs and other kernels of the skeleton."""
        return [best.config for _, best in LadderWalk(self.sources, key, soft, space).seeds(most)]

    def _fresh(self, kept: _Kept) -> bool:
        # Loops, since this is the hot path: some microseconds, most of them in two calls to the system.
        for source, version in zip(self.sources, kept.versions):
            if source.version != version:
                return False
        for path, state in kept.state:  # noqa: SIM110
            if files.signature(path) != state:
                return False
        return True

    def _unmeasured(
        self, search: LadderWalk, key: Key, analytic: Analytic, default: Mapping[str, Any], command: str
    ) -> Answer:
        found = analytic() if callable(analytic) else analytic
        nearest = search.nearest()
        return Answer(
            dict(default if found is None else found),
            Rung.DEFAULT if found is None else Rung.ANALYTIC,
            key=nearest,
            differs=key.differs(nearest) if nearest else (),
            hit=False,
            refused=search.refused,
            command=command,
        )


def _soft_differs(wanted: Soft, found: Soft | None) -> tuple[Difference, ...]:
    if found is None:
        return (("driver", wanted.driver, "unknown"),)
    mine, theirs = wanted.flat(), found.flat()
    return tuple((name, mine[name], theirs[name]) for name in mine if mine[name] != theirs[name])
