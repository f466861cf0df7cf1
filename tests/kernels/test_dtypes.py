"""Region files of shipped specs in every dtype: what a fake tensor is told is what a run gives, and statistics, losses
and log-sum-exps are float32 at least."""

import re
from pathlib import Path

import pytest
import torch

from tests.campaign import some
from tests.kernels.emitted import Emitted
from weft import api
from weft.autotune.space.problems import region_dims, workload
from weft.autotune.workers.capture import recording
from weft.autotune.workers.cases import RegionCase
from weft.autotune.workers.launches import KernelFolder
from weft.codegen.build import files_of, temporary
from weft.ir.builder import Builder
from weft.ir.formula import parse
from weft.ir.library import LayerNorm
from weft.ir.types import Type, torch_dtype

SPECS = Path(__file__).parents[2] / "examples" / "specs"
WIDE = re.compile(r"(mean|rstd|lse|losses|loss)(_\d+)?")
NAMES = ("bert_base", "mistral_7b", "sru_pp_enwik8", "switch_base")


@pytest.fixture(scope="module", params=NAMES)
def package(request):
    planned = api.planned(api.open_spec(SPECS / f"{request.param}.yaml", small=True), True, "sm_90")
    return planned, Path(temporary(files_of(planned)))


def outputs(case, args):
    """What the wrapper gives with its launches left out, and what it says it would."""
    with recording("sm_90", case.kernels.root), case.configured({}, "sm_90"):
        made = case.run(args)
    said = case.module.empty(*args)
    return made, said if isinstance(said, tuple) else (said,)


def laid(x):
    """Dtype, sizes, and the strides of axes that have one."""
    return x.dtype, x.shape, [s for n, s in zip(x.shape, x.stride()) if n > 1]


@pytest.mark.parametrize("dtype", some(["f16", "bf16", "f32", "f64"], 2))
def test_fakes_are_runs_and_statistics_are_wide(package, dtype):
    planned, folder = package
    kernels, least = KernelFolder(folder / "kernels"), torch.float64 if dtype == "f64" else torch.float32
    for region in planned.kernels.regions:
        case = RegionCase(kernels, workload(region, folder / "kernels").params)
        sizes = {d: planned.sizes[d] for d in region_dims(region.graph)}
        made, said = outputs(case, case.inputs(sizes, "meta", dtype, 0))

        for v, a, b in zip(region.graph.outputs, made, said, strict=True):
            assert laid(a) == laid(b), f"{region.kernel} {v.name}"
            if len(case.floats) == 1 and v.type.floating:
                want = least if v.name in region.wide else torch_dtype(torch, dtype)
                assert v.name in region.wide or not WIDE.fullmatch(v.name), v.name
                assert a.dtype == want, f"{region.kernel} {v.name} is {a.dtype}"


def test_a_statistic_past_the_range_of_half_precision():
    g = Builder()
    x, w, b = (g.input(n, Type("f32", d)) for n, d in (("x", ("rows", "width")), ("w", ("width",)), ("b", ("width",))))
    made = Emitted(g.graph(g.one(LayerNorm("width", parse("1e-12")), x, w, b)), {"rows": 4, "width": 16}, runtime=())
    args = {"x": 2e-6 * torch.arange(64.0).reshape(4, 16), "w": torch.ones(16), "b": torch.zeros(16)}
    _, kept = made.forward({k: v.half() for k, v in args.items()}, torch.float16)

    assert kept["rstd"].dtype == torch.float32
    assert 65_504 < float(kept["rstd"].min()) < float("inf")
    assert kept["mean"].dtype == torch.float32
