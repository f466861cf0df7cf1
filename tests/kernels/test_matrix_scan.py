"""Recurrences of small matrices: the kernel against torch under the checks, and regions of them against autograd."""

from random import Random
from types import SimpleNamespace

import pytest
import torch

from tests.campaign import SOAK, count, some
from tests.kernels import matrix_scan_faults as suite
from tests.kernels.emitted import Emitted, check
from tests.kernels.matrix_scan_faults import Case, case
from tests.kernels.mutate import missed
from tests.kernels.product_compile import compiled
from tests.kernels.space import too_rough
from tests.kernels.test_regions import draw
from tests.passes.recurrences import drawn, program, recurrence
from weft.autotune.space.problems import spaces
from weft.codegen.skeletons.matrix_scan import kernel as matrix_scan
from weft.codegen.skeletons.matrix_scan.writer.space import default
from weft.ir.builder import Builder
from weft.ir.ops.matrix_cell import matrix_cell
from weft.ir.ops.regions import Loop
from weft.ir.types import Graph, Type
from weft.passes.chunk.chunk import chunk

MODULES = SimpleNamespace(matrix_scan=matrix_scan)
SIZES = {"batch": 2, "heads": 2, "chunks": 3, "chunk": 5, "key": 3, "value": 4}
PUBLISHED = {"batch": 8, "heads": 8, "chunks": 64, "chunk": 64, "key": 64, "value": 64}


@pytest.mark.parametrize("seed", range(count(4, 400)))
def test_recurrences(seed: int):
    assert case(MODULES, seed) == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(count(1, 60)))
def test_rounding(seed: int, dtype: torch.dtype):
    this = Case(seed, dtype)
    got, truth, theirs = this.run(MODULES), this.reference(torch.float64), this.reference(dtype)

    assert [too_rough(*x) for x in zip(got, theirs, truth, strict=True)] == [""] * len(got)


def test_planted_faults_are_found():
    assert missed(suite, some(suite.FAULTS, 2), suite.CASES) == []


def delta(decay: str) -> Graph:
    """The loop from chunk to chunk of a delta rule, its decay over dims besides the chunk's."""
    g, b = Builder(), Builder().body()
    of = {"w": decay, "x": "chunk key", "y": "chunk value", "k": "chunk key"}
    start = g.input("start", Type("f32", ("batch", "heads", "key", "value")))
    outer = [g.input(n, Type("f32", ("batch", "heads", "chunks", *own.split()))) for n, own in of.items()]
    state = b.input("state", start.type)
    w, x, y, k = (b.input(v.name, v.type.but(d for d in v.dims if d != "chunks")) for v in outer)
    read = b.einsum(x, state, to=("batch", "heads", "chunk", "value"))
    v = b.map("r + y", r=read, y=y, to=read.dims, dtype="f32")
    added = b.einsum(k, v, to=state.dims)
    after = b.map("w*s + a", w=w, s=state, a=added, to=state.dims, dtype="f32")
    return g.graph(*g.loop("chunks", b.graph(after, v), 1, start, *outer)[:3])


@pytest.mark.parametrize("decay", some(["key", "", "value", "key value"], 1))
def test_regions(decay: str):
    """Forward and derivative of the delta rule's loop are a kernel each."""
    made = Emitted(delta(decay), SIZES, runtime=("batch", "chunks"))

    assert check(made, draw(made.graph, SIZES, 0)) < 1e-10
    assert [bool(r.why) for r in made.rows if r.region.skeleton == "matrix_scan"] == [False, False]


@pytest.mark.parametrize("seed", range(430, 430 + count(1, 110)))
def test_generated_recurrences(seed: int):
    """Of tensors, in chunks or step by step: their kernels, forward and backward, are the reference."""
    rng = Random(seed)
    of = program(drawn(rng).block, chunk=rng.choice([1, 2, 3, 4, 4, 8]))
    graph, sizes = chunk(recurrence(of)), of.resolve(seq=rng.choice([1, 5, 8, 9, 9]))
    made = Emitted(graph, sizes, runtime=(), keep=seed % 2 == 0)

    assert check(made, draw(graph, sizes, seed, 0.7)) < 1e-10


def test_which_dims_a_program_holds():
    forward, backward = (
        next(n for n in half.nodes if isinstance(n.op, Loop)) for half in Emitted(delta(""), SIZES, runtime=()).halves
    )
    one, other = (matrix_cell(n.op.body, n.op.carries) for n in (forward, backward) if isinstance(n.op, Loop))

    assert one is not None
    assert other is not None
    assert (one.lanes, one.divided) == (("batch", "heads"), "value")
    assert (other.lanes, other.divided) == (("batch",), "heads") or other.divided == ""


@pytest.mark.parametrize("side", [16, 32, 64, 128])
def test_defaults_are_of_the_space(side: int):
    known = spaces("matrix_scan")
    for name, config in (("matrix_scan", default(side, 0)), ("matrix_scan_whole", default(0, side * side))):
        found = config["sm_90"]["bf16"]
        assert known[name].refusal("sm_90", {"side": side, "area": side * side}, found) == ""


@pytest.mark.skipif(not SOAK, reason="the compiler takes seconds for each, in the soak")
@pytest.mark.parametrize("arch", ["sm_90", "sm_80", "sm_120"])
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_nothing_spills(arch: str, dtype: str):
    """At the shapes of the examples; of f32 the forward, as its derivative holds five matrices of 64 x 64."""
    built = compiled(Emitted(delta(Random(0).choice(["", "key"])), PUBLISHED), arch, dtype, "matrix_scan")

    assert len(built) == 2
    assert all(b.fits for b in built)
    if arch == "sm_90":
        assert built[0].stack == 0
        assert built[1].stack == 0 or dtype == "f32"
