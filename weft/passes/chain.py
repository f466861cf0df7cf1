"""Which recompute mode each block of a chain takes: the least extra time whose predicted peak fits a byte budget.

The blocks of a model run in order and their backwards in reverse. A mode of a block keeps some bytes from its forward
to its backward and costs some extra time there. With S the bytes that the blocks before i keep, B the bytes of the
value that enters block i and G the parameter gradients of the blocks after it, the peak of a choice of modes is

    base + max over i of  max(S + B + forward_peak,  S + [B if only the block before keeps it] + G + backward_peak)

Multiple-choice dynamic programming over the pairs (S, time), Pareto-pruned, is exact. Sums of many unlike blocks make
too many pairs; their bytes are then rounded up to a quantum that depends on the chain alone, never on the budget, so a
plan is still never over its budget and the predicted peak still never rises when the budget falls.

Source: the chain formulation of Checkmate (1910.02653) and rotor, with per-block modes instead of per-tensor ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from weft.errors import InfeasibleError
from weft.passes.ran import Place, Ran

Ints = NDArray[np.int64]
FRONT = 16384  # the most (bytes, time) pairs held between two blocks before bytes are rounded up
PICO = 10**12  # extra times are compared as whole picoseconds: sums in any order agree


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to run a block. Bytes; `time` is the extra time of its backward, in seconds."""

    name: str
    saved: int  # kept from forward to backward, the values at the block's two boundaries apart
    forward_peak: int  # most live bytes during the forward, the entering value apart, the leaving one included
    backward_peak: int  # most live bytes during the backward, whatever it keeps, reads and makes included
    time: float = 0.0
    keeps_input: bool = True  # the entering value is read by the backward
    keeps_output: bool = False  # the leaving value is read by the backward


@dataclass(frozen=True, slots=True)
class BlockProfile:
    """What a block costs in each mode, in bytes: `boundary` of the value that enters, `grads` of its gradients.

    ran: what each of its functions runs as torch's operators; for a target that runs them, where it was measured."""

    name: str
    modes: tuple[Mode, ...]
    boundary: int = 0
    grads: int = 0
    ran: Mapping[Place, tuple[Ran, ...]] = field(
        default_factory=dict[Place, tuple[Ran, ...]], compare=False, repr=False
    )


@dataclass(frozen=True, slots=True)
class Chain:
    """Blocks in forward order. `base`: bytes that live throughout (parameters, inputs, buffers)."""

    blocks: tuple[BlockProfile, ...]
    base: int = 0

    def after(self) -> tuple[int, ...]:
        """Per block, the gradient bytes that the backwards before its own have made."""
        out = [0]
        for b in reversed(self.blocks[1:]):
            out.append(out[-1] + b.grads)
        return tuple(reversed(out))


@dataclass(frozen=True, slots=True)
class Choice:
    """One mode per block, the peak in bytes and the extra time in seconds; `where`: the peak's block and direction."""

    modes: tuple[int, ...]
    peak: int
    time: float
    where: tuple[int, str]
    quantum: int = 1  # bytes that kept values were rounded up to

    def names(self, chain: Chain) -> tuple[str, ...]:
        """The chosen mode of each block by name."""
        return tuple(b.modes[m].name for b, m in zip(chain.blocks, self.modes, strict=True))


def evaluate(chain: Chain, modes: Sequence[int], quantum: int = 1) -> Choice:
    """Peak and extra time of one given choice: the definition that `solve` is tested against."""
    kept, flag, peak, where, pico = 0, False, 0, (0, "forward"), 0
    for i, (b, m, after) in enumerate(zip(chain.blocks, modes, chain.after(), strict=True)):
        mode = b.modes[m]
        lone = b.boundary if flag and not mode.keeps_input else 0
        for live, side in (
            (kept + b.boundary + mode.forward_peak, "forward"),
            (kept + lone + after + mode.backward_peak, "backward"),
        ):
            if live > peak:
                peak, where = live, (i, side)
        kept += _up(mode.saved, quantum) + (_up(b.boundary, quantum) if flag or mode.keeps_input else 0)
        flag, pico = mode.keeps_output, pico + _pico(mode)
    return Choice(tuple(modes), chain.base + peak, pico / PICO, where, quantum)


def solve(chain: Chain, budget: int | None = None) -> Choice:
    """The least extra time whose peak is at most `budget` bytes, and among those the least peak.

    Raises InfeasibleError with the smallest budget that has a plan."""
    work, kept = _reduced(chain)
    q = _quantum(work)
    smallest = _smallest(work, q)
    if budget is not None and budget < smallest:
        message = (
            f"no plan fits in {budget:,} bytes; the smallest budget that has one is {smallest:,}: --memory {smallest}B"
        )
        raise InfeasibleError(message, smallest)
    found = _fastest(work, inf if budget is None else budget, q)
    assert found is not None
    best = _lowest(work, found, smallest, q)
    return replace(best, modes=tuple(k[m] for k, m in zip(kept, best.modes, strict=True)))


def smallest_budget(chain: Chain) -> int:
    """The smallest byte budget that `solve` accepts."""
    work, _ = _reduced(chain)
    return _smallest(work, _quantum(work))


def inference_peak(chain: Chain) -> int:
    """Peak bytes of the forward alone, nothing kept: base + the widest block."""
    return chain.base + max((b.boundary + min(m.forward_peak for m in b.modes) for b in chain.blocks), default=0)


