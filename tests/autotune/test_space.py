"""Spaces from data: the list of configurations against a plain loop, refusals counted once, nothing evaluated."""

import itertools
import random

import pytest

from tests.autotune.samples import SHARED, space
from tests.campaign import count
from tests.effort import counted
from weft.autotune.space.hazards import refusals
from weft.autotune.space.listed import Space
from weft.autotune.space.problems import spaces
from weft.codegen.skeletons import families
from weft.errors import FormulaError, UsageError
from weft.targets import LIMITS

CONSTRAINTS = {
    "tile": ("BM*BN <= 64*num_warps*size", lambda c, g: c["BM"] * c["BN"] <= 64 * c["num_warps"] * g["size"]),
    "odd": ("BM % 48 == 0 or BN >= 64", lambda c, g: c["BM"] % 48 == 0 or c["BN"] >= 64),
    "not both": ("not (BM > 64 and BN > 64)", lambda c, g: not (c["BM"] > 64 and c["BN"] > 64)),
    "stages": ("num_stages != 3 or BM // 32 > 1", lambda c, g: c["num_stages"] != 3 or c["BM"] // 32 > 1),
    "registers": ("maxnreg == 0 or maxnreg*num_warps <= 1024",
                  lambda c, g: not c["maxnreg"] or c["maxnreg"] * c["num_warps"] <= 1024),
    "order": ("ORDER == 0 or FLAG == 1", lambda c, g: c["ORDER"] == "rows" or c["FLAG"]),
    "target": ("arch >= 90 or num_stages < 4", lambda c, g: g["arch"] >= 90 or c["num_stages"] < 4),
}  # fmt: skip
SHARED_BYTES = ("(BM + BN)*size*num_stages*64", lambda c, g: (c["BM"] + c["BN"]) * g["size"] * c["num_stages"] * 64)
VALUES = {
    "BM": (16, 32, 48, 64, 96, 128, 256), "BN": (16, 32, 64, 128, 256), "num_warps": (1, 2, 4, 8, 16),
    "num_stages": (1, 2, 3, 4, 5), "maxnreg": (None, 64, 128, 255), "ORDER": ("rows", "columns"), "FLAG": (False, True),
}  # fmt: skip


def some(rng):
    """Some of the values of every knob, in order, and some of the constraints."""
    knobs = {n: tuple(v for v in values if rng.random() < 0.6) or values[:1] for n, values in VALUES.items()}
    if "rows" not in knobs["ORDER"]:  # a text counts as its place among the values
        knobs["ORDER"] = ("rows",)
    reasons = rng.sample(sorted(CONSTRAINTS), rng.randint(0, len(CONSTRAINTS)))
    order = list(knobs.items())
    rng.shuffle(order)
    made = {reason: CONSTRAINTS[reason][0] for reason in reasons}
    return Space("some", dict(order), made, {"sm_90": SHARED_BYTES[0]}, ("size",)), reasons


@pytest.mark.parametrize("seed", range(count(40, 400)))
def test_the_list_is_that_of_a_plain_loop(seed):
    rng = random.Random(seed)
    of, reasons = some(rng)
    target, size = rng.choice(sorted(LIMITS)), rng.choice((1, 4, 64))
    given = {**LIMITS[target], "size": size}

    found = of.enumerate(target, {"size": size})

    def passes(c):
        fits = target != "sm_90" or SHARED_BYTES[1](c, given) <= given["shared_limit"]
        return fits and all(CONSTRAINTS[r][1](c, given) for r in reasons)

    every = [dict(zip(of.knobs, values)) for values in itertools.product(*of.knobs.values())]
    assert list(found.configs) == [c for c in every if passes(c)]
    assert sum(found.rejected.values()) + len(found) == found.size == of.size == len(every)
    assert not found.sampled
    for c in rng.sample(every, min(20, len(every))):
        reason = of.refusal(target, {"size": size}, c)
        assert (reason == "") == passes(c)
        assert reason in ("", *reasons, "shared memory (closed form)")


def test_values_keep_their_types():
    of = Space("types", {"a": (None, 1), "b": (True, False), "c": ("x",), "d": (1.5,)})

    [first, *_] = of.enumerate("sm_80", {}).configs

    assert first == {"a": None, "b": True, "c": "x", "d": 1.5}
    assert of.refusal("sm_80", {}, first) == ""
    assert of.refusal("sm_80", {}, {**first, "b": 1}) == "b has no value 1"
    assert of.refusal("sm_80", {}, {"a": 1}) == "other knobs than the space has"


def test_a_sample_of_a_large_space():
    of = space()
    whole = of.enumerate("sm_90", {"bytes": 2})

    some, again = (of.enumerate("sm_90", {"bytes": 2}, cap=100, seed=3) for _ in range(2))
    other = of.enumerate("sm_90", {"bytes": 2}, cap=100, seed=4)

    assert some.sampled
    assert len(some) == 100
    assert some.configs == again.configs != other.configs
    assert all(c in whole.configs for c in some.configs)


def test_a_product_too_wide_to_form_is_sampled_on_the_way():
    of = Space("wide", {f"k{i}": tuple(range(10)) for i in range(12)}, {"even": "(k0 + k11) % 2 == 0"})

    found = of.enumerate("sm_90", {}, cap=1000)

    assert len(found) == 1000
    assert found.sampled
    assert found.size == 10**12
    assert 0.45 < found.rejected["even"] / 10**12 < 0.55
    assert all((c["k0"] + c["k11"]) % 2 == 0 for c in found.configs)


def test_fourteen_thousand_configurations_in_two_calls_each():
    knobs = {"BM": (16, 32, 64, 128, 256), "BN": (16, 32, 64, 128, 256), "BK": (16, 32, 64, 128, 256)}
    knobs |= {"num_warps": (1, 2, 4, 8, 16, 32), "num_stages": tuple(range(1, 8)), "G": (1, 2, 4, 8)}
    of = Space("large", knobs, {"tile": "BM*BN <= 32*num_warps*256"}, {"sm_90": SHARED["sm_90"]}, ("bytes",))
    of.enumerate("sm_90", {"bytes": 2})

    found, calls = counted(of.enumerate, "sm_90", {"bytes": 2})

    assert len(found) > 14_000
    assert calls < 2 * len(found)


def test_what_is_missing_is_named():
    with pytest.raises(UsageError, match="needs the sizes bytes"):
        space().enumerate("sm_90", {})
    with pytest.raises(UsageError, match="sm_70"):
        space().enumerate("sm_70", {"bytes": 2})


@pytest.mark.parametrize(
    "text",
    ["__import__('os').system('true')", "BM.__class__", "(lambda: 1)()", "open('x')", "BM; BN", "nobody > 1", "[1][0]"],
)
def test_constraints_are_read_not_run(text):
    with pytest.raises(FormulaError):
        Space("hostile", {"BM": (1,)}, {"bad": text}).enumerate("sm_90", {})


# The spaces beside the skeletons


TILED = ("linear_attention", "matrix_scan")
"""Families whose tiles are the sizes themselves: of one element there is no configuration."""


def some_of(configs):
    return random.Random(0).sample(configs, min(5, len(configs)))


@pytest.mark.parametrize("skeleton", families())
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_120"])
def test_spaces_beside_the_skeletons(skeleton, target):
    for name, of in spaces(skeleton).items():
        own = {"bytes": 2, "dk": 64, "dv": 64, "block": 0}
        some = 64 if skeleton in TILED else 1
        given = own | {s: some for s in of.sizes if s not in own}

        found = of.enumerate(target, given)

        assert found.configs, name
        assert of.kernels, "a space says whose it is"
        assert "num_warps" in of.knobs
        assert all(of.refusal(target, given, c) == "" for c in some_of(found.configs))
        assert set(families()[skeleton].spaces[name]) <= {"kernels", "knobs", "constraints", "shared", "sizes", "part"}


def test_hazards_refuse_configurations():
    of = Space("h", {"BM": (32, 64), "num_warps": (2, 4, 8)})
    configs = of.enumerate("sm_90", {}).configs

    narrow = refusals(of, {"narrowest": 32}, "sm_90", "3.6.0", configs)

    assert [bool(r) for r in narrow] == [c["num_warps"] == 4 for c in configs]
    assert set(refusals(of, {"narrowest": 64}, "sm_90", "3.6.0", configs)) == {""}
    assert set(refusals(of, {"narrowest": 32}, "sm_90", "3.9.0", configs)) == {""}
    assert set(refusals(of, {"narrowest": 32}, "sm_80", "3.6.0", configs)) == {""}
