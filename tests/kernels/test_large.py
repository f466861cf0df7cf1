"""Operands past 2^31 elements and grids past 65,535, on tensors without memory."""

from pathlib import Path

import pytest
import torch

from tests.kernels.emitted import Emitted
from weft import api
from weft.autotune.space.problems import region_dims, workload
from weft.autotune.workers.capture import recording
from weft.autotune.workers.cases import RegionCase
from weft.autotune.workers.launches import KernelFolder
from weft.codegen.build import files_of, temporary
from weft.codegen.skeletons.attention.launch import grid
from weft.ir.builder import Builder
from weft.ir.formula import parse, symbol
from weft.ir.library import Attend
from weft.ir.pattern import Pattern
from weft.ir.types import Type

SPECS = Path(__file__).parents[2] / "examples" / "specs"
ROUTED = ("expert", "place")  # read by torch, which makes a table of tokens for the kernel


def launches(case, args):
    with recording("sm_90", case.kernels.root) as found, case.configured({}, "sm_90"):
        case.run(args)
    return found


def wide_index(launch):
    """Does a launch count in int64?"""
    place = list(launch.signature).index("IDX")
    return dict(launch.constants)[place,] == {"dtype": "int64"}


def spread(x):
    """The same tensor as a view of a far larger one."""
    return x.as_strided(x.shape, [s * (1 + (1 << 32) // x.numel()) for s in x.stride()])


@pytest.mark.parametrize("name", ["mistral_7b", "sru_pp_enwik8", "switch_base"])
def test_every_operand_counts_for_the_index(name):
    """Whichever operand is past 2^31, also one that only a hole reads, a launch that reads it counts in int64."""
    planned = api.planned(api.open_spec(SPECS / f"{name}.yaml", small=True), True, "sm_90")
    folder = Path(temporary(files_of(planned))) / "kernels"
    for region in planned.kernels.regions:
        if region.skeleton == "attention":  # its bases are int64 in the kernels; within a block see Launch.index
            continue
        case = RegionCase(KernelFolder(folder), workload(region, folder).params)
        args = case.inputs({d: planned.sizes[d] for d in region_dims(region.graph)}, "meta", "bf16", 0)
        assert not any(map(wide_index, launches(case, args)))
        for i, v in enumerate(region.graph.inputs):
            if isinstance(args[i], torch.Tensor) and args[i].numel() > 1 and not v.name.startswith(ROUTED):
                found = launches(case, (*args[:i], spread(args[i]), *args[i + 1 :]))
                assert any(map(wide_index, found)), f"{region.kernel} {v.name}"


def test_attention_of_many_sequences_lies_along_one_axis():
    g = Builder()
    q, k, v = (
        g.input(n, Type("f32", ("batch", s, "heads", "head"))) for n, s in (("q", "seq"), ("k", "key"), ("v", "key"))
    )
    op = Attend(
        "head", "key", "seq", Pattern.parse("causal and strided(4)"), parse("1/sqrt(n_head)"), symbol("s"), ("heads",)
    )
    sizes = {"batch": 20_000, "seq": 16, "key": 16, "heads": 2, "head": 16}
    made = Emitted(g.graph(*g.many(op, q, k, v)[:1]), sizes, runtime=("batch",))
    kernels = KernelFolder(made.ops.FOLDER)
    seen = set()
    for region in made.kernels[2].files.values():
        case = RegionCase(kernels, workload(region, kernels.folder).params)
        for launch in launches(case, case.inputs(sizes, "meta", "bf16", 0)):
            if launch.module.startswith(".attention"):
                seen.add(launch.function)
                assert launch.grid[0] >= 20_000 * 2
                assert tuple(launch.grid[1:]) in ((), (1, 1))

    assert seen >= {"forward", "dq", "dkdv", "delta"}
    with pytest.raises(ValueError, match="make the batch smaller"):
        grid(64, 64, 1 << 20)
