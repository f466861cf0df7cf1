"""The runs of a program's blocks in order and the values between them: how many bytes are alive where.

The blocks of a program run in order and their backwards in reverse. A mode of a block keeps some bytes from its forward
to its backward and costs some extra time there; of the values that it reads and makes it keeps some too. A value is
made by a run, read by later ones, and has a gradient from the backward of its last reader to that of its maker. With
S the bytes that earlier runs keep, G the gradients of parameters that later runs read, the peak of a choice of modes is

    base + max over runs i of
        S + (values made before i that i or a later run reads) + forward_peak
        S + (saved by i) + (open values that a run up to i keeps) + (gradients of values made up to i) + G
          + backward_peak

A value is open while a later run reads it; after that, what is kept of it counts in S.

Source: the chain formulation of Checkmate (1910.02653) and rotor, over a graph of blocks.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from weft.passes.fusion.ran import Place, Ran

Kept = frozenset[int]
"""Numbers of values."""
PICO = 10**12


@dataclass(frozen=True, slots=True)
class RunMode:
    """One way to run a block. Bytes; `time` is the extra time of its backward, in seconds."""

    name: str
    saved: int  # kept from forward to backward, the values at the block's boundary apart
    forward_peak: int  # most live bytes of what the forward makes, values that leave included
    backward_peak: int  # most live bytes of what the backward makes, beside all that it keeps and is given
    time: float = 0.0
    keeps: frozenset[str] = frozenset()  # values at the boundary that the backward reads


@dataclass(frozen=True, slots=True)
class BlockProfile:
    """What a block costs in each mode. enters, leaves: names and bytes of the values it reads and makes, those of
    parameters and integers apart; grads: bytes of its parameters' gradients. ran: what each of its functions runs as
    torch's operators; for a target that runs them, where it was measured."""

    name: str
    modes: tuple[RunMode, ...]
    enters: tuple[tuple[str, int], ...] = ()
    leaves: tuple[tuple[str, int], ...] = ()
    grads: int = 0
    ran: Mapping[Place, tuple[Ran, ...]] = field(
        default_factory=dict[Place, tuple[Ran, ...]], compare=False, repr=False
    )

    @property
    def boundary(self) -> int:
        """Bytes that enter."""
        return sum(size for _, size in self.enters)

    def backward_held(self, mode: RunMode) -> int:
        """Most bytes alive in the backward, what it keeps and what it is given included."""
        ends = sum(size for name, size in (*self.enters, *self.leaves) if name in mode.keeps)
        return mode.saved + ends + sum(size for _, size in self.leaves) + mode.backward_peak


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a block. values: names at its boundary -> the schedule's values, those that live throughout left out.
    grads: bytes of gradients that its backward is the first to make."""

    profile: BlockProfile
    values: tuple[tuple[str, int], ...] = ()
    grads: int = 0

    def kept(self, mode: RunMode) -> Kept:
        """The values that a mode keeps."""
        return frozenset(v for name, v in self.values if name in mode.keeps)


@dataclass(frozen=True, slots=True)
class Value:
    """Bytes, and the run that makes it, the last that reads it, the last whose backward gives it a gradient (or -1)."""

    size: int
    made: int
    last: int
    born: int = -1


@dataclass(frozen=True)
class Schedule:
    """Runs of blocks in forward order, and the values between them. `base`: bytes that live throughout (parameters,
    inputs, buffers)."""

    runs: tuple[Run, ...]
    values: tuple[Value, ...] = ()
    base: int = 0

    @cached_property
    def after(self) -> tuple[int, ...]:
        """Per run, the bytes of parameters' gradients that the backwards before its own have made."""
        out = [0]
        for r in reversed(self.runs[1:]):
            out.append(out[-1] + r.grads)
        return tuple(reversed(out))

    @cached_property
    def ahead(self) -> tuple[int, ...]:
        """Per run, the bytes of values that its forward finds: made before it, and still to be read."""
        return self._over((v.size, v.made + 1, v.last) for v in self.values)

    @cached_property
    def cotangents(self) -> tuple[int, ...]:
        """Per run, the bytes of gradients of values that its backward finds."""
        return self._over((v.size, v.made, v.born - 1) for v in self.values)

    def _over(self, spans: Iterable[tuple[int, int, int]]) -> tuple[int, ...]:
        """Sums of sizes, each over the runs from its first to its last."""
        change = [0] * (len(self.runs) + 1)
        for size, first, last in spans:
            if last >= first:
                change[first] += size
                change[last + 1] -= size
        return tuple(accumulate(change[:-1]))

    def size(self, values: Iterable[int], quantum: int = 1) -> int:
        """Bytes of some values, each rounded up."""
        return sum(rounded(self.values[v].size, quantum) for v in values)

    def shut(self, kept: Kept, i: int) -> Kept:
        """Of kept values, those that nothing after run i reads: their bytes are spent for good."""
        return frozenset(v for v in kept if self.values[v].last <= i)


@dataclass(frozen=True, slots=True)
class Alive:
    """Bytes at one place of a choice: kept from earlier runs (with what is still to be read, in a forward), gradients
    that later runs have made, and what the run there makes and keeps itself."""

    kept: int
    gradients: int
    own: int

    @property
    def total(self) -> int:
        return self.kept + self.gradients + self.own


@dataclass(frozen=True, slots=True)
class Choice:
    """One mode per run, the peak in bytes and the extra time in seconds; `where`: the peak's run and direction; `alive`
    there, base apart."""

    modes: tuple[int, ...]
    peak: int
    time: float
    where: tuple[int, str]
    alive: Alive
    quantum: int = 1  # bytes that kept values were rounded up to

    def names(self, schedule: Schedule) -> tuple[str, ...]:
        """The chosen mode of each run by name."""
        return tuple(r.profile.modes[m].name for r, m in zip(schedule.runs, self.modes, strict=True))


def evaluate(schedule: Schedule, modes: Sequence[int], quantum: int = 1) -> Choice:
    """Peak and extra time of one given choice: the definition that `solve` is tested against."""
    s, spent, kept, pico = schedule, 0, Kept(), 0
    worst, where = Alive(0, 0, 0), (0, "forward")
    for i, (run, m) in enumerate(zip(s.runs, modes, strict=True)):
        mode = run.profile.modes[m]
        now = kept | run.kept(mode)
        own = mode.saved + s.size(now - kept) + mode.backward_peak
        forward = Alive(spent + s.ahead[i], 0, mode.forward_peak)
        backward = Alive(spent + s.size(kept), s.cotangents[i] + s.after[i], own)
        for alive, side in ((forward, "forward"), (backward, "backward")):
            if alive.total > worst.total:
                worst, where = alive, (i, side)
        shut = s.shut(now, i)
        spent += rounded(mode.saved, quantum) + s.size(shut, quantum)
        kept, pico = now - shut, pico + picoseconds(mode)
    return Choice(tuple(modes), s.base + worst.total, pico / PICO, where, worst, quantum)


def inference_peak(schedule: Schedule) -> int:
    """Peak bytes of the forward alone, nothing kept: base + the widest run."""
    least = [min(m.forward_peak for m in r.profile.modes) for r in schedule.runs]
    return schedule.base + max((a + n for a, n in zip(schedule.ahead, least, strict=True)), default=0)


def rounded(n: int, quantum: int) -> int:
    """Up to a multiple."""
    return -(-n // quantum) * quantum


def picoseconds(mode: RunMode) -> int:
    """The extra time of a mode, so that sums in any order agree."""
    return round(mode.time * PICO)
