"""Philox4x32-10: the published vectors, and the same bits from torch, numpy and plain integers."""

import numpy as np
import pytest
import torch

from weft.ir.formula import philox

ONES = 0xFFFFFFFF

# Random123's kat_vectors for philox4x32-10: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "want"), KNOWN)
@pytest.mark.parametrize("make", [int, np.int64, torch.tensor], ids=["int", "numpy", "torch"])
def test_known_vectors(counter, key, want, make):
    got = philox.philox(tuple(map(make, counter)), tuple(map(make, key)))

    assert tuple(map(int, got)) == want


def test_the_layout_of_a_draw():
    """counter = (index//4 low, index//4 high, op_id, layer), key = (seed low, seed high), word = index % 4."""
    seed, op_id, layer = 0x1234_5678_9ABC_DEF0, 7, 3
    for index in (0, 1, 2, 3, 4, 1 << 34, (1 << 40) + 5):
        block = index // 4
        words = philox.philox((block & ONES, block >> 32, op_id, layer), (seed & ONES, seed >> 32))

        assert philox.bits(seed, op_id, layer, index) == words[index % 4]


def test_every_backend_draws_the_same():
    index = [0, 1, 5, 2**31, 2**33 + 3, 2**62 + 1]
    for seed in (0, 1, -1, 2**63 - 1, -(2**63)):
        plain = [philox.uniform(seed, 2, 9, i) for i in index]

        assert philox.uniform(torch.tensor(seed), 2, 9, torch.tensor(index)).tolist() == plain
        assert philox.uniform(np.int64(seed), 2, 9, np.array(index)).tolist() == plain


def test_draws_are_uniform_and_in_range():
    n = 200_000
    u = philox.uniform(11, 0, 0, torch.arange(n)).double() / 2**24
    counts = torch.histc(u, 64, 0, 1)

    assert u.min() >= 0
    assert u.max() < 1
    assert ((counts - n / 64) ** 2 / (n / 64)).sum() < 130  # chi square, 63 degrees of freedom, p about 1e-6
    for other in (philox.uniform(12, 0, 0, torch.arange(n)), philox.uniform(11, 1, 0, torch.arange(n))):
        assert abs(torch.corrcoef(torch.stack([u, other / 2**24]))[0, 1]) < 0.01
