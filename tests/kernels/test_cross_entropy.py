"""Cross-entropy against torch, in fp64 under the checks, and in the other dtypes."""

from types import SimpleNamespace

import pytest
import torch

from tests.campaign import SOAK, count, some
from tests.kernels import cross_entropy_faults as suite
from tests.kernels.cross_entropy_faults import Case, case
from tests.kernels.emitted import Emitted, check
from tests.kernels.mutate import missed
from tests.kernels.product_compile import compiled
from tests.kernels.space import too_rough
from tests.kernels.test_regions import draw
from weft.autotune.space.problems import spaces
from weft.codegen.skeletons.cross_entropy import kernel as cross_entropy
from weft.codegen.skeletons.cross_entropy.writer.space import DEFAULT, LONG
from weft.ir.builder import Builder
from weft.ir.library import CrossEntropy
from weft.ir.types import Graph, Type

MODULES = SimpleNamespace(cross_entropy=cross_entropy)


@pytest.mark.parametrize("seed", range(count(15, 1000)))
def test_loss_and_gradient(seed):
    assert case(MODULES, seed) == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(count(8, 100)))
def test_rounding(seed, dtype):
    this = Case(seed, dtype)
    got, truth, theirs = this.run(MODULES), this.reference(torch.float64), this.reference(dtype)

    assert [too_rough(*x) for x in zip(got, theirs, truth)] == [""] * len(got)


def test_planted_faults_are_found():
    faults = some(suite.FAULTS, 2)

    assert missed(suite, faults, suite.CASES) == []


def head(kind: str, ignore: int | None = None) -> Graph:
    """A loss of logits as they are, scaled on the way in, or with a map of its rows."""
    g = Builder()
    x, y = g.input("x", Type("f32", ("batch", "seq", "vocab"))), g.input("y", Type("i64", ("batch", "seq")))
    if kind != "plain":
        b = g.input("b", Type("f32", ("vocab",)))
        x = g.map("x*w + b", x=x, w=g.input("w", Type("f32", ())), b=b, to=x.dims, dtype="f32")
    loss = g.one(CrossEntropy("vocab", ignore=ignore), x, y, names=["losses"])
    return g.graph(g.map("2*l + 1", l=loss) if kind == "rows" else loss)


@pytest.mark.parametrize(("kind", "ignore"), [("plain", None), ("scaled", 2), ("rows", None)])
def test_emitted_losses_over_long_vocabularies(kind, ignore):
    graph, sizes = head(kind, ignore), {"batch": 2, "seq": 3, "vocab": LONG + 27}
    args = draw(graph, sizes, 0) | {"y": torch.tensor([[0, 2, LONG + 26], [5, LONG, 7]])}
    made = Emitted(graph, sizes, runtime=("batch",), keep=False)

    assert check(made, args) < 1e-10
    files = made.kernels[2].files.values()
    assert any("launch.loss(" in f.text for f in files)
    short = Emitted(graph, {**sizes, "vocab": 33}, runtime=("batch",), keep=False).kernels[2].files.values()
    assert not any("launch.loss(" in f.text for f in short)  # one tile, read once


@pytest.mark.parametrize("vocab", [50_257, 256_000] if SOAK else [50_257])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_120"] if SOAK else ["sm_90"])
def test_losses_compile_without_spills(arch, vocab):
    made = Emitted(head("scaled"), {"batch": 8, "seq": 1024, "vocab": vocab}, runtime=("batch", "seq"))
    built = compiled(made, arch, "bf16", "rowwise")

    assert len(built) >= 2
    assert all(b.fits and not b.stack for b in built), built


def test_the_default_is_of_the_space():
    (space,) = spaces("cross_entropy").values()

    assert space.refusal("sm_90", {}, DEFAULT) == ""
