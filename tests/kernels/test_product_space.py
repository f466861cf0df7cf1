"""Products compiled ahead of time: defaults are of the space, fit, do not spill on sm_90, and use its tensor cores."""

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from tests.campaign import SOAK, count
from tests.kernels.aot import Built
from tests.kernels.emitted import Emitted
from tests.kernels.product_compile import compiled
from tests.kernels.product_regions import Experts, Products
from weft.autotune.space.problems import spaces
from weft.codegen.skeletons.matmul.writer.space import ARCHS, FEW, SOME, default

ALIGNED = {"batch": 8, "seq": 64, "heads": 4, "head": 64, "width": 128, "inner": 256, "experts": 8, "capacity": 16}
KINDS = ("matmul", "grouped_matmul")


def blocks(seeds: int) -> Iterator[Emitted]:
    """Generated blocks at sizes that 16 divides."""
    for seed in range(seeds):
        for case in (Experts(seed), Products(seed))[: 1 + SOAK]:
            yield Emitted(case.graph, {**case.sizes, **ALIGNED}, runtime=("batch", "seq"), keep=seed % 2 > 0)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("tiles", [1, FEW + 1, SOME + 1])
def test_defaults_are_of_the_space(arch, tiles):
    for kind in KINDS:
        (space,) = spaces(kind).values()
        for dtype, config in default(tiles)[arch].items():
            assert space.refusal(arch, {"bytes": 4 if dtype == "f32" else 2}, config) == ""


@pytest.mark.parametrize("arch", ["sm_90", "sm_80", "sm_120"] if SOAK else ["sm_90"])
@pytest.mark.parametrize("dtype", ["bf16", "f32"] if SOAK else ["bf16"])
def test_defaults_compile(arch, dtype):
    """On sm_90 none spills, and every 16-bit product is one of its tensor cores."""
    seen = 0
    for made in blocks(count(1, 12)):
        for kind in KINDS:
            for built in compiled(made, arch, dtype, kind):
                assert built.fits, built
                if arch == "sm_90":
                    assert built.stack == 0, built
                    assert (built.wgmma > 0) == (dtype != "f32"), built
                elif dtype != "f32":
                    assert built.mma > 0, built
                seen += 1
    assert seen >= 3


def test_shared_memory_is_bounded_from_below():
    """The closed form refuses nothing that fits: no kernel takes less, whatever the alignment."""
    rng = Random(0)
    (space,) = spaces("matmul").values()
    for seed in range(count(1, 40)):
        case = rng.choice((Products, Experts))(seed)
        made = Emitted(case.graph, {**case.sizes, **(ALIGNED if seed % 2 else {})}, runtime=())
        config = {"BM": rng.choice((32, 64)), "BN": rng.choice((32, 128)), "BK": rng.choice((16, 32)), "GROUP": 8}
        config |= {"num_warps": 4, "num_stages": rng.choice((2, 3))}
        arch = rng.choice(("sm_80", "sm_90", "sm_120"))
        for built in tried(made, arch, config)[:2]:
            assert built.shared >= space.bound(arch, {"bytes": 2}, config), (built, config)


def tried(made: Emitted, arch: str, config: dict[str, Any]) -> list[Built]:
    """The products of a block in one configuration."""
    return [b for kind in KINDS for b in compiled(made, arch, "bf16", kind, config)]
