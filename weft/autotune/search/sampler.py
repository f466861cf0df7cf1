"""Optuna samplers that propose only what is in the pool, and nothing twice.

    study = optuna.create_study(sampler=PoolSampler(pool, seed=0))
    trial = study.ask(study.sampler.space); study.tell(trial, microseconds)

`PoolSampler` is the tuner's own, `InOrder` and `Uniform` walk through the pool, `Within` keeps any other Optuna sampler
inside it. All honour what is enqueued, and read everything else from the study, so they may be used without the tuner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna.samplers as stock
from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from weft.autotune import names
from weft.autotune.search.explorer import Explorer
from weft.autotune.space.encoding import encode
from weft.autotune.space.seeds import MOST_SEEDS
from weft.autotune.types import Config, Pool, Value
from weft.errors import UsageError, WeftError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study

    from weft.autotune.search.explorer import Explorer

_TRIES = 32  # proposals of a stock sampler that are looked at before the nearest free configuration is taken


class Exhausted(WeftError):
    """Every configuration of the pool that the trial could have was proposed."""


class History:
    """A study's trials as rows of a pool, read on from where the last look ended."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.names = tuple(pool.configs[0]) if pool.configs else ()
        self.row_of = {self.key(config): row for row, config in enumerate(pool.configs)}
        self.observed: list[tuple[int, float | None]] = []
        self.pending: dict[int, int] = {}
        self.skipped: set[int] = set()
        """Rows that are not to be tried, of trials that were pruned before they had a value."""
        self.taken: set[int] = set()
        self._read: set[int] = set()

    def key(self, params: Mapping[str, Value]) -> tuple[Value, ...] | None:
        """What a configuration is known by; None of an incomplete one."""
        try:
            return tuple(params[name] for name in self.names)
        except KeyError:
            return None

    def row(self, params: Mapping[str, Value]) -> int | None:
        """The row of a configuration; None of one that is not in the pool."""
        key = self.key(params)
        return self.row_of.get(key) if key is not None else None

    def refresh(self, study: Study, but: int) -> None:
        """Look at the study again. but: the number of the trial that is being asked for."""
        self.pending = {}
        for trial in study.get_trials(deepcopy=False):
            if trial.number == but or trial.number in self._read:
                continue
            row = self.row(trial.params or trial.system_attrs.get("fixed_params", {}))
            if trial.state.is_finished():
                self._read.add(trial.number)
                if row is not None:
                    self._finished(row, trial)
            elif row is not None:
                self.pending[trial.number] = row
        self.taken = {*(row for row, _ in self.observed), *self.pending.values(), *self.skipped}

    def _finished(self, row: int, trial: FrozenTrial) -> None:
        if trial.state is TrialState.PRUNED and trial.value is None:
            self.skipped.add(row)
        else:
            self.observed.append((row, trial.value))


