"""Configurations of the attention kernels: defaults that compile without spilling, spaces that hold them, refusals."""

import importlib
import itertools
import random
from unittest.mock import patch

import pytest
import torch

from tests.campaign import SOAK, count
from tests.kernels.aot import SHARED
from tests.kernels.attention_compile import PATTERNS, compiled, staged
from tests.kernels.emitted import Emitted, check
from weft.autotune.space.hazards import refusals
from weft.autotune.space.problems import given, spaces
from weft.codegen.skeletons.attention.writer.hazards import widths
from weft.codegen.skeletons.attention.writer.space import SIDES, WIDEST, configurations, default, pairs
from weft.codegen.skeletons.common.writer.wrapper import Why
from weft.ir.builder import Builder
from weft.ir.formula import parse
from weft.ir.library.attention import Attend
from weft.ir.pattern import Pattern
from weft.ir.types import Type
from weft.targets import ARCHS, KERNEL_DTYPES

KERNELS = ("forward", "delta", "dkdv", "dq")
DIMS = (16, 48, 64, 72, 80, 96, 112, 128, 160, 192, 256)
FOUND = spaces("attention")
SPILL = {("sm_80", "dkdv"): 24, ("sm_80", "forward"): 24, ("sm_80", "dq"): 8, ("sm_120", "dkdv"): 48}
"""Bytes of stack that the most demanding of the patterns below may take; none on sm_90."""


def facts(dim: int, dtype: str, block: int = 0) -> dict[str, int]:
    tiles = widths(dim)
    return {
        "bytes": 4 if dtype == "f32" else 2, "dk": sum(tiles), "dv": sum(tiles), "narrowest": min(tiles),
        "tiles": len(tiles), "block": block, "whole": int(dim % 16 == 0),
    }  # fmt: skip


# Defaults


@pytest.mark.parametrize("block", [0, 16, 32, 48, 64, 128])
def test_defaults_lie_in_their_spaces(block):
    for target, dtype, kernel, dim, drops in itertools.product(ARCHS, KERNEL_DTYPES, KERNELS, DIMS, {False, not block}):
        space, config = FOUND[f"attention_{kernel}"], default(kernel, target, dtype, dim, dim, block, drops)
        known = facts(dim, dtype, block)

        assert space.refusal(target, known, config) == "", (target, dtype, kernel, dim, config)
        for version in ("3.6.0", "3.9.0"):
            assert refusals(space, known, target, version, [config]) == [""], (target, dtype, kernel, dim, config)


def test_a_region_has_every_target_and_dtype():
    for side, kernels in SIDES.items():
        found = configurations(side, 64, 128)
        assert set(found) == set(ARCHS)
        assert all(set(own) == set(KERNEL_DTYPES) for own in found.values())
        assert all(tuple(one) == kernels for own in found.values() for one in own.values())
    assert default("forward", "sm_90", "bf16", 64, 128) == default("forward", "sm_90", "bf16", 128, 128)
    with pytest.raises(ValueError, match=f"272: at most {WIDEST}"):
        default("dq", "sm_90", "bf16", 272, 64)


TABLE = [
    (target, dtype, kernel, dim, pattern)
    for target, dtype, kernel, dim in itertools.product(SHARED, KERNEL_DTYPES, ("forward", "dkdv", "dq"), DIMS)
    for pattern in (("causal", "window", "band", "dense") if dtype == "bf16" else ("window",))
]
QUICK = [
    ("sm_90", "bf16", "forward", 128, "window"), ("sm_90", "bf16", "dkdv", 256, "causal"),
    ("sm_80", "f16", "dq", 64, "window"), ("sm_120", "bf16", "dkdv", 64, "window"),
]  # fmt: skip


@pytest.mark.parametrize(("target", "dtype", "kernel", "dim", "pattern"), TABLE if SOAK else QUICK)
def test_defaults_compile_without_spills(target, dtype, kernel, dim, pattern):
    config = default(kernel, target, dtype, dim, dim)
    grouped = {"G": 4} if pattern == "window" else {}
    for built in compiled(kernel, config, target, dim, dtype, pattern, PREC="ieee", **grouped):
        assert built.fits, built
        assert built.stack <= SPILL.get((target, kernel), 0), built
        if dtype != "f32":
            assert built.wgmma or target != "sm_90", built
            assert built.wgmma or built.mma or target == "sm_100", built


@pytest.mark.parametrize("dim", DIMS if SOAK else (128,))
@pytest.mark.parametrize("target", SHARED if SOAK else ["sm_90"])
def test_delta_compiles(target, dim):
    for dtype in KERNEL_DTYPES if SOAK else ("bf16",):
        [built] = compiled("delta", default("delta", target, dtype, dim, dim), target, dim, dtype)
        assert built.fits
        assert built.stack == 0


