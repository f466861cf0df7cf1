"""Finals under drift: which of the best is best, and how sure that is."""

import numpy as np

from tests.campaign import count
from weft.autotune.search.finals import FINALISTS, ROUNDS, WITHIN, alone, decide, field, race
from weft.autotune.types import Outcome, Status, Trial

DRIFT, JITTER, SPIKES = 0.015, 0.02, 0.01


class Drifting:
    """A clock that wanders by 1.5 %, samples that jitter by 2 %, one in a hundred of which takes twice as long."""

    def __init__(self, true, rng):
        self.true, self.rng = true, rng
        self.t, self.phase, self.period = 0, rng.uniform(0, 2 * np.pi), rng.uniform(60, 400)

    def launch(self, place):
        self.t += 1
        wave = 1 + DRIFT * np.sin(2 * np.pi * self.t / self.period + self.phase)
        spike = 2.0 if self.rng.random() < SPIKES else 1.0
        return float(self.true[place] * wave * np.exp(JITTER * self.rng.standard_normal()) * spike)


def regrets(n):
    paired, sequential = [], []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        true = 100 * (1 + np.sort(rng.uniform(0, 0.05, FINALISTS)))
        rng.shuffle(true)
        device = Drifting(true, rng)
        times = race(FINALISTS, device.launch, rng, lambda: False)
        verdict = decide(times, None, [(0.0,)] * FINALISTS, rng)
        paired.append(true[verdict.winner] / true.min() - 1)
        device = Drifting(true, rng)
        medians = [np.median([device.launch(place) for _ in range(ROUNDS)]) for place in range(FINALISTS)]
        sequential.append(true[int(np.argmin(medians))] / true.min() - 1)
    return np.array(paired), np.array(sequential)


def test_interleaved_finals_lose_less_than_medians_one_after_another(record_property):
    paired, sequential = regrets(count(sample=300, soak=5000))
    low, high = np.quantile(paired, 0.95), np.quantile(sequential, 0.95)
    record_property("p95 regret, interleaved", round(float(low), 5))
    record_property("p95 regret, sequential", round(float(high), 5))
    assert low <= count(sample=0.008, soak=0.006)
    assert low < 0.6 * high
    assert paired.mean() < 0.6 * sequential.mean()


def test_a_race_ends_early_with_whole_rounds():
    left = iter(range(20))
    times = race(8, lambda place: 1.0 + place, np.random.default_rng(0), lambda: next(left, None) is None)
    assert times.shape == (2, 8)
    assert race(3, lambda place: 1.0, np.random.default_rng(0), lambda: True).shape == (0, 3)


def test_a_finalist_that_fails_is_out_and_when_all_do_nobody_wins():
    rng = np.random.default_rng(0)
    times = race(3, lambda place: None if place == 0 else 5.0 + place, rng, lambda: False)
    verdict = decide(times, 0, [(0.0,)] * 3, rng)
    assert verdict.winner == 1
    assert np.isnan(verdict.behind[0])
    assert decide(np.full((4, 2), np.nan), None, [(0.0,)] * 2, rng) is None
    assert decide(np.zeros((0, 2)), None, [(0.0,)] * 2, rng) is None


def test_confidence_is_high_when_it_is_clear_and_low_when_it_is_not():
    rng = np.random.default_rng(1)
    clear = np.exp(rng.normal(0, 0.01, (25, 2))) * [100.0, 104.0]
    close = np.exp(rng.normal(0, 0.03, (25, 2))) * [100.0, 100.1]
    assert decide(clear, None, [(0.0,)] * 2, rng).confidence > 0.99
    assert 0.1 < decide(close, None, [(0.0,)] * 2, rng).confidence <= 1.0


def test_the_field_is_the_fastest_few_within_five_percent():
    times = [100.0, 104.0, 106.0, 101.0, *[102.0] * 10]
    trials = [Trial(i, {"x": i}, Outcome(Status.OK, (us,))) for i, us in enumerate(times)]
    trials.append(Trial(99, {"x": 99}, Outcome(Status.SLOW, (1.0,))))
    chosen = field(trials)
    assert len(chosen) == FINALISTS
    assert chosen[0].number == 0
    assert all(t.us <= 100 * WITHIN for t in chosen)
    assert field([]) == []


def test_a_lone_finalist_is_as_sure_as_its_samples_are_steady():
    def confidence(spread):
        rng = np.random.default_rng(0)
        times = [tuple(us * np.exp(rng.normal(0, spread, 9))) for us in (100.0, 108.0, 150.0)]
        return alone([Trial(i, {"x": i}, Outcome(Status.OK, t)) for i, t in enumerate(times)], rng)

    assert confidence(0.005) == 1.0
    assert 0.5 < confidence(0.15) < 0.99
