"""Linear recurrences within chunks against torch, in fp64 under the checks, and in the other dtypes."""

from types import SimpleNamespace

import pytest
import torch

from tests.campaign import count, some
from tests.kernels import linear_attention_faults as suite
from tests.kernels.linear_attention_faults import Case, case
from tests.kernels.mutate import missed
from tests.kernels.space import too_rough
from weft.codegen.skeletons.linear_attention import kernel as linear_attention

MODULES = SimpleNamespace(linear_attention=linear_attention)


@pytest.mark.parametrize("seed", range(count(4, 400)))
def test_chunks_and_their_gradients(seed: int):
    assert case(MODULES, seed) == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(count(1, 60)))
def test_rounding(seed: int, dtype: torch.dtype):
    this = Case(seed, dtype)
    got, truth, theirs = this.run(MODULES), this.reference(torch.float64), this.reference(dtype)

    assert [too_rough(*x) for x in zip(got, theirs, truth, strict=True)] == [""] * len(got)


def test_planted_faults_are_found():
    faults = some(suite.FAULTS, 2)

    assert missed(suite, faults, suite.CASES) == []
