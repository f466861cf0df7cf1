"""Which configuration of a pool to try next: an opening, then expected improvement under a Gaussian process.

    opening   what won elsewhere (at most ten), in turn with a design that spreads over the pool
    model     the largest expected improvement of the logarithm of the time; now and then any configuration at all

Nothing is proposed twice, and nothing outside the pool. What is proposed depends on the seed, the number of the trial
and what was observed, on nothing else: a search that is resumed goes on as if it had not stopped. Why foreign winners
cannot do harm is said in `weft.autotune.space.seeds`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from weft.autotune.search.surrogate import Kernel, Posterior, Vector, expected_improvement
from weft.autotune.space.encoding import Matrix
from weft.autotune.space.seeds import Observed, Opening

DESIGN = 10
"""Trials before the model is asked."""
UNIFORM = 0.05
"""Share of the later trials that go to any configuration at all."""
_CEILING = 0.75  # times above this quantile are all as bad as one another: the model is for the good end
_MOST_SCORED = 16_000
_NEAR = 200  # neighbours of each of the best that are scored in a pool that is larger
_MOST_SEEN = 400  # observations the model is made of; of more, the best and the latest
_LIKELY = 4
_LOOKED_AT, _FROM = 60, 1500  # of so many rows, out of so many, the one farthest from the design joins it

Rows = NDArray[np.intp]


class Explorer:
    """Proposals for one pool. x: [pool, columns] from `encoding.encode`; seeds: rows that won elsewhere, best first."""

    def __init__(
        self, x: Matrix, seed: int, seeds: Sequence[int] = (), *, design: int = DESIGN, uniform: float = UNIFORM
    ) -> None:
        self.x, self.seed, self.uniform = x, seed, uniform
        self.opening = Opening(tuple(seeds), tuple(spread(x, 3 * design, np.random.default_rng(seed))), design)
        self._model: _Model | None = None

    def next(
        self, number: int, observed: Observed, pending: Sequence[int] = (), skipped: Collection[int] = ()
    ) -> tuple[int, str]:
        """The row to try in trial `number`, and who proposed it; pending: rows being tried now; skipped: rows not to be
        tried. StopIteration when no row is left."""
        taken = {*(row for row, _ in observed), *pending, *skipped}
        if len(taken) >= len(self.x):
            raise StopIteration
        planned = self.opening.next(observed, taken)
        if planned is not None:
            return planned
        unseen: set[int] = set()
        if self.opening.hostile(observed):  # go on as if there had been no seeds
            unseen = set(self.opening.seeds) & {row for row, _ in observed}
            observed = [o for o in observed if o[0] not in unseen]
            number -= len(unseen)
        rng = np.random.default_rng([self.seed, number])
        times = {us for _, us in observed if us is not None}
        left = np.ones(len(self.x), dtype=bool)
        left[list(taken)] = False
        if len(times) > 2 and rng.random() >= self.uniform:
            if self._model is None or not self._model.extend(observed):
                self._model = _Model(self.x, observed, rng, self._model)
            row = self._model.best(list(pending), left)
            if row >= 0:
                return row, "model"
        return _anyhow(rng, left, unseen), "uniform"

    def likely(self, taken: Collection[int]) -> list[int]:
        """Rows that will probably be proposed next: the rest of the opening, then what the model thought next best."""
        opening = [*self.opening.seeds, *self.opening.design[: self.opening.total]]
        planned = opening if self._model is None else self._model.runners_up
        return [row for row in planned if row not in taken][:_LIKELY]


def _anyhow(rng: np.random.Generator, left: NDArray[np.bool_], unseen: Collection[int]) -> int:
    """Any row that is left; the one that would be drawn were the rows `unseen` left as well, unless it is one."""
    free = left.copy()
    free[list(unseen)] = True
    rows = np.flatnonzero(free)
    while True:
        row = int(rng.choice(rows))
        if left[row]:
            return row


class _Model:
    """The posterior that is grown trial by trial until it is time to fit its kernel again."""

    def __init__(self, x: Matrix, observed: Observed, rng: np.random.Generator, before: _Model | None) -> None:
        self.x = x
        self.order = _kept(observed)
        self.used = len(observed)
        rows, y = self._seen(observed)
        self.y = y
        self.kernel = before.kernel if before else Kernel(x.shape[1])
        self.kernel.fit(x[rows], y)
        self.candidates = _candidates(x, rows, y, rng)
        room = max(5, len(rows) // 8)
        self.posterior = Posterior(self.kernel, x[self.candidates], x[rows], room + 64)
        self.due = self.used + room
        self.runners_up: list[int] = []

    def extend(self, observed: Observed) -> bool:
        """Take in what was observed since; False when it is time for a new model."""
        if len(observed) >= self.due or len(observed) < self.used:
            return False
        for place in range(self.used, len(observed)):
            self.order.append(place)
            self.posterior.add(self.x[observed[place][0]])
        self.used = len(observed)
        self.y = self._seen(observed)[1]
        return True

    def _seen(self, observed: Observed) -> tuple[Rows, Vector]:
        found = [observed[place] for place in self.order]
        return np.array([row for row, _ in found], dtype=np.intp), targets([us for _, us in found])

    def best(self, pending: list[int], left: NDArray[np.bool_]) -> int:
        """The candidate of the largest expected improvement among those left; -1 when none is. Pending rows are taken
        to come out as expected."""
        y, posterior = self.y, self.posterior
        pending = pending[: len(posterior.seen) - posterior.n]
        for row in pending:
            y = np.append(y, posterior.mean_at(y, self.x[row]))
            posterior.add(self.x[row])
        score = expected_improvement(posterior.mean(y), posterior.deviation(), float(y.min()))
        for _ in pending:
            posterior.drop()
        score[~left[self.candidates]] = -np.inf
        few = np.argpartition(-score, min(_LIKELY, len(score) - 1))[: _LIKELY + 1]
        self.runners_up = [int(self.candidates[i]) for i in few[np.argsort(-score[few], kind="stable")]]
        top = int(np.argmax(score))
        return int(self.candidates[top]) if np.isfinite(score[top]) else -1


def targets(times: Sequence[float | None]) -> Vector:
    """What the model is fitted to, mean 0 and deviation 1: logarithms, cut at a quantile; a failure is at the cut."""
    logs = np.log([us for us in times if us is not None])
    cut = float(np.quantile(logs, _CEILING))
    y = np.array([cut if us is None else min(float(np.log(us)), cut) for us in times])
    return (y - y.mean()) / (y.std() + 1e-9)


def _kept(observed: Observed) -> list[int]:
    """Which observations the model is made of, in order."""
    n = len(observed)
    if n <= _MOST_SEEN:
        return list(range(n))
    none = float("inf")
    early = range(n - _MOST_SEEN // 2)
    best = sorted(early, key=lambda i: none if (us := observed[i][1]) is None else us)[: _MOST_SEEN // 2]
    return sorted([*best, *range(n - _MOST_SEEN // 2, n)])


def _candidates(x: Matrix, rows: Rows, y: Vector, rng: np.random.Generator) -> Rows:
    """All rows; of a large pool a sample, and the neighbours of the best four."""
    if len(x) <= _MOST_SCORED:
        return np.arange(len(x))
    sample = rng.choice(len(x), _MOST_SCORED - 4 * _NEAR, replace=False)
    near = [np.argpartition(np.abs(x - x[rows[i]]).sum(1), _NEAR)[:_NEAR] for i in np.argsort(y, kind="stable")[:4]]
    return np.unique(np.concatenate([sample, *near]))


def spread(x: Matrix, count: int, rng: np.random.Generator) -> list[int]:
    """Rows that cover the pool, [count] or all: each the farthest from those before it among a few drawn by chance, so
    that corners, which are seldom good, do not fill it."""
    drawn = rng.permutation(len(x))[:_FROM]
    out = [int(drawn[0])] if len(drawn) else []
    far = ((x[drawn] - x[drawn[0]]) ** 2).sum(1) if out else np.zeros(0)
    while len(out) < min(count, len(drawn)):
        few = rng.choice(len(drawn), min(_LOOKED_AT, len(drawn)), replace=False)
        place = few[np.argmax(far[few])]
        if far[place] <= 0:  # all of them are in it, or equal to one that is
            place = next(i for i, row in enumerate(drawn) if row not in out)
        out.append(int(drawn[place]))
        far = np.minimum(far, ((x[drawn] - x[drawn[place]]) ** 2).sum(1))
        far[place] = 0.0
    return out
