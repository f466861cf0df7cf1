"""The solver of recompute modes against brute force over played events, and its promises: never over budget, never less
peak for more budget. Programs are graphs of blocks; a chain is one of them."""

import itertools
import random
from dataclasses import replace

import pytest

from tests.campaign import count
from tests.effort import counted
from tests.passes.blocks import PARAMS, SIZES, floats, gpt
from weft.errors import InfeasibleError
from weft.ir.builder import Builder
from weft.ir.derive import joint
from weft.ir.types import Val
from weft.passes.fusion.price import Prices
from weft.passes.memory.liveness import estimate, peak
from weft.passes.memory.solver import smallest_budget, solve
from weft.passes.recompute import modes
from weft.passes.schedule import BlockProfile, Run, RunMode, Schedule, Value, evaluate, inference_peak
from weft.targets import find

ENTERING = ("x", "y", "z")


def block(rng: random.Random, name: str = "b", reads: int = 1, unit: int = 1) -> BlockProfile:
    """A block that saves all, some or only what it reads, with peaks that need not be nested."""
    b = rng.randint(1, 9) * unit
    enters = tuple((x, rng.randint(0, 5) * unit) for x in ENTERING[:reads])
    leaves = (("out", rng.randint(0, 5) * unit),)

    def kept(one: float, out: float) -> frozenset[str]:
        chances = [(x, one) for x, _ in enters] + [("out", out)]
        return frozenset(x for x, chance in chances if rng.random() < chance)

    found = [
        RunMode("save", b * 10, b * 11, b * 13, 0.0, kept(0.7, 0.4)),
        RunMode("pointwise", b * rng.randint(3, 6), b * 10, b * 14, b / 64, kept(0.7, 0.4)),
        RunMode("block", rng.randint(0, 2), b * 8, b * 15, b / 16, kept(1, 0)),
    ]
    return BlockProfile(name, tuple(found[: rng.randint(1, 3)]), enters, leaves, rng.randint(0, 3) * unit)


def program(rng: random.Random, unit: int = 1, runs: int = 0, chain: bool = False) -> Schedule:
    """Runs of which each reads up to three earlier values, or in a chain the one before; a few blocks, many runs."""
    kinds = [block(rng, f"b{reads}{k}", reads, unit) for reads in (1, 2, 3) for k in range(2)]
    values: list[Value] = [Value(rng.randint(0, 5) * unit, 0, 0)]
    made: list[Run] = []
    first = BlockProfile("embed", (RunMode("save", 0, 3 * unit, 2 * unit),), (), (("out", values[0].size),), unit)
    made.append(Run(first, (("out", 0),), unit))
    for i in range(1, runs or rng.randint(2, 6)):
        profile = rng.choice([k for k in kinds if len(k.enters) <= (1 if chain else len(values))])
        read = [len(values) - 1] if chain else rng.sample(range(len(values)), len(profile.enters))
        for v in read:
            values[v] = replace(values[v], last=i, born=i if rng.random() < 0.9 or chain else values[v].born)
        ports = tuple(zip((name for name, _ in profile.enters), read))
        if chain or rng.random() < 0.9:  # else the caller has it
            ports += (("out", len(values)),)
            values.append(Value(profile.leaves[0][1], i, i))
        made.append(Run(profile, ports, rng.choice((0, profile.grads))))
    return Schedule(tuple(made), tuple(values), rng.randint(0, 20) * unit)


