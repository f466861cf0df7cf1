"""Inspection without a package: what is asked of the compilers, and what is made of their answers."""

from dataclasses import replace
from types import SimpleNamespace

from tests.autotune.samples import FOLDER
from tests.autotune.test_staging import products
from weft.autotune import inspection
from weft.autotune.gates.features import occupancy
from weft.autotune.inspection import Recorded, compiled
from weft.autotune.workers.compile_pool import CompilePool
from weft.ir.builder import Builder
from weft.ir.types import Type
from weft.targets import LIMITS


def test_equal_launches_are_compiled_once():
    [(_, big)] = products("sm_90", 1, seed=5)
    one = replace(big, options={**big.options, "num_stages": 1})
    asked = [Recorded("k00", "matmul", one), Recorded("k01", "matmul", one), Recorded("k02", "matmul", big)]
    with CompilePool(FOLDER, 1) as compilers:
        first, second, third = compiled(asked, compilers, "sm_90")

        assert compilers.spent["compile"].jobs == 2
    assert first.fits
    assert not third.fits  # what Triton compiles and a GPU would not launch
    assert third.shared > LIMITS["sm_90"]["shared_limit"]
    assert (first.kernel, second.kernel) == ("k00", "k01")
    assert first.data() == {**second.data(), "kernel": "k00"}
    assert first.dots > 0
    assert first.wgmma + first.mma > 0
    assert first.occupancy == occupancy(first.regs, first.shared, first.warps, "sm_90") > 0


def test_a_wrapper_that_cannot_be_run_has_its_reason(tmp_path):
    """The folder holds no such kernel: the host says so, and the next region is asked all the same."""
    g = Builder()
    graph = g.graph(g.map("x + x", x=g.input("x", Type("f32", ("n",))), to=["n"], dtype="f32"))
    regions = [SimpleNamespace(kernel=f"k0{k}_none", skeleton="pointwise", graph=graph, wide=()) for k in range(2)]
    planned = SimpleNamespace(sizes={"n": 8}, kernels=SimpleNamespace(regions=regions))

    found = inspection.record(planned, tmp_path, "sm_90")

    assert [r.launch for r in found] == [None, None]
    assert all(r.reason.startswith("the wrapper cannot be run: ") for r in found)


def test_registers_are_handed_out_by_quarters():
    assert occupancy(168, 0, 4, "sm_90") == 3
    assert occupancy(104, 0, 2, "sm_90") == 8  # 9 by the whole of them, but each quarter holds 4 warps
    assert occupancy(32, 116_000, 4, "sm_90") == 1
    assert occupancy(32, 115_000, 4, "sm_90") == 2
