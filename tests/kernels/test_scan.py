"""Recurrences against torch, in fp64 under the checks, and in the other dtypes."""

from types import SimpleNamespace

import pytest
import torch

from tests.campaign import count, some
from tests.kernels import scan_faults as suite
from tests.kernels.mutate import missed
from tests.kernels.scan_faults import Case, case
from tests.kernels.space import too_rough
from weft.codegen.skeletons.scan import kernel as scan

MODULES = SimpleNamespace(scan=scan)


@pytest.mark.parametrize("seed", range(count(15, 1000)))
def test_recurrences_and_their_gradients(seed):
    assert case(MODULES, seed) == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(count(3, 100)))
def test_rounding(seed, dtype):
    this = Case(seed, dtype)
    truth, theirs = this.reference(torch.float64), this.reference(dtype)

    assert [too_rough(*x) for x in zip(this.run(MODULES), theirs, truth, strict=True)] == [""] * len(truth)


def test_planted_faults_are_found():
    faults = some(suite.FAULTS, 2)

    assert missed(suite, faults, suite.CASES) == []
