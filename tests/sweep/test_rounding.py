"""A difference that rounding makes is told from a fault, however small that is."""

import pytest
import torch

from tests.sweep.rounding import TIMES, Rounded, is_rounding


def lost(x: torch.Tensor) -> torch.Tensor:
    """The deviations from the mean of large numbers, which their own rounding moves."""
    return (x * 1.1).square() - (x * 1.1).square().mean()


@pytest.mark.parametrize("fault", [0.0, 1e-8])
def test_rounding_moves_and_a_fault_does_not(fault):
    """The fault is where nothing cancels, as in a constant that is off."""
    x = 1e4 + torch.linspace(0, 1, 9, dtype=torch.float64)
    work = (lambda: x.sin() * (1 + fault)) if fault else (lambda: lost(x))
    truth = x.sin() if fault else (1.21 * (x + x.mean()) * (x - x.mean()) - 1.21 * (x - x.mean()).square().mean())

    def error() -> float:
        return float((work() - truth).norm() / truth.norm())

    plain, again = error(), list[float]()
    for seed in range(TIMES):
        with Rounded(seed):
            again.append(error())

    assert is_rounding(plain, again) == (not fault)


def test_a_large_difference_is_rounding_only_where_rounding_alone_makes_such():
    assert not is_rounding(1e-5, [1e-9])
    assert not is_rounding(1e-5, [1e-5, 1.2e-5, 0.9e-5])
    assert is_rounding(1e-5, [0.9e-5, 0.2e-5, 1.2e-5])


def test_whole_numbers_and_infinities_stay():
    x = torch.tensor([1.0, -0.0, torch.inf, 0.3], dtype=torch.float64)
    with Rounded(0):
        y = torch.stack([x + 0.0] * 50)

    assert torch.equal(y[:, :3], x[:3].expand(50, 3))
    assert 0 < float((y[:, 3] - x[3]).abs().max()) < 1e-15
