"""Random bits of emitted packages: the published vectors, the reference's bits, and independence of layout."""

import pytest
import torch

from weft.codegen.runtime import philox
from weft.ir.formula import philox as truth

ONES = 0xFFFFFFFF
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
VECTORS = [  # Random123 known answers for philox4x32 with 10 rounds
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (*PI, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]
PLACES = torch.tensor([0, 1, 2, 3, 4, 7, 1 << 20, (1 << 34) - 1, 1 << 34, (1 << 34) + 5, (1 << 62) + 3])


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_known_answers(counter, key, expected):
    words = philox.philox(tuple(torch.tensor([x]) for x in counter), key)
    assert [int(x) & ONES for x in words] == list(expected)
    assert [x & ONES for x in philox.philox(counter, key)] == list(expected)


@pytest.mark.parametrize("seed", [0, 1, -1, 1234567890123456789, torch.tensor(-(1 << 63)), torch.tensor(77)])
def test_bits_are_those_of_the_reference(seed):
    for op_id, layer in ((0, 0), (5, 3), (ONES, torch.tensor(1 << 31))):
        expected = truth.uniform(torch.as_tensor(seed), op_id, layer, PLACES)
        assert torch.equal(philox.uniform(seed, op_id, layer, PLACES), expected * 2.0**-24)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (3, 7), (2, 3, 1000), (600_001,)])
@pytest.mark.parametrize("first", [0, 1, 3, 6, (1 << 34) - 2])
def test_a_range_equals_its_indices(shape, first):
    count = int(torch.Size(shape).numel())
    index = (first + torch.arange(count)).view(shape)
    expected = philox.uniform(9, 2, 1, index)
    assert torch.equal(philox.uniform_range(shape, 9, 2, 1, "cpu", first), expected)
    keep = philox.dropout_mask(shape, 0.4, 9, 2, 1, "cpu", first)
    assert torch.equal(keep, expected.double() >= 0.4)


def test_index_shape_and_strides_do_not_matter():
    index = torch.arange(24).view(2, 3, 4)
    assert torch.equal(philox.uniform(1, 2, 3, index.mT), philox.uniform(1, 2, 3, index).mT)


def test_numbers_are_uniform_and_streams_differ():
    draws = [philox.uniform_range((1 << 16,), 3, op, layer, "cpu") for op, layer in ((0, 0), (1, 0), (0, 1))]
    for x in draws:
        assert float(x.min()) >= 0
        assert float(x.max()) < 1
        assert abs(float(x.mean()) - 0.5) < 0.005
        assert abs(float(x.var()) - 1 / 12) < 0.002
    assert abs(float(torch.corrcoef(torch.stack(draws))[0, 1:].abs().max())) < 0.02


def test_meta_device():
    for x in (philox.uniform_range((2, 3), 1, 2, 3, "meta"), philox.dropout_mask((2, 3), 0.1, 1, 2, 3, "meta")):
        assert (x.shape, x.device.type) == ((2, 3), "meta")
    assert philox.uniform(1, 2, 3, PLACES.to("meta")).device.type == "meta"
