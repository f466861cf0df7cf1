"""Maps and reductions of broadcast operands against torch, in fp64 under the checks, and in the other dtypes."""

from types import SimpleNamespace

import pytest
import torch

from tests.campaign import count, some
from tests.kernels import pointwise_faults as suite
from tests.kernels.mutate import missed
from tests.kernels.pointwise_faults import Case, case
from tests.kernels.space import too_rough
from weft.codegen.skeletons.pointwise import kernel as kernels


@pytest.mark.parametrize("seed", range(count(15, 1000)))
def test_maps_and_their_gradients(seed):
    assert case(SimpleNamespace(pointwise=kernels), seed) == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(count(4, 100)))
def test_rounding(seed, dtype):
    this = Case(seed, dtype)
    truth, theirs = ([*a, *b] for a, b in (this.reference(torch.float64), this.reference(dtype)))
    got = [*this.forward(kernels), *this.backward(kernels)]

    assert [too_rough(*x) for x in zip(got, theirs, truth, strict=True)] == [""] * 5


def test_planted_faults_are_found():
    faults = some(suite.FAULTS, 2)

    assert missed(suite, faults, suite.CASES) == []
