"""The search: the best of a pool, within a budget, whatever goes wrong, with a clock that is made up."""

import math
from collections import Counter
from dataclasses import replace

import optuna
import pytest

from tests.autotune.spy import Given, Spy
from tests.autotune.synthetic import FAULTS, Costs, FakeClock, Noise, Synthetic, landscape
from tests.campaign import count
from weft.autotune.budget import Budget, Deadlines, seconds_of
from weft.autotune.search.kernel import Search
from weft.autotune.search.measure import Stopwatch
from weft.autotune.search.result import Options
from weft.autotune.search.rows import MemoryJournal
from weft.autotune.search.sampler import PoolSampler
from weft.autotune.search.study import new_study
from weft.autotune.types import FAULTS as FAILED
from weft.autotune.types import Level, Outcome, Pool, Source, Status, Subject, config_id
from weft.errors import UsageError

SMALL = {"BM": (32, 64, 128), "BN": (32, 64), "BK": (32, 64), "warps": (4, 8), "stages": (2, 3)}
NOISE = Noise(drift=0.015, jitter=0.02, spikes=0.01)


def synthetic(seed, knobs=None, **more):
    return Synthetic(landscape(seed, knobs), seed=seed, **more)


def search(runner, budget, **more):
    spy = Spy(runner, runner.land.configs)
    subject = more.pop("subject", runner.subject())
    made = Search(subject, [spy], budget, options=more.pop("options", Options()), **more)
    return made.run(), spy


# The best, and how it is reached


@pytest.mark.parametrize("seed", range(count(sample=8, soak=100)))
def test_a_pool_within_the_budget_gives_the_true_best(seed):
    made = synthetic(seed, SMALL)
    result, spy = search(made, Budget(trials=len(made.land.configs), clock=made.clock), options=Options(seed=seed))
    assert made.true_us(result.winner) == made.best_us()
    assert result.stopped in ("trials", "pool")
    assert spy.repeated == []


def test_a_pool_within_the_seconds_gives_the_true_best_too():
    made = synthetic(1, SMALL)
    result, _ = search(made, Budget(3600, clock=made.clock))
    assert made.true_us(result.winner) == made.best_us()
    assert result.stopped == "pool"
    assert len(result.trials) == len(made.land.configs)


@pytest.mark.parametrize("sampler", ["pool", "random", "all", "tpe", optuna.samplers.RandomSampler(seed=0)])
def test_any_sampler_searches_within_the_pool(sampler):
    made = synthetic(2)
    result, spy = search(made, Budget(trials=30, clock=made.clock), options=Options(sampler=sampler))
    assert len(result.trials) == 30
    assert spy.repeated == []
    assert result.winner in made.land.configs


def test_the_same_seed_gives_the_same_trials():
    def trials(seed):
        made = synthetic(5, faults=0.2)
        found, _ = search(made, Budget(trials=50, clock=made.clock), options=Options(seed=seed))
        return [(t.config, t.outcome.status, t.us) for t in found.trials]

    assert trials(1) == trials(1) != trials(2)


def test_slow_configurations_are_given_up_after_one_launch_or_five():
    levels = Counter()
    times = {1: 100.0, 2: 500.0, 3: 200.0, 4: 110.0}
    runner = Given(lambda c: times[c["x"]])

    class Seen(Spy):
        def time(self, config, fidelity):
            levels[config["x"], fidelity.level] += 1
            return super().time(config, fidelity)

    pool = Pool(tuple({"x": x} for x in times))
    result = Search(Subject("k", pool), [Seen(runner)], Budget(trials=4)).run()
    assert (levels[2, Level.SAMPLES], levels[3, Level.SAMPLES], levels[3, Level.FULL], levels[4, Level.FULL]) == (
        0,
        1,
        0,
        1,
    )
    assert [t.outcome.status for t in result.trials] == [Status.OK, Status.SLOW, Status.SLOW, Status.OK]
    assert "above 4.0 times the best" in result.trials[1].outcome.reason


def test_the_incumbent_is_timed_first_and_keeps_ties():
    times = {1: 100.0, 2: 99.5, 3: 140.0}
    pool = Pool(tuple({"x": x} for x in times))
    runner = Given(lambda c: times[c["x"]])
    result = Search(Subject("k", pool, incumbent={"x": 1}), [runner], Budget(trials=3)).run()
    assert result.trials[0].config == {"x": 1}
    assert result.winner == {"x": 1}
    assert "incumbent" in result.final.why
    free = Search(Subject("k", pool), [runner], Budget(trials=3)).run()
    assert free.winner == {"x": 2}
    assert free.final.confidence == 1.0


