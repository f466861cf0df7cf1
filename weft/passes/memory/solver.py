"""Which recompute mode each run of a block takes: the least extra time whose predicted peak fits a byte budget.

What is alive at a run depends on the modes of runs up to it alone. A state of the dynamic programming is the set of
open values that are kept so far; in each, pairs (S, time) are Pareto-pruned, which is exact. In a chain of blocks one
value is open between two, and where every reader keeps a value, as all cross attentions keep what the encoder gives,
its fate is known from the first on. Sums of many unlike blocks make too many pairs; their bytes are then rounded up to
a quantum that depends on the program alone, never on the budget, so a plan is still never over its budget and the
predicted peak still never rises when the budget falls.

Source: the chain formulation of Checkmate (1910.02653) and rotor, with per-block modes instead of per-tensor ones, over
a graph of blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from weft.errors import InfeasibleError
from weft.passes.schedule import BlockProfile, Choice, Kept, RunMode, Schedule, evaluate, picoseconds, rounded

Ints = NDArray[np.int64]
FRONT = 16384  # the most (bytes, time) pairs held between two runs before bytes are rounded up


def solve(schedule: Schedule, budget: int | None = None) -> Choice:
    """The least extra time whose peak is at most `budget` bytes, and among those the least peak.

    Raises InfeasibleError with the smallest budget that has a plan."""
    work, kept = _reduced(schedule)
    moves = _quantized(work)
    smallest = _smallest(moves)
    if budget is not None and budget < smallest:
        message = (
            f"no plan fits in {budget:,} bytes; the smallest budget that has one is {smallest:,}: --memory {smallest}B"
        )
        raise InfeasibleError(message, smallest)
    found = _fastest(moves, inf if budget is None else budget)
    assert found is not None
    best = _lowest(moves, found, smallest)
    return replace(best, modes=tuple(k[m] for k, m in zip(kept, best.modes, strict=True)))


def smallest_budget(schedule: Schedule) -> int:
    """The smallest byte budget that `solve` accepts."""
    return _smallest(_quantized(_reduced(schedule)[0]))


def _reduced(schedule: Schedule) -> tuple[Schedule, list[list[int]]]:
    """The schedule without modes that another mode of the same block beats or equals in everything, and what is left of
    each run's."""
    left: dict[BlockProfile, list[int]] = {}
    less: dict[BlockProfile, BlockProfile] = {}
    for p in (r.profile for r in schedule.runs):
        if p not in left:
            left[p] = [i for i, m in enumerate(p.modes) if not any(_beats(c, j, m, i) for j, c in enumerate(p.modes))]
            less[p] = replace(p, modes=tuple(p.modes[i] for i in left[p]))
    runs = tuple(replace(r, profile=less[r.profile]) for r in schedule.runs)
    return replace(schedule, runs=runs), [left[r.profile] for r in schedule.runs]


def _beats(a: RunMode, i: int, b: RunMode, j: int) -> bool:
    """Is a mode at least as good as another in everything, and better or before it in its list?"""

    def cost(m: RunMode) -> tuple[int, ...]:
        return m.saved, m.forward_peak, m.backward_peak, picoseconds(m)

    no_worse = a.keeps <= b.keeps and all(x <= y for x, y in zip(cost(a), cost(b)))
    return no_worse and ((cost(a), a.keeps) != (cost(b), b.keeps) or i < j)


@dataclass(frozen=True, slots=True)
class _Move:
    """A mode of a run that starts with a set of values kept: the most alive beside S, what it adds to S, what it leaves
    open, its extra time."""

    mode: int
    peak: int
    spends: int
    left: Kept
    pico: int


class _Moves:
    """Every move of a schedule's runs, bytes that are kept rounded up to a quantum; each is worked out once."""

    def __init__(self, schedule: Schedule, quantum: int) -> None:
        self.schedule, self.quantum = schedule, quantum
        self.known: dict[tuple[int, Kept], list[_Move]] = {}

    def __call__(self, i: int, kept: Kept) -> list[_Move]:
        """Of run i, from these open values kept."""
        if (i, kept) not in self.known:
            modes = self.schedule.runs[i].profile.modes
            self.known[i, kept] = [self.move(i, kept, k, mode) for k, mode in enumerate(modes)]
        return self.known[i, kept]

    def move(self, i: int, kept: Kept, k: int, mode: RunMode) -> _Move:
        s = self.schedule
        now = kept | s.runs[i].kept(mode)
        shut = s.shut(now, i)
        backward = mode.saved + s.size(now) + s.cotangents[i] + s.after[i] + mode.backward_peak
        spends = rounded(mode.saved, self.quantum) + s.size(shut, self.quantum)
        return _Move(k, max(s.ahead[i] + mode.forward_peak, backward), spends, now - shut, picoseconds(mode))


