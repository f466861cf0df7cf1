"""The chain solver against brute force, and its promises: never over budget, never less peak for more budget."""

import itertools
import random

import pytest

from tests.campaign import count
from tests.effort import counted
from tests.passes.blocks import PARAMS, SIZES, floats, gpt
from weft.errors import InfeasibleError
from weft.ir.builder import Builder
from weft.ir.derive import joint
from weft.passes.chain import BlockProfile, Chain, Mode, evaluate, inference_peak, smallest_budget, solve
from weft.passes.liveness import estimate, peak
from weft.passes.price import Prices
from weft.passes.recompute import modes
from weft.targets import find


def block(rng: random.Random, name: str = "b", unit: int = 1) -> BlockProfile:
    """A block that saves all, some or only its input, with peaks that need not be nested."""
    b = rng.randint(1, 9) * unit
    modes = [
        Mode("save", b * 10, b * 11, b * 13, 0.0, rng.random() < 0.7, rng.random() < 0.4),
        Mode("pointwise", b * rng.randint(3, 6), b * 10, b * 14, b / 64, rng.random() < 0.7, rng.random() < 0.4),
        Mode("block", rng.randint(0, 2), b * 8, b * 15, b / 16, True, False),
    ]
    return BlockProfile(name, tuple(modes[: rng.randint(1, 3)]), rng.randint(0, 5) * unit, rng.randint(0, 3) * unit)


def chains(rng: random.Random) -> Chain:
    kinds = [block(rng, str(k)) for k in range(rng.randint(1, 4))]
    return Chain(tuple(rng.choice(kinds) for _ in range(rng.randint(1, 6))), rng.randint(0, 20))


def everything(chain: Chain):
    return [evaluate(chain, m) for m in itertools.product(*(range(len(b.modes)) for b in chain.blocks))]


@pytest.mark.parametrize("seed", range(count(sample=60, soak=300)))
def test_equals_brute_force_at_every_budget(seed: int):
    rng = random.Random(seed)
    chain = chains(rng)
    choices = everything(chain)
    assert smallest_budget(chain) == min(c.peak for c in choices)
    for budget in rng.sample(sorted({c.peak for c in choices}), min(4, len({c.peak for c in choices}))):
        best = min((c.time, c.peak) for c in choices if c.peak <= budget)
        got = solve(chain, budget)
        assert (got.time, got.peak) == best
        assert got == evaluate(chain, got.modes)
    free = solve(chain)
    assert (free.time, free.peak) == min((c.time, c.peak) for c in choices)


def test_infeasible_names_the_smallest_budget():
    chain = Chain((BlockProfile("a", (Mode("save", 10, 11, 13), Mode("block", 0, 11, 15)), 1),) * 3, 5)
    low = smallest_budget(chain)
    with pytest.raises(InfeasibleError) as e:
        solve(chain, low - 1)
    assert e.value.smallest == low
    assert solve(chain, low).peak == low


@pytest.mark.parametrize("alike", [True, False])
def test_never_over_budget_never_non_monotone(alike: bool):
    rng = random.Random(3)
    one = block(rng, unit=997)
    chain = Chain(tuple(one if alike else block(rng, str(i), 1000 + i) for i in range(24)), 10**4)
    low, high = smallest_budget(chain), solve(chain).peak
    peaks = [solve(chain, low + (high - low) * k // 20) for k in range(21)]
    for k, c in enumerate(peaks):
        assert c.peak <= low + (high - low) * k // 20
        exact = evaluate(chain, c.modes).peak
        assert exact <= c.peak <= exact * 1.03
    assert [c.peak for c in peaks] == sorted(c.peak for c in peaks)
    assert [c.time for c in peaks] == sorted((c.time for c in peaks), reverse=True)


def test_identical_layers_are_byte_exact_at_a_cost_linear_in_their_number():
    modes = (Mode("save", 1003, 1100, 1300), Mode("pointwise", 401, 1000, 1400, 1.0), Mode("block", 7, 800, 1400, 3.0))
    calls = {}
    for layers in (16, 128):
        chain = Chain((BlockProfile("layer", modes, 64, 10),) * layers)
        budget = (smallest_budget(chain) + solve(chain).peak) // 2
        got, calls[layers] = counted(solve, chain, budget)
        assert got.quantum == 1
    assert calls[128] <= 10 * calls[16]


def test_later_blocks_save_first():
    """Their kept bytes go first, so at equal time the plan with least peak recomputes early blocks."""
    b = BlockProfile("b", (Mode("save", 100, 10, 110), Mode("block", 0, 10, 120, 1.0)), 1)
    chain = Chain((b,) * 4)
    got = solve(chain, solve(chain).peak - 1)
    assert got.names(chain) == ("block", "save", "save", "save")


def test_inference_keeps_nothing():
    assert inference_peak(Chain((BlockProfile("a", (Mode("save", 10, 11, 13),), 2),) * 9, 100)) == 113


def test_estimates_read_off_a_block_fall_with_what_is_kept():
    j = joint(gpt(), ("x", *PARAMS))
    prices = Prices(SIZES, find("sm_90"))
    got = estimate("layer", j, 1, modes(j, 1, prices, PARAMS), prices, ("x",), PARAMS)
    assert [m.name for m in got.modes] == ["save", "pointwise", "attention", "block"]
    assert got.boundary == 4 * 2 * 8 * 6
    assert [m.saved for m in got.modes] == sorted((m.saved for m in got.modes), reverse=True)
    assert [m.time for m in got.modes] == sorted(m.time for m in got.modes)
    assert got.modes[-1].saved == 0
    assert all(m.keeps_input and not m.keeps_output for m in got.modes)
    assert all(m.backward_peak >= m.saved for m in got.modes)


def test_peak_of_a_chain_of_maps_is_two_values():
    g = Builder()
    x = g.input("x", floats("row col"))
    for _ in range(5):
        x = g.map("tanh(x)", x=x)
    assert peak(g.graph(x), Prices({"row": 4, "col": 8}, find("cpu"))) == 2 * 4 * 4 * 8
