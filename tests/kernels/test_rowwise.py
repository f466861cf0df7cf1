"""Norms and softmax with a residual prologue against torch, in fp64 under the checks, and in the other dtypes."""

from types import SimpleNamespace

import pytest
import torch

from tests.campaign import count, some
from tests.kernels import rowwise_faults as suite
from tests.kernels.mutate import missed
from tests.kernels.rowwise_faults import Case, case
from tests.kernels.space import too_rough
from weft.codegen.skeletons.pointwise import kernel as pointwise
from weft.codegen.skeletons.rowwise import kernel as rowwise

MODULES = SimpleNamespace(rowwise=rowwise, pointwise=pointwise)


@pytest.mark.parametrize("seed", range(count(15, 1000)))
def test_rows_and_their_gradients(seed):
    assert case(MODULES, seed) == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(count(8, 100)))
def test_rounding(seed, dtype):
    this = Case(seed, dtype)
    truth, theirs = ([*a, *b] for a, b in (this.reference(torch.float64), this.reference(dtype)))
    shown = 4 if this.kind in ("softmax", "plain") else 6  # those have no w and b

    assert [too_rough(*x) for x in zip(this.run(MODULES), theirs, truth, strict=True)][:shown] == [""] * shown


def test_planted_faults_are_found():
    faults = some(suite.FAULTS, 2)

    assert missed(suite, faults, suite.CASES) == []
