"""The Gaussian process against the textbook: direct solves, finite differences, numerical integration."""

import numpy as np
import pytest

from tests.campaign import count
from weft.autotune.search.explorer import Explorer, spread, targets
from weft.autotune.search.surrogate import Kernel, Posterior, expected_improvement, normal_cdf
from weft.autotune.space.seeds import MOST_SEEDS, Opening

RNG = np.random.default_rng(0)
X = RNG.random((40, 3))
Y = np.sin(5 * X[:, 0]) + X[:, 1] ** 2
Y = (Y - Y.mean()) / Y.std()


def test_the_gradient_is_that_of_the_loss():
    kernel = Kernel(3)
    kernel.theta += RNG.normal(0, 0.3, 5)
    apart = (X[:, None] - X[None]) ** 2
    _, slope = kernel._loss(apart, Y)
    for i in range(5):
        step, base = 1e-6, kernel.theta.copy()
        kernel.theta = base + step * np.eye(5)[i]
        above = kernel._loss(apart, Y)[0]
        kernel.theta = base - step * np.eye(5)[i]
        below = kernel._loss(apart, Y)[0]
        kernel.theta = base
        assert slope[i] == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-4)


def test_a_fit_finds_which_columns_matter():
    kernel = Kernel(3)
    kernel.fit(X, Y, steps=60)
    assert kernel.theta[2] > kernel.theta[0] + 0.5


def test_a_posterior_grown_row_by_row_is_the_one_solved_at_once():
    kernel = Kernel(3)
    candidates = RNG.random((50, 3))
    grown = Posterior(kernel, candidates, X[:5], room=36)
    for point in X[5:]:
        grown.add(point)
    grown.add(candidates[0])
    grown.drop()
    covariance = kernel(X, X) + kernel.noise * np.eye(40)
    across = kernel(X, candidates)
    np.testing.assert_allclose(grown.mean(Y), across.T @ np.linalg.solve(covariance, Y), atol=1e-7)
    variance = kernel.variance - np.einsum("ij,ij->j", across, np.linalg.solve(covariance, across))
    np.testing.assert_allclose(grown.deviation() ** 2, np.maximum(variance, 1e-10), atol=1e-7)
    assert grown.mean_at(Y, candidates[3]) == pytest.approx(grown.mean(Y)[3])


def test_expected_improvement_is_the_integral():
    grid = np.linspace(-12, 12, 200_001)
    for mean, deviation, best in [(0.0, 1.0, 0.0), (0.5, 0.3, 0.0), (-1.0, 2.0, 0.7)]:
        density = np.exp(-(((grid - mean) / deviation) ** 2) / 2) / (deviation * np.sqrt(2 * np.pi))
        wanted = np.trapezoid(np.maximum(best - grid, 0) * density, grid)
        got = expected_improvement(np.array([mean]), np.array([deviation]), best)[0]
        assert got == pytest.approx(wanted, abs=1e-5)
    assert normal_cdf(np.array([0.0, 1.96, -1.96])) == pytest.approx([0.5, 0.975, 0.025], abs=1e-4)


def test_failures_are_as_bad_as_the_cut_and_the_slow_end_is_flat():
    y = targets([1.0, 2.0, 3.0, 4.0, 1000.0, None])
    assert y[4] == y[5] == y.max()
    assert y[0] == y.min()
    assert y.mean() == pytest.approx(0, abs=1e-9)


def test_a_design_covers_the_pool_without_repeats():
    x = np.array([[i / 9, j / 9] for i in range(10) for j in range(10)])
    chosen = spread(x, 30, np.random.default_rng(0))
    assert len(set(chosen)) == 30
    apart = min(np.abs(x[a] - x[b]).sum() for a in chosen[:8] for b in chosen[:8] if a != b)
    assert apart > 0.3
    assert sorted(spread(x[:5], 30, np.random.default_rng(0))) == [0, 1, 2, 3, 4]
    assert len(set(spread(np.zeros((20, 1)), 20, np.random.default_rng(0)))) == 20


# Seeds


def opened(opening, time_of):
    observed = []
    while (found := opening.next(observed, {row for row, _ in observed})) is not None:
        observed.append((found[0], time_of(found[0])))
    return [row for row, _ in observed]


SEEDS, DESIGN = tuple(range(100, 110)), tuple(range(30))


def test_without_seeds_the_opening_is_the_design():
    assert opened(Opening((), DESIGN, 10), lambda row: 10.0 + row) == list(DESIGN[:10])


def test_good_seeds_are_all_tried_in_turn_with_half_the_design():
    tried = opened(Opening(SEEDS, DESIGN, 10), lambda row: 1.0 + row / 1000 if row >= 100 else 10.0 + row)
    assert set(SEEDS) <= set(tried)
    assert sum(row < 100 for row in tried) == 5
    assert tried[:12] == [100, 0, 101, 1, 102, 103, 104, 105, 2, 106, 107, 3]


def test_seeds_that_lose_to_the_first_of_the_design_are_given_up():
    tried = opened(Opening(SEEDS, DESIGN, 10), lambda row: 50.0 + row if row >= 100 else 10.0 + row)
    assert sum(row >= 100 for row in tried) == 2
    assert [row for row in tried if row < 100] == list(DESIGN[:10])


def test_seeds_that_the_design_beats_later_are_given_up_then():
    def time_of(row):
        return 20.0 if row == 100 else 50.0 + row if row > 100 else 40.0 - row

    tried = opened(Opening(SEEDS, tuple(range(30)), 10), lambda row: 10.0 if row == 2 else time_of(row))
    assert sum(row >= 100 for row in tried) == 6
    assert [row for row in tried if row < 100] == list(DESIGN[:10])


def test_seeds_that_all_fail_are_given_up_too():
    tried = opened(Opening(SEEDS, DESIGN, 10), lambda row: None if row >= 100 else 10.0 + row)
    assert sum(row >= 100 for row in tried) == 2


@pytest.mark.parametrize("seed", range(count(sample=3, soak=30)))
def test_hostile_seeds_cost_two_trials_and_change_nothing_else(seed):
    rng = np.random.default_rng(seed)
    x = rng.random((400, 4))
    times = 1.0 + ((x - rng.random(4)) ** 2).sum(1)

    def proposed(seeds):
        explorer, observed = Explorer(x, seed, seeds, uniform=0.3), []
        for number in range(50):
            row, _ = explorer.next(number, observed)
            observed.append((row, float(times[row])))
        return [row for row, _ in observed]

    cold = proposed([])
    worst = [int(row) for row in np.argsort(-times) if row not in cold][:10]
    hostile = proposed(worst)
    assert times[cold[:2]].min() < times[worst[:2]].min()
    assert hostile[0:3:2] == worst[:2]
    assert [row for row in hostile if row not in worst] == cold[:48]


def test_the_opening_goes_on_until_something_runs():
    assert len(opened(Opening((), DESIGN, 10), lambda row: None)) == len(DESIGN)


def test_an_explorer_proposes_every_row_once_and_then_ends():
    x = np.random.default_rng(1).random((30, 2))
    explorer, observed = Explorer(x, 0, [3, 4]), []
    for number in range(30):
        row, _ = explorer.next(number, observed)
        observed.append((row, 1.0 + float(x[row].sum())))
    assert sorted(row for row, _ in observed) == list(range(30))
    with pytest.raises(StopIteration):
        explorer.next(30, observed)
    assert MOST_SEEDS == 10
