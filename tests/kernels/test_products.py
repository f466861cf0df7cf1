"""Products and experts from graph to interpreted kernels, equal to autograd; and compiled ahead of time."""

from random import Random

import pytest
import torch

from tests.campaign import count
from tests.kernels.emitted import Emitted, check
from tests.kernels.product_regions import FAULTS, Experts, Products, faulty
from tests.kernels.sanitize import checked
from weft.passes.fusion.grouping import Region

OF = {"products": Products, "experts": Experts}


def refused(made: Emitted) -> list[tuple[str, Region]]:
    """Regions of several nodes that a product kernel should hold and does not."""
    mine = [r for r in made.rows if r.region.skeleton in ("matmul", "grouped_matmul") and len(r.region.nodes) > 1]
    return [(r.why, r.region) for r in mine if r.why]


@pytest.mark.parametrize("seed", range(count(8, 300)))
def test_products(seed):
    case = Products(seed)
    made = Emitted(case.graph, case.sizes, runtime=("batch", "seq") if seed % 2 else (), keep=seed % 3 > 0)

    assert check(made, case.args(seed)) < 1e-10
    if seed % 4 == 0:
        assert check(made, case.args(seed), torch.float32) < 1e-5
    assert refused(made) == []


@pytest.mark.parametrize("seed", range(count(5, 150)))
def test_experts(seed):
    case = Experts(seed)
    made = Emitted(case.graph, case.sizes, runtime=("batch",) if seed % 2 else (), keep=seed % 3 == 0)

    assert check(made, case.args(seed)) < 1e-10
    assert refused(made) == []
    files = made.kernels[2].files.values()
    if seed % 3:
        assert any("launch.slots(" in f.text for f in files)
    assert any("launch.weights(" in f.text for f in files)


@pytest.mark.parametrize("fault", Random(0).sample(FAULTS, count(3, len(FAULTS))), ids=lambda f: f[1])
def test_planted_faults_are_found(fault):
    """A fault of the writer is found by some of the first cases that have such a line."""
    of, name, old, new = fault
    tried = 0
    for seed in range(40):
        case = OF[of](seed)
        made = faulty(Emitted(case.graph, case.sizes, runtime=(), keep=False), old, new)
        if made is None:
            continue
        tried += 1
        if not passes(made, case.args(seed)):
            assert passes(Emitted(case.graph, case.sizes, runtime=(), keep=False), case.args(seed))
            return
        assert tried < 6, f"{name} is not found"
    pytest.fail(f"no case has the line of: {name}")


def passes(made: Emitted, args: dict[str, torch.Tensor]) -> bool:
    """Does it run, and right?"""
    try:
        with checked():
            return check(made, args) < 1e-8
    except Exception:
        return False
