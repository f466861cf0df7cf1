"""Random bits of the kernels are those of `weft.ir.formula.philox`, bit for bit: by index, and in a region."""

import pytest
import torch
import triton
import triton.language as tl

from tests.campaign import count
from tests.kernels.dual import interp
from tests.kernels.emitted import Emitted
from weft.codegen.skeletons.common import elementwise
from weft.ir.builder import Builder
from weft.ir.formula import parse
from weft.ir.formula import philox as truth
from weft.ir.library import Dropout
from weft.ir.reference import run
from weft.ir.types import Type

ALL = 0xFFFFFFFF
SEEDS = (0, 1, -1, 1234567890123456789, -(1 << 63), (1 << 63) - 1, 0xFFFFFFFF, 1 << 32)
NAMES = ((0, 0), (5, 3), (ALL, 1 << 31), (1 << 31, ALL))
BLOCK = 1024


@triton.jit
def by_index(AT, SEED, OP, LAYER, OUT, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    found = elementwise.bits24(tl.load(SEED), tl.load(OP), tl.load(LAYER), tl.load(AT + i))
    tl.store(OUT + i, found)


def scalars(*values: int) -> list[torch.Tensor]:
    return [torch.tensor(v) for v in values]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("op_id", "layer"), NAMES)
def test_bits_by_index(seed, op_id, layer):
    draw = torch.Generator().manual_seed(3)
    for _ in range(count(2, 40)):
        far = torch.randint(0, (1 << 63) - 1, (BLOCK // 2,), generator=draw)
        index = torch.cat([far, far >> torch.randint(0, 60, far.shape, generator=draw)])
        assert (index > 1 << 32).sum() > BLOCK // 2
        out = torch.empty(BLOCK, dtype=torch.int32)
        interp(by_index)[(1,)](index, *scalars(seed, op_id, layer), out, BLOCK)

        assert torch.equal(out.long(), truth.uniform(torch.tensor(seed), op_id, layer, index))


def test_the_bits_look_random():
    """All 24 of them, each close to half ones: a constant would equal itself in any layout."""
    found = truth.uniform(torch.tensor(7), 1, 2, torch.arange(1 << 14))
    ones = torch.stack([(found >> b & 1).double().mean() for b in range(24)])
    assert (ones - 0.5).abs().max() < 0.02
    assert len(found.unique()) > 0.99 * len(found)


@pytest.mark.parametrize("shared", [(), ("seq",)])
@pytest.mark.parametrize("layer", [0, 11])
def test_dropout_of_a_region(shared, layer):
    """What a region keeps is what the reference keeps, in both directions, wherever its tiles end."""
    dims, sizes = ("batch", "seq", "width"), {"batch": 3, "seq": 7, "width": 33}
    g = Builder()
    x = g.input("x", Type("f32", dims))
    seed, at = g.input("seed", Type("i64", ())), g.input("layer", Type("i64", ()))
    y = g.one(Dropout(parse("0.4"), 9, shared), g.map("x*sigmoid(x)", x=x, dtype="f32"), seed, at)
    made = Emitted(g.graph(g.map("y + x", y=y, x=x, dtype="f32")), sizes)
    args = {"x": torch.ones(3, 7, 33, dtype=torch.float64), "seed": torch.tensor(-5), "layer": torch.tensor(layer)}
    (got,), kept = made.forward(args)
    (back,) = made.gradients(args, kept, [torch.ones_like(got)])

    (want,) = run(made.graph, sizes, args, torch, torch.float64)
    assert any(r.kernel != "torch" for r in made.rows)
    assert torch.equal(got > 1, want > 1)
    assert torch.equal(back > 1, want > 1)
    assert 0.4 < float((got > 1).double().mean()) < 0.8