# Spaces


def test_spaces_are_read_from_the_data():
    assert {s.part: s.kernels for s in FOUND.values()} == {k: (k,) for k in KERNELS}
    assert {(m, n) for s in FOUND.values() if "BN" in s.knobs for m in s.knobs["BM"] for n in s.knobs["BN"]} == set(
        pairs()
    )
    for kernel, target in itertools.product(KERNELS, ARCHS):
        found = FOUND[f"attention_{kernel}"].enumerate(target, facts(128, "bf16"))
        assert 10 < len(found) < 1000, (kernel, target, len(found))


def test_blocks_divide_those_of_a_static_set():
    found = FOUND["attention_dq"].enumerate("sm_90", facts(64, "bf16", 48))

    assert {(c["BM"], c["BN"]) for c in found} == {(16, 16)} == set(pairs(48))
    assert pairs(8) == []


def drawn(rng: random.Random, target: str) -> tuple[str, dict, int, str, str]:
    """A kernel, any configuration of its space, a head dim, a dtype and a pattern."""
    kernel, dtype = rng.choice(("forward", "dkdv", "dq")), rng.choice(("bf16", "bf16", "f32"))
    dim, space = rng.choice((32, 64, 80, 96, 128, 192, 256)), FOUND[f"attention_{kernel}"]
    while True:
        config = {k: rng.choice(v) for k, v in space.knobs.items()}
        small = dtype != "f32" or config["BM"] * config["BN"] * dim <= 1 << 17
        if small and 128 * config["num_warps"] <= config["BM"] * config["BN"] <= 4096 * config["num_warps"]:
            return kernel, config, dim, dtype, rng.choice(tuple(PATTERNS))


@pytest.mark.parametrize("seed", range(count(3, 240)))
def test_the_closed_form_of_shared_memory_is_a_lower_bound(seed):
    target = ("sm_80", "sm_90", "sm_120")[seed % 3]
    kernel, config, dim, dtype, pattern = drawn(random.Random(seed), target)
    bound = FOUND[f"attention_{kernel}"].bound(target, facts(dim, dtype), config)
    found = staged(kernel, config, target, dim, dtype, pattern)

    assert 0 < bound <= found, (kernel, target, config, dim, dtype, pattern, bound, found)


# Regions


def region(head: int, pattern: str = "causal and window(20)", n: int = 64) -> Emitted:
    g, query = Builder(), ("batch", "seq", "kv", "group", "head")
    q = g.input("q", Type("f32", query))
    k = g.input("k", Type("f32", ("batch", "key", "kv", "head")))
    v = g.input("attention", Type("f32", ("batch", "key", "kv", "own")))  # a name that the file needs itself
    sizes = {"batch": 1, "seq": n, "key": n, "kv": 1, "group": 2, "head": head, "own": head}
    attend = Attend("head", "key", "seq", Pattern.parse(pattern), parse("1/sqrt(n_head)"), heads=("kv", "group"))
    return Emitted(g.graph(g.many(attend, q, k, v)[0]), sizes, runtime=())


@pytest.mark.parametrize(
    ("head", "pattern", "why"),
    [(272, "causal", Why.WIDE), (768, "all", Why.WIDE), (16, "blocks(8, [[0], [1]])", Why.LAYOUT)],
)
def test_what_no_kernel_holds_is_refused_with_a_reason(head, pattern, why):
    rows = region(head, pattern, 16).rows

    assert {(r.kernel, r.why) for r in rows if r.region.skeleton == "attention"} == {("torch", why)}


@pytest.mark.parametrize("seed", range(count(3, 60)))
def test_a_region_is_right_with_any_configuration_of_its_space(seed):
    rng = random.Random(seed)
    pattern = rng.choice(
        ("causal", "all", "causal and window(20)", "longformer(9, 9, 2)", "blocks(32, [[0, 0], [0, 1]])")
    )
    made, config = region(16, pattern), {}
    known = given(made.graph, made.sizes, "f64") | {"bytes": 4}
    for kernel in KERNELS:
        space = FOUND[f"attention_{kernel}"]
        config[kernel] = rng.choice(space.enumerate("sm_90", known).configs)
    host = importlib.import_module(made.ops.__name__.removesuffix("ops") + "host")
    args = {v.name: torch.randn([made.sizes[d] for d in v.dims]) for v in made.graph.inputs}

    with patch.object(host, "config", lambda name, like: config):
        assert check(made, args) < 1e-10, (pattern, config)