def test_what_cannot_be_told_apart_goes_to_the_smaller_resources():
    pool = Pool(({"x": 1}, {"x": 2}), features={"shared": [200.0, 100.0]})
    assert Search(Subject("k", pool), [Given(lambda c: 50.0)], Budget(trials=2)).run().winner == {"x": 2}


def test_it_stops_near_the_roofline():
    made = synthetic(3)
    subject = made.subject(roofline_us=made.best_us() * 0.8)
    result, _ = search(made, Budget(trials=500, clock=made.clock), subject=subject, options=Options(enough=0.5))
    assert result.stopped == "roofline"
    assert len(result.trials) < 500


def test_an_empty_pool_has_no_winner():
    result = Search(Subject("k", Pool((), rejected={"too large": 9})), [Given(lambda c: 1.0)]).run()
    assert (result.winner, result.stopped) == (None, "pool")


# What a person enqueues


def test_enqueued_configurations_are_honoured_or_refused_with_a_reason():
    made = synthetic(4, SMALL)
    sampler = PoolSampler(made.land.configs, 0)
    study = new_study(sampler)
    inside = made.land.configs[17]
    for params in (inside, {**inside, "BM": 48}, {**inside, "cats": 1}, inside):
        study.enqueue_trial(params)
    result, _ = search(made, Budget(trials=12, clock=made.clock), study=study)
    assert result.trials[0].config == inside
    assert result.trials[0].origin == "enqueued"
    assert len(result.refused) == 3
    assert "no value 48" in result.refused[0]
    assert "cats is no knob" in result.refused[1]
    assert "tried already" in result.refused[2]


# Budgets


@pytest.mark.parametrize("seed", range(count(sample=6, soak=100)))
def test_sixty_seconds_end_by_sixty_two_and_one_deadline(seed):
    made = synthetic(seed, faults=0.2, noise=NOISE, costs=Costs(compile=0.7, launch=2e-3))
    budget = Budget(60, clock=made.clock)
    result, _ = search(made, budget, options=Options(seed=seed))
    deadline = Deadlines.of(budget).most + Deadlines.run
    assert made.clock.now <= 62 + deadline
    assert result.winner is not None
    assert made.planted.get(tuple(sorted(result.winner.items())), "") in ("", "slow")


def test_finals_get_their_share_of_the_seconds():
    made = synthetic(1, noise=NOISE, costs=Costs(compile=0.3, launch=5e-3))
    result, _ = search(made, Budget(60, clock=made.clock))
    assert result.final.confidence > 0
    assert made.clock.now <= 62


def test_a_budget_is_read_from_text():
    assert [seconds_of(t) for t in ("90", "90s", "10m", "1.5h")] == [90, 90, 600, 5400]
    for wrong in ("", "m", "-3s", "10 minutes", "nan", "inf", "1e99"):
        with pytest.raises(UsageError, match="such as 90s"):
            seconds_of(wrong)


def test_deadlines_learn_what_is_usual():
    deadlines = Deadlines(most=30.0)
    for _ in range(20):
        deadlines.saw(0.5)
    assert deadlines.first() == 5.0
    assert deadlines.launch(1, None) == 1.0
    assert deadlines.launch(25, 1e6) == 500.0


# Faults


@pytest.mark.parametrize("seed", range(count(sample=6, soak=100)))
def test_a_fifth_of_faults(seed):
    made = synthetic(seed, faults=0.2, noise=NOISE)
    result, _ = search(made, Budget(trials=120, clock=made.clock), options=Options(seed=seed))
    assert made.planted.get(tuple(sorted(result.winner.items())), "") in ("", "slow")
    planted = Counter(made.planted.get(tuple(sorted(t.config.items())), "") for t in result.trials)
    failed = sum(n for fault, n in planted.items() if fault not in ("", "slow"))
    assert failed == sum(result.faults.values()) > 5
    assert all(t.outcome.reason for t in result.trials if t.outcome.status in FAILED)


def test_every_kind_of_fault_is_planted():
    assert set(synthetic(0, faults=0.2).planted.values()) == set(FAULTS)


@pytest.mark.parametrize(
    "bad",
    [math.nan, math.inf, 0.0, -1.0, 1e13, "7", True, None],
)
def test_times_that_cannot_be_are_faults_and_never_win(bad):
    runner = Given(lambda c: Outcome(Status.OK, (bad,)) if c["x"] < 3 else 50.0 + c["x"])
    pool = Pool(tuple({"x": x} for x in range(6)))
    result = Search(Subject("k", pool), [runner], Budget(trials=6)).run()
    assert result.winner == {"x": 3}
    assert result.faults == {"invalid_time": 3}


def test_a_runner_that_raises_or_gives_no_samples_is_an_outcome():
    def answer(config):
        if config["x"] == 0:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return Outcome(Status.OK, ()) if config["x"] == 1 else 9.0

    result = Search(Subject("k", Pool(tuple({"x": x} for x in range(3)))), [Given(answer)], Budget(trials=3)).run()
    assert result.faults == {"crash": 1, "invalid_time": 1}
    assert result.winner == {"x": 2}


