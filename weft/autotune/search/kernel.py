"""The search for one kernel's best configuration: ask, time, keep, tell; then the finals.

    result = Search(subject, [runner], Budget(seconds=600)).run()
    result.winner, result.winner_us, result.final.confidence

A trial is kept before it is told, so a search that is killed loses the running trial at most. Proposals depend on the
seed and on what was observed alone; a search that is resumed therefore proposes the same configurations again, finds
their outcomes in the journal, runs none of them twice, and goes on where the other stopped.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.autotune.budget import ALONE, Budget, BudgetShare, Deadlines, Late
from weft.autotune.search import finals
from weft.autotune.search import study as studies
from weft.autotune.search.measure import Stopwatch
from weft.autotune.search.result import Final, Finalist, Options, Result, fastest
from weft.autotune.search.rows import MemoryJournal, barred, outcome_of, recorded, row_of
from weft.autotune.search.sampler import Exhausted, FromPool, InOrder, Within, make
from weft.autotune.types import (
    Config,
    Fidelity,
    Journal,
    Level,
    Outcome,
    Row,
    Runner,
    Source,
    Status,
    Subject,
    Trial,
    config_id,
    lower_median,
)

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial as Asked

_PATIENCE = 0.25  # seconds between two looks at what others do
_PRIOR_SEEDS = 5
_RESERVE = 0.1
"""At most this share of the seconds is kept for the finals."""


@dataclass
class Search:
    """One search. runners: one a device, all of the same kind; journal: where trials are kept; study: an Optuna study
    to use, with its sampler and what is enqueued in it; watch: called after every call of a runner, and every trial;
    ahead: is told which configurations will probably be next, to compile them; part: of what it is one, for people."""

    subject: Subject
    runners: Sequence[Runner]
    budget: Budget = field(default_factory=Budget)
    journal: Journal = field(default_factory=MemoryJournal)
    options: Options = field(default_factory=Options)
    study: Study | None = None
    watch: Callable[[Search], None] = lambda search: None
    ahead: Callable[[Sequence[Config]], None] | None = None
    part: BudgetShare = ALONE

    def __post_init__(self) -> None:
        rows = self.journal.rows()
        self.trials: list[Trial] = []
        self.refused: list[str] = []
        self.stopped, self.phase = "", "search"
        self.rows = list(rows)
        self._known = recorded(rows) if self.options.resume and not self.options.claim else {}
        if not self.options.resume:
            self.subject = _without(self.subject, barred(rows))
        self._lock = threading.RLock()
        self._running, self._launch_s = 0, 0.0
        self._deadlines = Deadlines.of(self.budget)
        self._failure: BaseException | None = None
        self._elsewhere: dict[str, Config] = {}

    @property
    def best_us(self) -> float | None:
        """The best time so far, in microseconds."""
        found = fastest(self.trials)
        return found.us if found else None

    def run(self) -> Result:
        """Search until the budget or the pool is used up, then run the finals. An interrupt ends it early, with what
        there is, and `stopped` says so."""
        final = Final()
        if not self.subject.pool.configs:
            self.stopped = "pool"
        else:
            self._prepare()
            try:
                self._all_work()
                final = self._finals()
            except KeyboardInterrupt:
                self.stopped = "interrupted"
        best = fastest(self.trials)
        if final.winner is None and best is not None:
            final = Final(best.config, best.us, 0.0, "fastest trial; there were no finals")
        trials = tuple(sorted(self.trials, key=lambda t: t.number))
        return Result(self.subject, trials, final, self.stopped, self.budget.used, tuple(self.refused), self.study)

    # What to ask

    def _prepare(self) -> None:
        self.sampler = self._sampler()
        if self.study is None:
            self.study = studies.new_study(self.sampler)
        self.study.sampler = self.sampler
        first = [self.subject.incumbent] if self.subject.incumbent else []
        if isinstance(self.sampler, Within):
            first += self.subject.seeds[:10]
        for config in first:
            if self.sampler.history.row(config) is not None:
                self.study.enqueue_trial(dict(config), skip_if_exists=True)

    def _sampler(self) -> FromPool:
        subject, given = self.subject, self.options.sampler
        if self.study is not None and isinstance(self.study.sampler, FromPool):
            return self.study.sampler
        pool, seeds = subject.pool, list(subject.seeds)
        if subject.prior is not None:
            order = np.argsort(np.asarray(subject.prior, dtype=float), kind="stable")
            seeds += [pool.configs[row] for row in order[:_PRIOR_SEEDS]]
            pool = replace(pool, features={**pool.features, "prior": subject.prior})
        if not isinstance(given, str):
            return given if isinstance(given, FromPool) else Within(pool, given)
        trials = self.budget.trials
        whole = given == "pool" and trials is not None and len(pool) <= trials
        return make("all" if whole else given, pool, self.options.seed, seeds)

    def _ask(self) -> tuple[Asked, Config, str] | None:
        """The next trial of the study that may be run. None at the end, and then `stopped` says why; or while all that
        is left is with others, whose results, or ends, are waited for."""
        assert self.study is not None
        self._hear()
        while not self._over():
            self._take_over()
            trial = self.study.ask()
            fixed = studies.fixed(self.study, trial.number)
            why = studies.refusal(fixed, self.sampler) if fixed else ""
            row = None
            try:
                if not why:
                    space: dict[str, Any] = self.sampler.space
                    row = self.sampler.history.row({n: trial.suggest_categorical(n, space[n].choices) for n in space})
                    why = "not in the pool" if row is None else ""
            except Exhausted as error:
                why = str(error)
                if not fixed and not self._elsewhere:
                    self.stopped = "pool"
            config = self.sampler.pool.configs[row] if row is not None else {}
            if fixed and not why and any(t.config == config for t in self.trials):
                why = "tried already"
            if not why and self._mine(config):
                return trial, config, "enqueued" if fixed else self.sampler.origins.get(trial.number, "")
            if fixed and why:
                self.refused.append(f"{fixed}: {why}")
            studies.skip(self.study, trial.number)
            if why and self._elsewhere:
                return None
        return None

    def _mine(self, config: Config) -> bool:
        """Whether nobody else is at it; else it is remembered, should its holder die."""
        if self.options.claim is None or self.options.claim(config):
            self._elsewhere.pop(config_id(config), None)
            return True
        self._elsewhere[config_id(config)] = config
        return False

    def _take_over(self) -> None:
        """Ask for what others held, and held without a result, once more."""
        assert self.study is not None
        for config in list(self._elsewhere.values()):
            if self._mine(config):
                self.study.enqueue_trial(dict(config))

    def _over(self) -> bool:
        if self.stopped:
            return True
        reserve = 0.0
        if self.budget.seconds is not None:
            likely = 1.5 * self._launch_s * finals.ROUNDS * finals.FINALISTS
            reserve = min(_RESERVE * self.budget.seconds, likely)
        best, roof, enough = self.best_us, self.subject.roofline_us, self.options.enough
        if self.budget.over(len(self.trials) + self._running, reserve):
            self.stopped = "budget" if self.budget.left() <= reserve else "trials"
        elif best and roof and enough and roof / best >= enough and not isinstance(self.sampler, InOrder):
            self.stopped = "roofline"
        return bool(self.stopped)

    # The trials

    def _all_work(self) -> None:
        if len(self.runners) == 1:
            self._work(self.runners[0])
            return
        threads = [threading.Thread(target=self._guarded, args=(r,), daemon=True) for r in self.runners]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)  # a wait without end would not see an interrupt
        if self._failure is not None:
            raise self._failure

    def _guarded(self, runner: Runner) -> None:
        try:
            self._work(runner)
        except BaseException as error:
            self._failure, self.stopped = error, self.stopped or "failure"

    def _work(self, runner: Runner) -> None:
        stopwatch = self._stopwatch(runner)
        while True:
            with self._lock:
                asked, best_us = self._ask(), self.best_us
                self._running += asked is not None
            if asked is None:
                if self.stopped:
                    return
                time.sleep(_PATIENCE)
                continue
            trial, config, origin = asked
            if self.ahead is not None:
                with self._lock:
                    likely = self.sampler.likely()
                self.ahead(likely)
            known = self._known.get(config_id(config))
            try:
                outcome = outcome_of(known) if known else stopwatch.measure(config, best_us)
            except Late:
                with self._lock:
                    self._running -= 1
                    self._drop(trial.number)
                return
            with self._lock:
                self._running -= 1
                self._tell(Trial(trial.number, config, outcome, origin, known is not None))

    def _tell(self, trial: Trial) -> None:
        assert self.study is not None
        if not trial.recorded:
            self.keep(row_of(trial.config, trial.outcome, self.features(trial.config)))
        self.trials.append(trial)
        if self.options.release is not None:
            self.options.release(trial.config)
        studies.tell(self.study, trial.number, trial.outcome)
        self.watch(self)

    def _drop(self, number: int) -> None:
        """Of a trial that the budget of all kernels ended nothing is known, and no other begins. A claim on it goes
        with the journal."""
        assert self.study is not None
        self.stopped = "budget"
        studies.skip(self.study, number)

    def keep(self, row: Row) -> None:
        """Have the journal keep a row."""
        self.rows.append(row)
        self.journal.append(row)

    def _stopwatch(self, runner: Runner) -> Stopwatch:
        def after(config: Config, fidelity: Fidelity, outcome: Outcome) -> None:
            if fidelity.level is Level.SAMPLES and outcome.status is Status.OK:
                self._launch_s = max(self._launch_s, outcome.seconds / fidelity.samples)

        return Stopwatch(runner, self.budget.clock, self._deadlines, after)

    def _hear(self) -> None:
        """Take in what other processes that share the journal found."""
        if self.options.claim is None or self.study is None:
            return
        own = {config_id(t.config) for t in self.trials}
        for name, row in recorded(self.journal.rows()).items():
            place = self.sampler.history.row(row.config)
            if name not in own and place is not None:
                config, outcome = self.sampler.pool.configs[place], outcome_of(row)
                number = studies.add(self.study, self.sampler, config, outcome)
                self.trials.append(Trial(number, config, outcome, "peer", recorded=True))
            self._elsewhere.pop(name, None)

    # The finals

    def _finals(self) -> Final:
        chosen = finals.field(self.trials)
        if not chosen or self.budget.left() <= 0:
            return Final()
        rng = np.random.default_rng([self.options.seed, len(self.trials)])
        if len(chosen) == 1:
            why = f"nothing else within {finals.WITHIN - 1:.0%}"
            return Final(chosen[0].config, chosen[0].us, finals.alone(self.trials, rng), why)
        self.phase = "finals"
        round_ = 1 + max((row.round for row in self.rows), default=0)
        times = finals.race(len(chosen), self._launcher(chosen, round_), rng, lambda: self.budget.left() <= 0)
        configs = [trial.config for trial in chosen]
        incumbent = configs.index(self.subject.incumbent) if self.subject.incumbent in configs else None
        verdict = finals.decide(times, incumbent, [self._resources(t) for t in chosen], rng)
        if verdict is None:
            return Final()
        for place, trial in enumerate(chosen):
            if np.isfinite(times[:, place]).all():
                self._keep_final(trial, times[:, place], round_, place == verdict.winner)
        runs = [tuple(float(t) for t in column if np.isfinite(t)) for column in times.T]
        found = tuple(Finalist(*each) for each in zip(configs, runs, verdict.behind))
        us = lower_median(runs[verdict.winner])
        return Final(configs[verdict.winner], us, verdict.confidence, verdict.why, found)

    def _launcher(self, chosen: Sequence[Trial], round_: int) -> Callable[[int], float | None]:
        stopwatch, best_us = self._stopwatch(self.runners[0]), chosen[0].us

        def launch(place: int) -> float | None:
            config = chosen[place].config
            outcome = stopwatch.call(config, Level.FINAL, 1, None, best_us)
            self.watch(self)
            if outcome.status is Status.OK:
                return outcome.us
            self.keep(row_of(config, outcome, self.features(config), Source.RACE, round_))
            return None

        return launch

    def _keep_final(self, trial: Trial, times: Any, round_: int, won: bool) -> None:
        outcome = replace(trial.outcome, status=Status.OK, times_us=tuple(float(t) for t in times), reason="")
        source = Source.FINAL if won else Source.RACE
        self.keep(row_of(trial.config, outcome, self.features(trial.config), source, round_))

    def _resources(self, trial: Trial) -> tuple[float, ...]:
        known = {**self.features(trial.config), **trial.outcome.extra}
        return tuple(float(known.get(name) or 0.0) for name in ("shared", "regs"))

    def features(self, config: Config) -> dict[str, float]:
        """What the compiler knows of a configuration, by name."""
        row = self.sampler.history.row(config)
        if row is None:
            return {}
        found = {name: float(values[row]) for name, values in self.subject.pool.features.items()}
        return {name: value for name, value in found.items() if np.isfinite(value)}


def _without(subject: Subject, gone: Mapping[str, str]) -> Subject:
    """The subject without the configurations of these ids, whose reasons join the rejected."""
    pool = subject.pool
    reasons = [gone.get(config_id(config), "") for config in pool.configs] if gone else []
    if not any(reasons):
        return subject
    kept = [row for row, reason in enumerate(reasons) if not reason]
    rejected = Counter(dict(pool.rejected)) + Counter(reason for reason in reasons if reason)
    made = replace(
        pool,
        configs=tuple(pool.configs[row] for row in kept),
        features={name: [values[row] for row in kept] for name, values in pool.features.items()},
        rejected=dict(rejected),
    )
    prior = None if subject.prior is None else [subject.prior[row] for row in kept]
    return replace(subject, pool=made, prior=prior)