def played(s: Schedule, choice: tuple[int, ...]) -> int:
    """The peak of a choice by what happens: values and gradients come and go, one event after the other."""
    alive: dict[object, int] = {}
    most = 0
    chosen = [r.profile.modes[m] for r, m in zip(s.runs, choice)]
    keeps = [r.kept(m) for r, m in zip(s.runs, chosen)]

    def note(more: int) -> None:
        nonlocal most
        most = max(most, sum(alive.values()) + more)

    for i, m in enumerate(chosen):
        note(m.forward_peak)
        alive["saved", i] = m.saved
        alive |= {("value", k): v.size for k, v in enumerate(s.values) if v.made == i}
        for k, v in enumerate(s.values):
            if v.last == i and not any(k in kept for kept in keeps[: i + 1]):
                alive.pop(("value", k), None)
    alive = {k: size for k, size in alive.items() if k[0] == "saved" or any(k[1] in kept for kept in keeps)}  # type: ignore[index]
    for i in reversed(range(len(s.runs))):
        mode = chosen[i]
        note(mode.backward_peak)
        alive["parameters", i] = s.runs[i].grads
        alive |= {("gradient", k): v.size for k, v in enumerate(s.values) if v.born == i > v.made}
        alive.pop(("saved", i))
        for k, v in enumerate(s.values):
            if v.made == i:
                alive.pop(("gradient", k), None)
            if not any(k in kept for kept in keeps[:i]):
                alive.pop(("value", k), None)
    return s.base + most


def everything(s: Schedule) -> list[tuple[float, int, tuple[int, ...]]]:
    choices = itertools.product(*(range(len(r.profile.modes)) for r in s.runs))
    return [(sum(r.profile.modes[m].time for r, m in zip(s.runs, c)), played(s, c), c) for c in choices]


@pytest.mark.parametrize("seed", range(count(sample=80, soak=400)))
def test_equals_brute_force_at_every_budget(seed: int):
    rng = random.Random(seed)
    s = program(rng, chain=seed % 4 == 0)
    choices = everything(s)
    assert [evaluate(s, c).peak for _, _, c in choices] == [most for _, most, _ in choices]
    assert smallest_budget(s) == min(most for _, most, _ in choices)
    for budget in rng.sample(sorted({most for _, most, _ in choices}), min(4, len({m for _, m, _ in choices}))):
        best = min((time, most) for time, most, _ in choices if most <= budget)
        got = solve(s, budget)
        assert (got.time, got.peak) == best
        assert got == evaluate(s, got.modes)
    free = solve(s)
    assert (free.time, free.peak) == min((time, most) for time, most, _ in choices)


def test_what_is_alive_adds_up():
    for seed in range(40):
        s = program(random.Random(seed))
        got = solve(s)
        assert got.peak == s.base + got.alive.kept + got.alive.gradients + got.alive.own


def layers(count: int, enters: int, grads: int, *found: RunMode) -> Schedule:
    """A chain of one block."""
    profile = BlockProfile("layer", found, (("x", enters),), (("out", enters),), grads)
    values = tuple(Value(enters, i, min(i + 1, count), i + 1 if i < count else -1) for i in range(count + 1))
    first = BlockProfile("embed", (RunMode("save", 0, enters, 0),), (), (("out", enters),))
    runs = [Run(first, (("out", 0),)), *(Run(profile, (("x", i), ("out", i + 1)), grads) for i in range(count))]
    return Schedule(tuple(runs), values)


def test_infeasible_names_the_smallest_budget():
    keeps = frozenset({"x"})
    s = layers(3, 1, 1, RunMode("save", 10, 11, 13, 0.0, keeps), RunMode("block", 0, 11, 15, 0.0, keeps))
    low = smallest_budget(s)
    with pytest.raises(InfeasibleError) as e:
        solve(s, low - 1)
    assert e.value.smallest == low
    assert solve(s, low).peak == low