class FromPool(BaseSampler):
    """Asks `choose` for a row and gives its values."""

    def __init__(self, pool: Pool | Sequence[Config]) -> None:
        self.pool = pool if isinstance(pool, Pool) else Pool(tuple(pool))
        if not self.pool.configs:
            raise UsageError("there is no configuration to choose from")
        self.history = History(self.pool)
        self.space: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(_ordered([config[name] for config in self.pool.configs]))
            for name in self.history.names
        }
        self.origins: dict[int, str] = {}
        """Who proposed it, by the number of the trial."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        fixed = trial.system_attrs.get("fixed_params", {})
        if all(name in fixed for name in self.space):
            return {}
        self.history.refresh(study, trial.number)
        if len(self.history.taken) >= len(self.pool):
            raise Exhausted("every configuration of the pool was proposed")
        if fixed:
            row, origin = self._completed(fixed), "enqueued"
        else:
            row, origin = self.choose(study, trial)
        self.origins[trial.number] = origin
        return dict(self.pool.configs[row])

    def _completed(self, fixed: Mapping[str, Value]) -> int:
        for row, config in enumerate(self.pool.configs):
            if row not in self.history.taken and all(config.get(n, ()) == v for n, v in fixed.items()):
                return row
        raise Exhausted(f"no configuration is left with {', '.join(f'{n}={v}' for n, v in fixed.items())}")

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise UsageError(f"{param_name} is no knob of the pool, or is asked for with other values than `space` has")

    def choose(self, study: Study, trial: FrozenTrial) -> tuple[int, str]:
        """A row that is not taken, and who proposes it."""
        raise NotImplementedError

    def likely(self) -> list[Config]:
        """What will probably be asked next, likeliest first; for those who compile ahead."""
        return []

    @property
    def left(self) -> np.ndarray[Any, np.dtype[np.intp]]:
        """The rows that are not taken."""
        free = np.ones(len(self.pool), dtype=bool)
        free[list(self.history.taken)] = False
        return np.flatnonzero(free)


class PoolSampler(FromPool):
    """The tuner's own sampler, see `weft.autotune.search.explorer`.

    pool: a `Pool`, or its configurations. seed: same seed and same times, same proposals. seeds: configurations that
    won elsewhere, best first; those not in the pool, and more than ten, are ignored. options: of `Explorer`.
    """

    def __init__(
        self, pool: Pool | Sequence[Config], seed: int = 0, seeds: Sequence[Config] = (), **options: Any
    ) -> None:
        super().__init__(pool)
        self.seed, self.options = seed, options
        self.seeds = known_rows(self.history, seeds)[:MOST_SEEDS]
        self._explorer: Explorer | None = None

    def choose(self, study: Study, trial: FrozenTrial) -> tuple[int, str]:
        if self._explorer is None:
            self._explorer = Explorer(encode(self.pool), self.seed, self.seeds, **self.options)
        known = self.history
        return self._explorer.next(trial.number, known.observed, list(known.pending.values()), known.skipped)

    def likely(self) -> list[Config]:
        rows = self._explorer.likely(self.history.taken) if self._explorer is not None else []
        return [self.pool.configs[row] for row in rows]


class InOrder(FromPool):
    """The whole pool, in the given order of rows, then in its own: what is asked when all of it can be timed."""

    def __init__(self, pool: Pool | Sequence[Config], first: Sequence[int] = ()) -> None:
        super().__init__(pool)
        self.order = [*dict.fromkeys([*first, *range(len(self.pool))])]

    def choose(self, study: Study, trial: FrozenTrial) -> tuple[int, str]:
        return next(row for row in self.order if row not in self.history.taken), "all"

    def likely(self) -> list[Config]:
        rows = islice((row for row in self.order if row not in self.history.taken), 1, 5)
        return [self.pool.configs[row] for row in rows]


class Uniform(FromPool):
    """Any configuration that was not proposed yet."""

    def __init__(self, pool: Pool | Sequence[Config], seed: int = 0) -> None:
        super().__init__(pool)
        self.seed = seed

    def choose(self, study: Study, trial: FrozenTrial) -> tuple[int, str]:
        return int(np.random.default_rng([self.seed, trial.number]).choice(self.left)), "uniform"


class Within(FromPool):
    """Another Optuna sampler, asked until it proposes what is in the pool and new; when it does not, the nearest free
    configuration to what it proposed last."""

    def __init__(self, pool: Pool | Sequence[Config], inner: BaseSampler) -> None:
        super().__init__(pool)
        self.inner = inner
        self._codes = np.array([self._code(config) for config in self.pool.configs])

    def choose(self, study: Study, trial: FrozenTrial) -> tuple[int, str]:
        params: dict[str, Any] = {}
        trial = study.get_trials(deepcopy=False)[trial.number]  # with what the sampler noted on it before
        for _ in range(_TRIES):
            params = self._proposed(study, trial)
            row = self.history.row(params)
            if row is not None and row not in self.history.taken:
                return row, type(self.inner).__name__
        left = self.left
        apart = (self._codes[left] != self._code(params)).sum(1)
        return int(left[np.argmin(apart)]), f"near {type(self.inner).__name__}"

    def _proposed(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        space = self.inner.infer_relative_search_space(study, trial)
        params = self.inner.sample_relative(study, trial, space) if space else {}
        for name, values in self.space.items():
            if name not in params:
                one = values.single()  # a constant knob is no question
                params[name] = (
                    self.pool.configs[0][name] if one else self.inner.sample_independent(study, trial, name, values)
                )
        return params

    def _code(self, params: Mapping[str, Any]) -> list[float]:
        return [values.to_internal_repr(params[name]) for name, values in self.space.items()]

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.inner.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        with suppress(RuntimeError):  # a sampler at its end calls `study.stop`, which ask and tell do not have
            self.inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        self.inner.reseed_rng()


def _ordered(values: Sequence[Value]) -> list[Value]:
    """Each value once: numbers by size, then words, None first."""

    def place(value: Value) -> tuple[int, float, str]:
        if value is None:
            return 0, 0.0, ""
        return (2, 0.0, value) if isinstance(value, str) else (1, float(value), "")

    return sorted(dict.fromkeys(values), key=place)


def known_rows(history: History, configs: Sequence[Config]) -> list[int]:
    """The rows of those that are in the pool, each once."""
    rows = [history.row(config) for config in configs]
    return [*dict.fromkeys(row for row in rows if row is not None)]


def make(name: str, pool: Pool, seed: int, seeds: Sequence[Config] = ()) -> FromPool:
    """A sampler by its name; UsageError for another name."""
    names.sampler(name)
    if name == "pool":
        return PoolSampler(pool, seed, seeds)
    if name == "random":
        return Uniform(pool, seed)
    if name == "all":
        return InOrder(pool, known_rows(History(pool), seeds))
    inner: dict[str, Any] = {
        "tpe": stock.TPESampler, "nsga2": stock.NSGAIISampler, "cmaes": stock.CmaEsSampler, "gp": stock.GPSampler,
    }  # fmt: skip
    return Within(pool, inner[name](seed=seed))
