"""The perturbation sweep finds a look-ahead of one position, and passes what is causal."""

import numpy as np
import pytest
import torch

from weft.ir.pattern import leaks
from weft.ir.pattern.leak import default_cuts

N = 24


def make_input(i: int) -> torch.Tensor:
    return torch.randn(2, N, 4, generator=torch.Generator().manual_seed(i))


def attention(offset: int):
    """Softmax attention in which a query sees keys up to itself plus `offset`."""
    hidden = torch.ones(N, N).tril(offset) == 0

    def fn(x):
        scores = (x @ x.mT).masked_fill(hidden, -torch.inf)
        return torch.softmax(scores, -1).nan_to_num() @ x

    return fn


def test_causal_attention_does_not_leak():
    found = leaks(attention(0), N, make_input)

    assert found.causal
    assert found.cuts == N - 1
    assert str(found).startswith("no leak over 23 cuts")


@pytest.mark.parametrize("ahead", [1, 5])
def test_a_look_ahead_leaks(ahead):
    found = leaks(attention(ahead), N, make_input)

    assert not found.causal
    assert found.cut - ahead <= found.position < found.cut
    assert f"from position {found.cut} on change the output at {found.position}" in str(found)


def test_only_a_cut_in_the_right_place_sees_a_leak_of_one_pair():
    def fn(x):
        y = x.clone()
        y[:, 10] += x[:, 11]
        return y, "and more"

    found = leaks(fn, N, make_input)

    assert (found.cut, found.position) == (11, 10)
    assert leaks(fn, N, make_input, cuts=[5, 12]).causal


def test_nan_counts_as_a_leak_and_numpy_arrays_will_do():
    def inputs(i):
        return np.random.default_rng(i).normal(size=(1, N))

    assert leaks(lambda x: np.cumsum(x, 1), N, inputs).causal
    assert not leaks(lambda x: np.cumsum(x[:, ::-1], 1)[:, ::-1], N, inputs).causal
    assert not leaks(lambda x: np.where(x == inputs(0), x, np.nan).cumsum(1)[:, ::-1].cumsum(1), N, inputs).causal


def test_default_cuts_of_a_long_sequence_are_few_and_hold_block_edges():
    cuts = default_cuts(4096)

    assert len(cuts) < 80
    assert {1, 63, 64, 65, 127, 128, 129, 4095} <= set(cuts)
