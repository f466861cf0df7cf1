"""Work within chunks, from graph to kernels: interpreted, equal to autograd; compiled ahead of time for all targets."""

import pytest

from tests.campaign import SOAK
from tests.kernels.emitted import Emitted, check
from tests.kernels.product_compile import compiled
from tests.kernels.test_regions import draw
from weft.autotune.space.problems import spaces
from weft.codegen.skeletons.common.writer.wrapper import Why
from weft.codegen.skeletons.linear_attention.writer.space import MOST, default, held
from weft.ir.builder import Builder
from weft.ir.library import DecayedProduct, UnitInverse
from weft.ir.types import Graph, Type

LEAD = ("batch", "heads", "chunks")
SMALL = {"batch": 1, "heads": 2, "chunks": 2, "chunk": 5, "row": 5, "sum": 5, "key": 3}
PUBLISHED = {"batch": 8, "heads": 8, "chunks": 64, "chunk": 64, "row": 64, "sum": 64, "key": 64}


def within() -> Graph:
    """The inverse of 1 - M, M a product through decays."""
    g = Builder()
    w, k, a = (g.input(n, Type("f32", (*LEAD, place, "key"))) for n, place in zip("wka", ("chunk", "row", "chunk")))
    m = g.one(DecayedProduct("chunk", "row", ("key",)), w, k, g.map("sigmoid(a)", a=a, to=a.dims, dtype="f32"))
    return g.graph(g.one(UnitInverse("chunk", "row", "sum"), m))


def test_regions():
    made = Emitted(within(), SMALL, runtime=("batch", "chunks"))

    assert check(made, draw(made.graph, SMALL, 0, 0.5)) < 1e-10
    mine = [r.kernel for r in made.rows if r.region.skeleton == "linear_attention"]
    assert len(set(mine)) == 3
    assert "torch" not in mine


def test_a_chunk_that_no_program_holds_is_torch_ops():
    long = {**SMALL, "batch": 1, "heads": 1, "chunks": 1} | dict.fromkeys(("chunk", "row", "sum"), MOST + 1)
    rows = Emitted(within(), long, runtime=()).rows

    assert {r.why for r in rows if r.region.skeleton == "linear_attention"} == {str(Why.CHUNK)}


@pytest.mark.parametrize("levels", range(4, 8))
def test_defaults_are_of_the_space(levels: int):
    known, places = spaces("linear_attention"), 1 << levels
    for backward in (False, True):
        sizes = {"places": places, "tiles": held(levels, backward)}
        for keyed, name in ((True, "decayed_product"), (False, "unit_inverse")):
            config = default(keyed)["sm_90"]["bf16"]
            assert known[name].refusal("sm_90", sizes, config) == ""


@pytest.mark.skipif(not SOAK, reason="the compiler takes seconds for each, in the soak")
@pytest.mark.parametrize("arch", ["sm_90", "sm_80", "sm_120"])
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_nothing_spills(arch: str, dtype: str):
    """At the shapes of the examples, chunks of 64 places and 64 keys."""
    built = compiled(Emitted(within(), PUBLISHED), arch, dtype, "linear_attention")

    assert len(built) == 3
    assert all(b.fits for b in built)
    assert [b.stack for b in built if arch == "sm_90"] == [0] * (3 * (arch == "sm_90"))