def _up(n: int, quantum: int) -> int:
    return -(-n // quantum) * quantum


def _pico(mode: Mode) -> int:
    return round(mode.time * PICO)


def _reduced(chain: Chain) -> tuple[Chain, list[list[int]]]:
    """The chain without modes that another mode of the same block beats or equals in everything, and what is left."""

    def cost(m: Mode) -> tuple[int, ...]:
        return m.saved, m.forward_peak, m.backward_peak, _pico(m), m.keeps_input, m.keeps_output

    seen: dict[BlockProfile, list[int]] = {}
    for b in chain.blocks:
        if b not in seen:
            costs = [cost(m) for m in b.modes]
            beaten = {
                i
                for i, a in enumerate(costs)
                for j, c in enumerate(costs)
                if i != j and all(x <= y for x, y in zip(c, a)) and (c != a or j < i)
            }
            seen[b] = [i for i in range(len(costs)) if i not in beaten]
    blocks = tuple(replace(b, modes=tuple(b.modes[i] for i in seen[b])) for b in chain.blocks)
    return replace(chain, blocks=blocks), [seen[b] for b in chain.blocks]


def _feasible(chain: Chain, budget: int, q: int) -> bool:
    """Whether any choice fits. Fewer kept bytes are never worse, so one state per flag is enough."""
    room, states = budget - chain.base, {False: 0}
    for b, after in zip(chain.blocks, chain.after(), strict=True):
        nxt: dict[bool, int] = {}
        for flag, s in states.items():
            for m in b.modes:
                lone = b.boundary if flag and not m.keeps_input else 0
                if s + max(b.boundary + m.forward_peak, lone + after + m.backward_peak) <= room:
                    more = s + _up(m.saved, q) + (_up(b.boundary, q) if flag or m.keeps_input else 0)
                    nxt[m.keeps_output] = min(more, nxt.get(m.keeps_output, more))
        states = nxt
    return bool(states)


def _smallest(chain: Chain, q: int) -> int:
    top = evaluate(chain, [0] * len(chain.blocks), q).peak
    return _first(lambda b: _feasible(chain, b, q), chain.base, top)


def _first(good: Callable[[int], bool], low: int, high: int) -> int:
    """The least n in [low, high] with good(n), where good is monotone and good(high) holds."""
    while low < high:
        mid = (low + high) // 2
        low, high = (low, mid) if good(mid) else (mid + 1, high)
    return low


@dataclass(frozen=True, slots=True)
class _Front:
    """Pareto pairs with ascending `kept` and descending `pico`; `back` and `mode` say how each was reached."""

    kept: Ints
    pico: Ints
    back: Ints
    mode: Ints
    flag: Ints


def _step(front: _Front, b: BlockProfile, after: int, room: float, q: int) -> _Front:
    index, n = np.arange(len(front.kept)), len(front.kept)
    parts: list[tuple[Ints, Ints, Ints, Ints, Ints]] = []
    for i, m in enumerate(b.modes):
        flag = front.flag.astype(bool)
        lone = np.where(flag & (not m.keeps_input), b.boundary, 0)
        ok = front.kept + np.maximum(b.boundary + m.forward_peak, lone + after + m.backward_peak) <= room
        held = np.where(flag | m.keeps_input, _up(b.boundary, q), 0)
        kept, pico = front.kept + held + _up(m.saved, q), front.pico + _pico(m)
        which, keeps = np.full(n, i), np.full(n, int(m.keeps_output))
        parts.append((kept[ok], pico[ok], index[ok], which[ok], keeps[ok]))
    kept, pico, back, mode, flag = (np.concatenate(c) for c in zip(*parts, strict=True))
    picked = np.concatenate([_pareto(kept, pico, np.flatnonzero(flag == f)) for f in (0, 1)])
    return _Front(kept[picked], pico[picked], back[picked], mode[picked], flag[picked])


def _pareto(kept: Ints, pico: Ints, among: Ints) -> Ints:
    """Indices with strictly less time than every one that keeps no more."""
    order = among[np.lexsort((pico[among], kept[among]))]
    if not len(order):
        return order
    least = np.minimum.accumulate(pico[order])
    first = np.concatenate([[True], pico[order][1:] < least[:-1]])
    return order[first]


def _fronts(chain: Chain, room: float, q: int, limit: float = inf) -> list[_Front] | None:
    zero = np.zeros(1, np.int64)
    out = [_Front(zero, zero, zero, zero, zero)]
    for b, after in zip(chain.blocks, chain.after(), strict=True):
        out.append(_step(out[-1], b, after, room, q))
        if not 0 < len(out[-1].kept) <= limit:
            return None
    return out


def _quantum(chain: Chain) -> int:
    """1 where the exact fronts stay small; else the least 2^k · smallest peak / 2^14 for which they do."""
    q = 1
    while _fronts(chain, inf, q, FRONT) is None:
        q = max(1, _smallest(chain, 1) >> 14) if q == 1 else 2 * q
    return q


def _fastest(chain: Chain, budget: float, q: int) -> Choice | None:
    fronts = _fronts(chain, budget - chain.base, q)
    if fronts is None:
        return None
    at, modes = int(np.argmin(fronts[-1].pico)), list[int]()
    for f in reversed(fronts[1:]):
        modes.append(int(f.mode[at]))
        at = int(f.back[at])
    return evaluate(chain, modes[::-1], q)


def _lowest(chain: Chain, found: Choice, low: int, q: int) -> Choice:
    """Of all choices as fast as `found`, one with the least peak: bisect the budget that still allows its time."""
    best, probe = found, found.peak - 1
    while low < best.peak:
        other = _fastest(chain, probe, q)
        if other is not None and other.time == found.time:
            best = other
        else:
            low = probe + 1
        probe = (low + best.peak) // 2
    return best
