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

    def apart(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a - b).norm() / truth.norm())

    plain, moved = work(), list[float]()
    for seed in range(TIMES):
        with Rounded(seed):
            again = work()
        moved.append(apart(again, plain))

    assert is_rounding(apart(plain, truth), moved) == (not fault)


def test_whole_numbers_and_infinities_stay():
    x = torch.tensor([1.0, -0.0, torch.inf, 0.3], dtype=torch.float64)
    with Rounded(0):
        y = torch.stack([x + 0.0] * 50)

    assert torch.equal(y[:, :3], x[:3].expand(50, 3))
    assert 0 < float((y[:, 3] - x[3]).abs().max()) < 1e-15
