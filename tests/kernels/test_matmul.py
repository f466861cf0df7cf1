"""Products with maps in front and behind against torch, in fp64 under the checks, and in the other dtypes."""

from types import SimpleNamespace

import pytest
import torch

from tests.campaign import count, some
from tests.kernels import matmul_faults as suite
from tests.kernels.matmul_faults import Case, case
from tests.kernels.mutate import missed
from tests.kernels.space import too_rough
from weft.codegen.skeletons.matmul import kernel as matmul

MODULES = SimpleNamespace(matmul=matmul)


@pytest.mark.parametrize("seed", range(count(15, 1000)))
def test_products_and_their_gradients(seed):
    assert case(MODULES, seed) == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(count(6, 100)))
def test_rounding(seed, dtype):
    this = Case(seed, dtype)
    truth, theirs = this.reference(torch.float64), this.reference(dtype)
    got, sums = this.forward(MODULES)

    assert [too_rough(*x) for x in zip(got, theirs[0], truth[0], strict=True)] == [""] * len(got)
    # few values, each the sum of many roundings: torch's error may be small by chance
    assert [too_rough(*x, times=5) for x in zip(sums, theirs[1], truth[1], strict=True)] == [""] * len(sums)


def test_planted_faults_are_found():
    faults = some(suite.FAULTS, 2)

    assert missed(suite, faults, suite.CASES) == []
