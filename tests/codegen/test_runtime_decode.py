"""Steps over a cache equal the rows of full attention."""

import pytest
import torch

from tests.codegen.attention_oracle import close, operands, reference
from weft.codegen.runtime.attention import Causal, Window, at
from weft.codegen.runtime.decode import Cache, decode

N = 23


def causal(q, k, h=0):
    return k <= q


PATTERNS = {
    "every key": None,
    "causal": causal,
    "strided": lambda q, k, h: (k <= q) & ((q - k) % 4 == 0),
    "by head": lambda q, k, h: (k <= q) & (q - k < 2 + h),
    "strict": lambda q, k, h: k < q,
    "multiplicity": lambda q, k, h: (k <= q) * 1 + (k < 3) * (k <= q),
    "nothing": lambda q, k, h: False,
}


def weight_of(keep) -> torch.Tensor:
    i, j, h = torch.arange(N).view(-1, 1), torch.arange(N), torch.arange(4).view(-1, 1, 1)
    return (keep(i, j, h) if keep else j <= i) * torch.ones(1, N, N)


def steps(given, cache, first, **how):
    """Run tokens first.. one at a time."""
    _, q, k, v = given
    for p in range(first, N):
        cache.append(k[:, :, p : p + 1], v[:, :, p : p + 1])
        keys, values, positions = cache.tokens()
        yield decode(q[:, :, p : p + 1], keys, values, 0.3, p, positions, **how)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kv", [1, 2, 4])
def test_steps_after_a_prompt_equal_full_attention(pattern, kv):
    given = operands(N, N, kv=kv, width_v=5)
    truth, truth_lse, _ = reference(*given, 0.3, weight_of(PATTERNS[pattern]))
    cache = Cache.empty(given[2], given[3], N)
    cache.append(given[2][:, :, :9], given[3][:, :, :9])
    rows = list(steps(given, cache, 9, keep=PATTERNS[pattern]))
    assert close(torch.cat([out for out, _ in rows], 2), truth[:, :, 9:], 1e-12)
    lse = torch.cat([lse for _, lse in rows], 2)
    assert torch.equal(lse.isinf(), truth_lse[..., 9:].isinf().expand_as(lse))
    assert close(lse.nan_to_num(posinf=0), truth_lse[..., 9:].nan_to_num(posinf=0).expand_as(lse), 1e-12)


def test_several_tokens_at_once():
    given = operands(N, N)
    for keep in (PATTERNS["causal"], PATTERNS["by head"], PATTERNS["multiplicity"]):
        truth, _, _ = reference(*given, 0.3, weight_of(keep))
        out, _ = decode(given[1][:, :, 15:], given[2], given[3], 0.3, 15, keep=keep)
        assert close(out, truth[:, :, 15:], 1e-12)


@pytest.mark.parametrize("prompt", [0, 3, 5, 12, 22])
def test_a_ring_holds_the_window(prompt):
    given = operands(N, N)
    do, q, k, v = given
    truth, _ = Window(5).forward(q, k, v, 0.3)
    cache = Cache.empty(k, v, 5, ring=True)
    cache.append(k[:, :, :prompt], v[:, :, :prompt])
    rows = [out for out, _ in steps(given, cache, prompt)]
    assert close(torch.cat(rows, 2), truth[:, :, prompt:], 1e-12)
    assert sorted(cache.tokens()[2].tolist()) == list(range(N - 5, N))
    strided = (torch.arange(N)[:, None] - torch.arange(N)).remainder(2) == 0
    near = (torch.arange(N)[:, None] - torch.arange(N) < 5) & (torch.arange(N) <= torch.arange(N)[:, None])
    dilated, _, _ = reference(do, q, k, v, 0.3, strided & near)
    cache = Cache.empty(k, v, 5, ring=True)
    rows = [out for out, _ in steps(given, cache, 0, keep=lambda q, k, h: (q - k) % 2 == 0)]
    assert close(torch.cat(rows, 2), dilated, 1e-12)


def test_a_full_cache_says_so():
    _, _, k, v = operands(4, 4)
    cache = Cache.empty(k, v, 3)
    with pytest.raises(ValueError, match="holds 3 tokens; token 3"):
        cache.append(k, v)


def test_scores_and_metadata():
    given = operands(N, N)
    i, j = torch.arange(N)[:, None], torch.arange(N)
    truth, _, _ = reference(*given, 0.3, j <= i, lambda s: torch.tanh(s) - 0.1 * (i - j))
    cache = Cache.empty(given[2], given[3], N)
    how = {"keep": causal, "score": lambda s, q, k, h: torch.tanh(s) - 0.1 * (q - k)}
    assert close(torch.cat([out for out, _ in steps(given, cache, 0, **how)], 2), truth, 1e-12)
    segment = torch.stack([torch.arange(N) // 10, torch.arange(N) // 7])
    same = (j <= i) & (segment[:, None, :, None] == segment[:, None, None, :])
    truth, _, _ = reference(*given, 0.3, same)
    cache = Cache.empty(given[2], given[3], N)
    how = {"keep": lambda q, k, h, s: at(s, q) == at(s, k), "metadata": (segment,)}
    assert close(torch.cat([out for out, _ in steps(given, cache, 0, **how)], 2), truth, 1e-12)


def test_low_precision_and_meta():
    given = operands(N, N, dtype=torch.bfloat16)
    truth, _ = Causal().forward(*given[1:], 0.3)
    cache = Cache.empty(given[2], given[3], N)
    assert close(torch.cat([out for out, _ in steps(given, cache, 0)], 2), truth.double(), 2e-2)
    given = [x.to("meta") for x in given]
    cache = Cache.empty(given[2], given[3], N)
    shapes = {(out.shape, out.device.type) for out, _ in steps(given, cache, 0, keep=causal)}
    assert shapes == {((2, 4, 1, 8), "meta")}
