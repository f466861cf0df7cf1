"""A GPU that is made up: a landscape whose optimum is known, clocks that drift, samples that jitter, and faults.

    made = Synthetic(landscape(seed=1), noise=Noise(drift=0.015, jitter=0.02, spikes=0.01), faults=0.2, clock=clock)
    Search(made.subject(), [made], Budget(60, clock=clock)).run()

Time passes on a clock of its own, so an hour of tuning takes a second, and is the same hour each time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from weft.autotune.search.replay import key
from weft.autotune.types import Config, Fidelity, Level, Outcome, Pool, Status, Subject

FAULTS = ("hang", "segfault", "abort", "oom", "wrong", "nan", "slow")
"""What a configuration may be planted with. hang: takes its deadline; slow: ten times as long as it should."""
_SAID = {
    "segfault": (Status.CRASH, "worker died: SIGSEGV"), "abort": (Status.CRASH, "worker died: SIGABRT"),
    "oom": (Status.OOM, "out of memory"), "wrong": (Status.WRONG, "differs from the reference by 3.0"),
    "nan": (Status.NON_FINITE, "NaN where the reference has none"),
}  # fmt: skip
_DRIFT_SECONDS = 40.0


@dataclass
class FakeClock:
    """Seconds that pass when told to."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@dataclass(frozen=True)
class Noise:
    """drift: amplitude of a slow wave, jitter: deviation of a sample, both as fractions; spikes: share of samples that
    take twice as long."""

    drift: float = 0.0
    jitter: float = 0.0
    spikes: float = 0.0


@dataclass(frozen=True)
class Costs:
    """Seconds of the clock that a first call and a launch take besides the kernel's own time."""

    compile: float = 0.5
    launch: float = 1e-4


@dataclass(frozen=True)
class Landscape:
    """True times in microseconds by configuration."""

    configs: tuple[Config, ...]
    times_us: tuple[float, ...]

    @property
    def best(self) -> int:
        """Place of the optimum."""
        return min(range(len(self.configs)), key=lambda i: self.times_us[i])


def landscape(seed: int, knobs: Mapping[str, Sequence[int]] | None = None) -> Landscape:
    """A tiled matrix product as an analytic model sees it: bytes moved against arithmetic, waves of blocks with a tail,
    registers that spill; its coefficients are drawn by the seed."""
    given = knobs or {"BM": (16, 32, 64, 128, 256), "BN": (16, 32, 64, 128, 256), "BK": (16, 32, 64, 128),
                      "warps": (1, 2, 4, 8), "stages": (1, 2, 3, 4, 5)}  # fmt: skip
    rng = np.random.default_rng(seed)
    m, n, k = (int(v) for v in rng.choice([1024, 1536, 2048, 4096, 5120], 3))
    rates = [float(r) for r in rng.uniform(0.5, 2.0, 6)]
    configs: tuple[Config, ...] = tuple(dict(zip(given, values)) for values in product(*given.values()))
    return Landscape(configs, tuple(_model(config, m, n, k, rates) for config in configs))


def _model(config: Config, m: int, n: int, k: int, rates: Sequence[float]) -> float:
    bm, bn, bk, warps, stages = (int(config.get(name, 1) or 1) for name in ("BM", "BN", "BK", "warps", "stages"))
    blocks = math.ceil(m / bm) * math.ceil(n / bn)
    registers = bm * bn / (32 * warps)
    shared = (bm + bn) * bk * 2 * stages
    fit = max(1.0, min(8.0, 232_448 // max(shared, 1), 65_536 // max(registers * 32 * warps, 1)))
    waves = math.ceil(blocks / (132 * fit))
    loads = (bm + bn) * k * 2 * rates[0] / 3e3
    math_ = bm * bn * k * 2 * rates[1] / (4e5 * min(1.0, warps * bm * bn / 2**16 + 0.25))
    hidden = 1 / (1 + rates[2] * min(stages - 1, k // bk))
    spill = 1 + rates[3] * max(0.0, registers / 200 - 1)
    trips = 1 + rates[4] * 16 / bk
    return float(rates[5] * waves * (max(loads, math_) + hidden * min(loads, math_)) * spill * trips + 3)


@dataclass
class Synthetic:
    """A runner on a landscape.

    faults: share of the configurations that are planted with one of `FAULTS`. planted: those that are, with which.
    """

    land: Landscape
    noise: Noise = field(default_factory=Noise)
    faults: float = 0.0
    clock: FakeClock = field(default_factory=FakeClock)
    costs: Costs = field(default_factory=Costs)
    seed: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng([self.seed, 1])
        self._true = {key(config): us for config, us in zip(self.land.configs, self.land.times_us)}
        self.planted = {key(c): fault for c in self.land.configs if (fault := self._fault(c))}

    def _fault(self, config: Config) -> str:
        """By the configuration and the seed, so that each has the same fault every time."""
        word = hashlib.sha256(f"{self.seed} {key(config)}".encode()).digest()
        chance, which = int.from_bytes(word[:6]) / 2**48, word[6] % len(FAULTS)
        return FAULTS[which] if chance < self.faults else ""

    def subject(self, **more: object) -> Subject:
        """The landscape as a kernel to tune."""
        return Subject("synthetic", Pool(self.land.configs), **more)  # type: ignore[arg-type]

    def best_us(self) -> float:
        """The true time of the best configuration without a fault, in microseconds."""
        return min(us for config, us in self._true.items() if config not in self.planted)

    def true_us(self, config: Config) -> float:
        """The true time of a configuration, in microseconds."""
        return self._true[key(config)]

    def time(self, config: Config, fidelity: Fidelity) -> Outcome:
        fault = self.planted.get(key(config), "")
        if fault == "hang":
            self.clock.pass_(fidelity.seconds)
            return Outcome(Status.TIMEOUT, reason=f"no answer within {fidelity.seconds:.3g} s")
        if fidelity.level is Level.LAUNCH:
            self.clock.pass_(self.costs.compile)
        if fault in _SAID:
            status, reason = _SAID[fault]
            return Outcome(status, reason=reason)
        us = self._true[key(config)] * (10 if fault == "slow" else 1)
        return Outcome(Status.OK, tuple(self._sample(us) for _ in range(fidelity.samples)))

    def _sample(self, us: float) -> float:
        noise = self.noise
        us *= 1 + noise.drift * math.sin(2 * math.pi * self.clock() / _DRIFT_SECONDS)
        us *= math.exp(noise.jitter * self._rng.standard_normal())
        us *= 2.0 if self._rng.random() < noise.spikes else 1.0
        self.clock.pass_(self.costs.launch + us * 1e-6)
        return us

    def close(self) -> None:
        """There is nothing to let go of."""
