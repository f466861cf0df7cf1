"""Attention at given positions equals the rows of full attention, wherever the rows of a batch stand."""

import pytest
import torch

from tests.codegen.attention_oracle import close, operands, reference
from weft.codegen.runtime.attention import Causal
from weft.codegen.runtime.decode import Steps

N = 23


def causal(q, k, h=0):
    return k <= q


PATTERNS = {
    "causal": causal,
    "strided": lambda q, k, h: (k <= q) & ((q - k) % 4 == 0),
    "by head": lambda q, k, h: (k <= q) & (q - k < 2 + h),
    "strict": lambda q, k, h: k < q,
    "multiplicity": lambda q, k, h: (k <= q) * 1 + (k < 3) * (k <= q),
    "a number": lambda q, k, h: True,
    "nothing": lambda q, k, h: False,
}


def weight_of(keep) -> torch.Tensor:
    i, j, h = torch.arange(N).view(-1, 1), torch.arange(N), torch.arange(4).view(-1, 1, 1)
    return keep(i, j, h) * torch.ones(1, N, N)


def at(*first: int, n: int) -> torch.Tensor:
    """Positions from `first` on, a row for each."""
    return torch.tensor(first)[:, None] + torch.arange(n)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kv", [1, 2, 4])
@pytest.mark.parametrize("new", [1, 5])
def test_rows_stand_where_they_are(pattern, kv, new):
    """Row 0 at 9, row 1 at 4: its keys stand last, behind slots that hold something else."""
    do, q, k, v = operands(N, N, kv=kv, width_v=5)
    truth, truth_lse, _ = reference(do, q, k, v, 0.3, weight_of(PATTERNS[pattern]))
    if pattern == "a number":  # it sees what is given, no further
        cut = (torch.arange(N) < torch.tensor([9, 4])[:, None] + new)[:, None, None]
        truth, truth_lse, _ = reference(do, q, k, v, 0.3, cut * torch.ones(N, 1))
    key_at = at(0, -5, n=9 + new)
    place = key_at.clamp(min=0)
    rows = torch.arange(2)[:, None]
    keys, values = (x.transpose(1, 2)[rows, place].transpose(1, 2) for x in (k, v))
    query_at = at(9, 4, n=new)
    queries = q.transpose(1, 2)[rows, query_at].transpose(1, 2)

    out, lse = Steps(PATTERNS[pattern]).forward(queries, keys, values, 0.3, query_at, key_at)
    assert close(out, truth.transpose(1, 2)[rows, query_at].transpose(1, 2), 1e-12)
    want = truth_lse.expand(2, 4, N).transpose(1, 2)[rows, query_at].transpose(1, 2)
    assert torch.equal(lse.isinf(), want.isinf())
    assert close(lse.nan_to_num(posinf=0), want.nan_to_num(posinf=0), 1e-12)


def test_scores_and_metadata():
    do, q, k, v = operands(N, N)
    i, j = torch.arange(N)[:, None], torch.arange(N)
    where = at(0, 0, n=N)
    truth, _, _ = reference(do, q, k, v, 0.3, j <= i, lambda s: torch.tanh(s) - 0.1 * (i - j))
    steps = Steps(causal, lambda s, q, k, h: torch.tanh(s) - 0.1 * (q - k) + 0 * torch.log((q - k + 1) * 1.0))
    assert close(steps.forward(q, k, v, 0.3, where, where)[0], truth, 1e-12)
    truth, _, _ = reference(do, q, k, v, 0.3, j <= i, lambda s: 0 * s)
    assert close(Steps(causal, lambda s, q, k, h: 2.0).forward(q, k, v, 0.3, where, where)[0], truth, 1e-12)
    ids = torch.stack([torch.arange(N) // 10, torch.arange(N) // 7])
    truth, _, _ = reference(do, q, k, v, 0.3, (j <= i) & (ids[:, None, :, None] == ids[:, None, None, :]))
    steps = Steps(lambda q, k, h, s, t: (k <= q) & (s[:, None, :, None] == t[:, None, None, :]))
    assert close(steps.forward(q, k, v, 0.3, where, where, ids, ids)[0], truth, 1e-12)


def test_low_precision_and_meta():
    for dtype, tolerance in ((torch.bfloat16, 2e-2), (torch.float16, 3e-3)):
        _, q, k, v = operands(N, N, kv=2, dtype=dtype)
        where = at(0, 0, n=N)
        truth, _ = Causal().forward(q, k, v, 0.3)
        out, lse = Steps(causal).forward(q, k, v, 0.3, where, where)
        assert close(out, truth.double(), tolerance)
        assert lse.dtype == torch.float32
    given = [x.to("meta") for x in (q, k, v)]
    for new in (1, 3):
        out, _ = Steps(causal).forward(
            given[0][:, :, :new], *given[1:], 0.3, where[:, :new].to("meta"), where.to("meta")
        )
        assert (out.shape, out.device.type) == ((2, 4, new, 8), "meta")
