"""Does a model that should be causal look ahead? Change what comes from a position on, compare what comes before it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Leak:
    """The worst change of an output before a cut when inputs from the cut on were changed.

    cut: of that change; position: where the output changed; worst: largest absolute change; scale: largest absolute
    output. Round-off of long convolutions is of the order of 1e-6 of the scale; a real leak is not.
    """

    worst: float
    scale: float
    cut: int
    position: int
    cuts: int
    tolerance: float

    @property
    def causal(self) -> bool:
        return self.worst <= self.tolerance * max(self.scale, 1e-30)

    def __str__(self) -> str:
        if self.causal:
            return f"no leak over {self.cuts} cuts (largest change {self.worst:.1e})"
        return f"inputs from position {self.cut} on change the output at {self.position} by {self.worst:.1e}"


def leaks(
    fn: Callable[[Any], Any],
    n: int,
    make_input: Callable[[int], Any],
    cuts: Sequence[int] | None = None,
    tolerance: float = 1e-5,
    dim: int = 1,
) -> Leak:
    """Run the perturbation sweep.

    fn: input -> output (the first one, if it gives several), both with n positions along `dim`: torch tensors or numpy
    arrays. make_input(i): the i-th random input. cuts: positions to cut at; default: all of a short sequence, else 33
    spread evenly and those around powers of two. A model in training mode must draw the same dropout every time.
    """
    base, other = make_input(0), make_input(1)
    expected = _first(fn(base))
    scale = float(abs(expected).max())
    worst, where = 0.0, (0, 0)
    chosen = list(cuts) if cuts is not None else default_cuts(n)
    for cut in chosen:
        mixed = other.clone() if hasattr(other, "clone") else other.copy()
        before = (slice(None),) * dim + (slice(0, cut),)
        mixed[before] = base[before]
        change = abs(_first(fn(mixed))[before] - expected[before])
        largest = float(change.max())
        if not largest <= worst:  # so that nan counts as a leak
            worst = largest
            where = cut, next(i for i in range(cut) if not float(change[(slice(None),) * dim + (i,)].max()) < largest)
    return Leak(worst, scale, *where, len(chosen), tolerance)


def default_cuts(n: int) -> list[int]:
    """Every position of a short sequence; else a spread, and both sides of the powers of two, where blocks end."""
    if n <= 65:
        return list(range(1, n))
    spread = {n * i // 33 for i in range(1, 34)} - {n}
    edges = {(1 << i) + d for i in range(1, n.bit_length()) for d in (-1, 0, 1)}
    return sorted(c for c in spread | edges | {n - 1} if 0 < c < n)


def _first(out: Any) -> Any:
    return out[0] if isinstance(out, tuple | list) else out