def test_a_finalist_that_fails_in_the_finals_loses():
    calls = Counter()

    def answer(config):
        calls[config["x"]] += 1
        broken = config["x"] == 0 and calls[0] > 3
        return Outcome(Status.WRONG, reason="differs") if broken else 50.0 + config["x"]

    journal = MemoryJournal()
    pool = Pool(tuple({"x": x} for x in range(3)))
    result = Search(Subject("k", pool), [Given(answer)], Budget(trials=3), journal).run()
    assert result.winner == {"x": 1}
    assert any(r.status is Status.WRONG and r.src is Source.RACE for r in journal.rows())


def test_wrong_results_and_two_strikes_bar_a_configuration_from_later_runs():
    journal, pool = MemoryJournal(), Pool(tuple({"x": x} for x in range(4)))
    bad = {0: Outcome(Status.WRONG, reason="differs"), 1: Outcome(Status.CRASH, reason="SIGSEGV")}
    runner = Given(lambda c: bad.get(c["x"], 10.0 + c["x"]))
    tried = [
        {t.config["x"] for t in Search(Subject("k", pool), [runner], Budget(), journal).run().trials} for _ in "abc"
    ]
    assert tried == [{0, 1, 2, 3}, {1, 2, 3}, {2, 3}]


def test_an_interrupt_ends_early_with_what_there_is():
    def answer(config):
        if config["x"] == 3:
            raise KeyboardInterrupt
        return 10.0 + config["x"]

    journal = MemoryJournal()
    pool = Pool(tuple({"x": x} for x in range(6)))
    result = Search(Subject("k", pool), [Given(answer)], Budget(trials=6), journal).run()
    assert result.stopped == "interrupted"
    assert len(journal.rows()) == len(result.trials)


# Several


def test_several_runners_share_the_trials_and_repeat_none():
    made = synthetic(6)
    spies = [Spy(made) for _ in range(3)]
    result = Search(made.subject(), spies, Budget(trials=60)).run()
    assert len(result.trials) == 60
    assert len({config_id(t.config) for t in result.trials}) == 60
    assert result.winner is not None


def test_a_runner_thread_that_fails_is_heard_of():
    class Broken(MemoryJournal):
        def append(self, row):
            raise ZeroDivisionError("the journal broke")

    made = synthetic(6)
    with pytest.raises(ZeroDivisionError):
        Search(made.subject(), [made, made], Budget(trials=20), Broken()).run()


def test_processes_that_share_a_journal_split_the_pool():
    made, journal, taken = synthetic(7, SMALL), MemoryJournal(), set()

    def claim(config):
        name = config_id(config)
        return name not in taken and not taken.add(name)

    options = Options(claim=claim)
    spies = [Spy(made), Spy(made)]
    half = len(made.land.configs) // 2
    first = Search(made.subject(), [spies[0]], Budget(trials=half), journal, options).run()
    second = Search(made.subject(), [spies[1]], Budget(), journal, replace(options, seed=1)).run()
    assert not +spies[0].first & +spies[1].first  # but for the finals
    assert made.true_us(second.winner) == made.best_us()
    assert sum(t.origin == "peer" for t in second.trials) == len(first.trials)


# Resuming


@pytest.mark.parametrize("seed", range(count(sample=4, soak=50)))
def test_a_resumed_search_repeats_nothing_and_ends_the_same(seed):
    def run(journal, trials, resume):
        made = synthetic(seed, faults=0.2)
        options = Options(seed=seed, resume=resume)
        return search(made, Budget(trials=trials, clock=made.clock), journal=journal, options=options)

    whole, _ = run(MemoryJournal(), 50, False)
    journal = MemoryJournal()
    _, before = run(journal, 7 + 9 * seed % 40, False)
    resumed, _ = run(journal, 50, True)
    assert [t.config for t in resumed.trials] == [t.config for t in whole.trials]
    assert resumed.winner == whole.winner
    fresh = {config_id(t.config) for t in resumed.trials if not t.recorded}
    assert not fresh & before.first.keys()
    assert resumed.recorded == len(before.first)


def test_a_stopwatch_passes_the_limit_on():
    seen = []

    class Seen(Given):
        def time(self, config, fidelity):
            seen.append((fidelity.level, fidelity.give_up_us))
            return super().time(config, fidelity)

    Stopwatch(Seen(lambda c: 10.0), FakeClock()).measure({"x": 1}, 8.0)
    assert seen == [(Level.LAUNCH, 32.0), (Level.SAMPLES, 12.0), (Level.FULL, None)]