def _feasible(moves: _Moves, budget: int) -> bool:
    """Whether any choice fits. Fewer bytes are never worse, so one state for each set of open values is enough."""
    room, states = budget - moves.schedule.base, {Kept(): 0}
    for i in range(len(moves.schedule.runs)):
        nxt: dict[Kept, int] = {}
        for kept, spent in states.items():
            for move in moves(i, kept):
                if spent + move.peak <= room:
                    more = spent + move.spends
                    nxt[move.left] = min(more, nxt.get(move.left, more))
        states = nxt
    return bool(states)


def _smallest(moves: _Moves) -> int:
    s = moves.schedule
    top = evaluate(s, [0] * len(s.runs), moves.quantum).peak
    return _first(lambda b: _feasible(moves, b), s.base, top)


def _first(good: Callable[[int], bool], low: int, high: int) -> int:
    """The least n in [low, high] with good(n), where good is monotone and good(high) holds."""
    while low < high:
        mid = (low + high) // 2
        low, high = (low, mid) if good(mid) else (mid + 1, high)
    return low


@dataclass(frozen=True, slots=True)
class _Front:
    """Pareto pairs with ascending `spent` and descending `pico`, of one set of open values kept; `mode` and `back` say
    how each was reached, from a pair of which of the sets in `sources` (`of`)."""

    spent: Ints
    pico: Ints
    mode: Ints
    back: Ints
    of: Ints
    sources: tuple[Kept, ...]


_Fronts = dict[Kept, _Front]
_Part = tuple[Kept, Ints, Ints, Ints, Ints]


def _step(moves: _Moves, i: int, fronts: _Fronts, room: float) -> _Fronts:
    parts: dict[Kept, list[_Part]] = {}
    for kept, front in fronts.items():
        for move in moves(i, kept):
            ok = np.flatnonzero(front.spent + move.peak <= room)
            if len(ok):
                part = kept, front.spent[ok] + move.spends, front.pico[ok] + move.pico, np.full(len(ok), move.mode), ok
                parts.setdefault(move.left, []).append(part)
    return {left: _merged(found) for left, found in parts.items()}


def _merged(parts: list[_Part]) -> _Front:
    """The pairs with strictly less time than every one that spends no more."""
    kept, *arrays = zip(*parts)
    spent, pico, mode, back = (np.concatenate(x) for x in arrays)
    sources = tuple(dict.fromkeys(kept))
    of = np.concatenate([np.full(len(p[1]), sources.index(p[0])) for p in parts])
    order = np.lexsort((pico, spent))
    least = np.minimum.accumulate(pico[order])
    picked = order[np.concatenate([[True], pico[order][1:] < least[:-1]])]
    return _Front(spent[picked], pico[picked], mode[picked], back[picked], of[picked], sources)


def _fronts(moves: _Moves, room: float, limit: float = inf) -> list[_Fronts] | None:
    zero = np.zeros(1, np.int64)
    out: list[_Fronts] = [{Kept(): _Front(zero, zero, zero, zero, zero, (Kept(),))}]
    for i in range(len(moves.schedule.runs)):
        out.append(_step(moves, i, out[-1], room))
        if not 0 < sum(len(f.spent) for f in out[-1].values()) <= limit:
            return None
    return out


def _quantized(schedule: Schedule) -> _Moves:
    """Exact where the fronts stay small; else with the least 2^k · smallest peak / 2^14 for which they do."""
    moves = _Moves(schedule, 1)
    while _fronts(moves, inf, FRONT) is None:
        moves = _Moves(schedule, max(1, _smallest(moves) >> 14) if moves.quantum == 1 else 2 * moves.quantum)
    return moves


def _fastest(moves: _Moves, budget: float) -> Choice | None:
    fronts = _fronts(moves, budget - moves.schedule.base)
    if fronts is None:
        return None
    end, modes = fronts[-1], list[int]()
    kept = min(end, key=lambda kept: int(end[kept].pico[-1]))
    at = len(end[kept].pico) - 1
    for level in reversed(fronts[1:]):
        front = level[kept]
        modes.append(int(front.mode[at]))
        kept, at = front.sources[int(front.of[at])], int(front.back[at])
    return evaluate(moves.schedule, modes[::-1], moves.quantum)


def _lowest(moves: _Moves, found: Choice, low: int) -> Choice:
    """Of all choices as fast as `found`, one with the least peak: bisect the budget that still allows its time."""
    best, probe = found, found.peak - 1
    while low < best.peak:
        other = _fastest(moves, probe)
        if other is not None and other.time == found.time:
            best = other
        else:
            low = probe + 1
        probe = (low + best.peak) // 2
    return best
