"""Tiles of attention in other documents are left out: counted in torch, and their bounds for the kernels."""

import pytest
import torch
from torch import Tensor

from tests.campaign import count
from weft.codegen.runtime import attention
from weft.codegen.runtime.attention_segments import GRAIN, SegmentBounds
from weft.codegen.skeletons.attention.segments import bounds

LEAST, GREATEST = -(2**63), 2**63 - 1


def numbers(seed: int, n: int) -> Tensor:
    """Segments [2, n]: documents in order, in reverse, or in none; of the ends of int64 too."""
    draw = torch.Generator().manual_seed(seed)
    cuts = (torch.rand(2, n, generator=draw) < 4 / n).long().cumsum(1)
    kind = seed % 4
    if kind == 2:
        return torch.randint(0, 5, (2, n), generator=draw)
    cuts = -cuts if kind == 1 else cuts
    return torch.where(cuts > 1, GREATEST, torch.where(cuts > 0, LEAST, 0)) if kind == 3 else cuts


def overlap(rows: Tensor, columns: Tensor, a: int, b: int) -> Tensor:
    """Which blocks of a rows and b columns have a number in common: bool [2, blocks, blocks]."""
    same = (rows[:, :, None] == columns[:, None]).double()[:, None]
    return torch.nn.functional.max_pool2d(same, (a, b), ceil_mode=True)[:, 0] > 0


@pytest.mark.parametrize("seed", range(count(sample=8, soak=400)))
def test_bounds_hold_all_that_shares_a_segment(seed):
    """Against every pair of numbers; and no more than that but for a block at each border, where numbers are sorted."""
    draw = torch.Generator().manual_seed(seed)
    n, m = (int(x) for x in torch.randint(1, 90, (2,), generator=draw))
    a, b = (int(x) for x in 2 ** torch.randint(0, 5, (2,), generator=draw))
    rows, columns = numbers(seed, n), numbers(seed, m)
    first, end, blocks = bounds(rows, columns, a, b)
    met, at = overlap(rows, columns, a, b), torch.arange(-(-m // b))
    inside = (at >= first[..., None]) & (at < end[..., None])
    assert blocks == met.shape[1]
    assert bool((inside | ~met).all())
    if seed % 4 < 2 and n == m:
        assert int((inside & ~met).sum()) == 0


@pytest.mark.parametrize("seed", range(count(sample=8, soak=200)))
def test_ranges_hold_all_that_shares_a_segment(seed):
    rows, keys = numbers(seed, 300), numbers(seed, 300)
    found = SegmentBounds.of(rows, keys, 16)
    assert found is not None
    for start in range(0, 300, 50):
        inside = torch.zeros(300, dtype=torch.bool)
        for lo, hi in found.within(start, start + 50, [(0, 130), (190, 300)], slice(1, 2)):
            inside[lo:hi] = True
        met = (rows[1, start : start + 50, None] == keys[1]).any(0)
        met[130:190] = False
        assert bool((inside | ~met).all())
        assert not bool(inside[130:190].any())


PACKED = (torch.arange(512) // 128).repeat(2, 1)


def test_tiles_that_torch_visits():
    """Pairs of a causal pattern of 512 tokens in tiles of 64, and of 4 documents of 128 of them."""
    pairs: list[int] = []

    class Counted(attention.Tiles):
        def _attend(self, x):
            pairs.append(x.mask.numel())
            return super()._attend(x)

    def keep(q, k, h, segments):
        return (k <= q) & (attention.at(segments, q) == attention.at(segments, k))

    q, k, v, do = torch.randn(4, 2, 2, 512, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = []
    for documents in (None, (0, 0)):
        layout = Counted(keep, 64, attention.Near(None, 0), documents)
        out, lse = layout.forward(q, k, v, 0.3, PACKED)
        results.append((out, lse, *layout.backward(do, q, k, v, out, lse, 0.3, PACKED), sum(pairs)))
        pairs.clear()
    *plain, every = results[0]
    *left, few = results[1]
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(plain, left))
    assert GRAIN == 64
    assert few < 0.4 * every  # of 8 rows of blocks 36, of 2 in each of 4 documents 12; some are filled up