@pytest.mark.parametrize("chain", [True, False])
def test_never_over_budget_never_non_monotone(chain: bool):
    s = program(random.Random(3), 997, 24, chain)
    low, high = smallest_budget(s), solve(s).peak
    peaks = [solve(s, low + (high - low) * k // 20) for k in range(21)]
    for k, c in enumerate(peaks):
        assert c.peak <= low + (high - low) * k // 20
        exact = evaluate(s, c.modes).peak
        assert exact <= c.peak <= exact * 1.03
    assert [c.peak for c in peaks] == sorted(c.peak for c in peaks)
    assert [c.time for c in peaks] == sorted((c.time for c in peaks), reverse=True)


def test_identical_layers_are_byte_exact_at_a_cost_linear_in_their_number():
    x = frozenset({"x"})
    found = (
        RunMode("save", 1003, 1100, 300, 0.0, x),
        RunMode("some", 401, 1000, 999, 1.0, x),
        RunMode("block", 7, 800, 1400, 3.0, x),
    )
    calls = {}
    for n in (16, 128):
        s = layers(n, 64, 10, *found)
        budget = (smallest_budget(s) + solve(s).peak) // 2
        got, calls[n] = counted(solve, s, budget)
        assert got.quantum == 1
    assert calls[128] <= 10 * calls[16]


def test_later_blocks_save_first():
    """Their kept bytes go first, so at equal time the plan with least peak recomputes early blocks."""
    x = frozenset({"x"})
    s = layers(4, 1, 0, RunMode("save", 100, 10, 10, 0.0, x), RunMode("block", 0, 10, 120, 1.0, x))
    got = solve(s, solve(s).peak - 1)
    assert got.names(s) == ("save", "block", "save", "save", "save")


def test_inference_keeps_nothing():
    s = layers(9, 2, 0, RunMode("save", 10, 11, 13))
    assert inference_peak(replace(s, base=100)) == 113


def test_a_value_that_every_later_layer_reads_and_keeps_is_alive_to_the_last_of_them():
    """An encoder's result, as cross attentions read it: once in the forward, its gradient once in the backward."""
    encoder = BlockProfile("encoder", (RunMode("save", 5, 100, 7),), (), (("out", 100),))
    both = frozenset({"x", "y"})
    decoder = BlockProfile("decoder", (RunMode("save", 10, 20, 30, 0.0, both),), (("x", 1), ("y", 100)), (("out", 1),))
    values = (Value(100, 0, 4, 4), Value(1, 0, 1, 1), *(Value(1, i, i + 1, i + 1) for i in (1, 2, 3)))
    runs = [Run(encoder, (("out", 0),))]
    runs += [Run(decoder, (("x", i), ("y", 0), ("out", i + 1))) for i in (1, 2, 3)]
    runs.append(Run(replace(decoder, name="head"), (("x", 4), ("y", 0))))
    s = Schedule(tuple(runs), values)
    choice = (0,) * 5
    assert evaluate(s, choice).peak == played(s, choice)
    assert s.ahead == (0, 101, 101, 101, 101)
    assert s.cotangents == (101, 101, 101, 101, 0)


def test_estimates_read_off_a_block_fall_with_what_is_kept():
    j = joint(gpt(), ("x", *PARAMS))
    prices = Prices(SIZES, find("sm_90"))
    called = Val("y", j.outputs[0].type)  # a pass may have given it another name since
    got = estimate("layer", j, (called,), modes(j, 1, prices, PARAMS), prices, ("x",), PARAMS)
    assert got.leaves == (("y", prices.size(called)),)
    assert [m.name for m in got.modes] == ["save", "pointwise", "attention", "block"]
    assert got.boundary == 4 * 2 * 8 * 6
    assert [m.saved for m in got.modes] == sorted((m.saved for m in got.modes), reverse=True)
    assert [m.time for m in got.modes] == sorted(m.time for m in got.modes)
    assert got.modes[-1].saved == 0
    assert all(m.keeps == {"x"} for m in got.modes)
    assert all(got.backward_held(m) >= m.saved + m.backward_peak for m in got.modes)


def test_peak_of_a_chain_of_maps_is_two_values():
    g = Builder()
    x = g.input("x", floats("row col"))
    for _ in range(5):
        x = g.map("tanh(x)", x=x)
    assert peak(g.graph(x), Prices({"row": 4, "col": 8}, find("cpu"))) == 2 * 4 * 4 * 8
