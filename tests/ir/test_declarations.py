"""What ops declare of themselves, enumerated over all ops and executed: linearity, crossed dims, kinds of work.

Roles, and what adds up by `linear`, are executed in `test_roles`."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import pytest
import torch

from tests.ir.test_roles import MODELS, alone, distinct, nodes, one
from tests.models import EPS, SIZES, f32, fill, i64
from weft.ir.all_ops import OPS
from weft.ir.builder import Builder
from weft.ir.formula import parse
from weft.ir.library import (
    Convolve,
    ConvolveWeights,
    CrossEntropy,
    DecayedProduct,
    DecayedProductGrad,
    Dropout,
    ExpertProduct,
    ExpertWeights,
    FromStatistics,
    LayerNorm,
    LongConvolve,
    LongConvolveKernel,
    Places,
    Powers,
    RMSNorm,
    Rotary,
    RotaryBack,
    Softmax,
    SoftmaxGrad,
    UnitInverse,
    WithStatistics,
)
from weft.ir.ops.chunks import Chunk, Unchunk
from weft.ir.ops.op import KINDS, body_of, kind, op_name
from weft.ir.ops.primitives import Einsum, Loop, Opaque, OpaqueGrad, Scatter
from weft.ir.ops.regions import Fused
from weft.ir.reference import run
from weft.ir.types import Graph, Node, Type
from weft.passes.derivative import joint

DENSE = Convolve("key", "seq", "gate", ("batch", "seq", "inner"), 2)
EACH = Convolve("key", "seq", "gate", ("batch", "seq", "width"), placed=True)
ROWS, NORM, LOSS = f32("batch seq width"), LayerNorm("width", EPS), CrossEntropy("vocab")
PLACES = f32("batch seq head")
MODULE = Opaque("mixer", (f32("batch out"),), ("weight", "bias"))
MODULES = {"mixer": torch.nn.Linear(SIZES["width"], SIZES["out"])}
WEIGHTS = f32("out width"), f32("out")


def body(*formulas: str) -> Graph:
    """Formulas over x and y of one dim as a graph."""
    g = Builder()
    x, y = g.input("x", f32("width")), g.input("y", f32("width"))
    return g.graph(*(g.map(f, x=x, y=y, to="width") for f in formulas))


def stirred() -> Loop:
    """A loop whose body mixes along a dim that its results have: c = c w w^T + x."""
    g = Builder()
    c, x, w = g.input("c", f32("batch out")), g.input("x", f32("batch out")), g.input("w", f32("out width"))
    mixed = g.einsum(g.einsum(c, w, to="batch width"), w, to="batch out")
    return Loop("seq", g.graph(g.map("c + x", c=mixed, x=x)), 1)


EXTRA: tuple[Node, ...] = (
    one(Softmax("width"), ROWS),
    one(SoftmaxGrad("width"), ROWS, ROWS),
    one(RMSNorm("width", EPS), ROWS, f32("width")),
    one(WithStatistics(NORM), ROWS, f32("width"), f32("width")),
    one(FromStatistics(NORM, 3), ROWS, f32("width"), f32("width"), f32("batch seq"), f32("batch seq"), ROWS),
    one(WithStatistics(LOSS), f32("batch vocab"), i64("batch")),
    one(FromStatistics(LOSS, 2), f32("batch vocab"), i64("batch"), f32("batch"), f32("batch")),
    one(Dropout(parse("0.1"), 1), ROWS, i64(), i64()),
    one(Rotary("seq", "head"), f32("batch seq heads head")),
    one(RotaryBack(Rotary("seq", "head")), f32("batch seq heads head")),
    one(DENSE, f32("batch key width"), f32("gate width inner")),
    one(EACH, f32("batch key width"), f32("gate width"), i64("batch seq")),
    one(replace(EACH, later=True), f32("batch key width"), f32("gate width"), i64("batch key")),
    one(ConvolveWeights(DENSE, ("gate", "width", "inner")), f32("batch key width"), f32("batch seq inner")),
    one(ExpertProduct("router", ("batch", "seq", "inner")), ROWS, f32("router width inner"), i64("batch seq")),
    one(ExpertWeights("router", ("router", "width", "inner")), ROWS, f32("batch seq inner"), i64("batch seq")),
    one(Places("seq", documents=True), i64("batch seq")),
    one(Places("seq", True, True), i64("batch seq"), Type("bool", ("batch", "seq")), *(i64("batch") for _ in range(3))),
    one(DecayedProduct("seq", "key", ("head",)), PLACES, f32("batch key head"), PLACES),
    one(DecayedProductGrad("seq", "key", ("head",)), PLACES, f32("batch key head"), PLACES, f32("batch seq key")),
    one(UnitInverse("seq", "key", "place"), f32("batch seq key")),
    one(Powers("gate"), f32("width")),
    one(Powers("gate"), f32("heads head"), f32("heads head")),
    one(LongConvolve("seq", "key"), f32("batch width seq"), f32("width seq")),
    one(LongConvolve("seq", "key", True), f32("batch width seq"), f32("width seq")),
    one(LongConvolveKernel("seq", "key", ("width", "seq")), f32("batch width seq"), f32("batch width seq")),
    one(Chunk("seq", "gate", "capacity"), ROWS),
    one(Unchunk("gate", "capacity", "seq"), f32("batch gate capacity width")),
    one(MODULE, f32("batch width"), *WEIGHTS),
    one(OpaqueGrad(MODULE, 3, (True,)), f32("batch width"), *WEIGHTS, f32("batch out")),
    one(stirred(), f32("batch out"), f32("batch seq out"), f32("out width")),
    one(Fused("kernel", body("x*y", "x + y")), f32("width"), f32("width")),
)


def every() -> Iterator[Node]:
    """Nodes of the models' joint graphs, as they are, opened and inside loops, and those of ops that no model has."""
    for make in MODELS.values():
        yield from nodes(joint(make()))
        yield from distinct(make)
    yield from EXTRA


NODES = list({(n.op, n.types): n for n in every()}.values())


def test_every_op_is_looked_at():
    assert {op_name(type(n.op)) for n in NODES} == set(OPS)


def values(n: Node, seed: int) -> list[torch.Tensor]:
    return list(fill(torch, alone(n), seed).values())


def ran(n: Node, args: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return run(alone(n), SIZES, args, torch, torch.float64, MODULES)


def linear_in_holds(n: Node, group: tuple[int, ...]) -> None:
    """f(a) + f(b) = f(a + b) for all results, operands outside the group held fixed. Raises AssertionError."""
    a, b = values(n, 1), values(n, 2)
    other = [b[i] if i in group else x for i, x in enumerate(a)]
    both = [x + b[i] if i in group else x for i, x in enumerate(a)]
    for x, y, z in zip(*(ran(n, args) for args in (a, other, both)), strict=True):
        torch.testing.assert_close(x + y, z, rtol=1e-9, atol=1e-9)


@dataclass(frozen=True)
class WrongGroup(Einsum):
    """Claims to be linear in its operands taken together."""

    def linear_in(self, operands: int):
        return (tuple(range(operands)),)


def test_a_wrong_group_is_caught():
    n = one(WrongGroup(("batch",)), f32("batch seq"), f32("seq"))
    with pytest.raises(AssertionError, match="not close"):
        linear_in_holds(n, *n.op.linear_in(2))


def test_every_result_is_linear_in_the_groups_that_ops_declare():
    seen = set[str]()
    for n in NODES:
        for group in n.op.linear_in(len(n.ins)):
            assert group, "a claim about no operand says nothing"
            if all(n.ins[i].type.floating for i in group):
                linear_in_holds(n, group)
                seen.add(op_name(type(n.op)))
    assert seen == {
        *("einsum", "map", "reduce", "gather", "scatter", "rename", "concat", "part", "detach", "chunk", "unchunk"),
        *("decayed_product_grad", "grad", "softmax_grad", "rotary_back", "from_statistics"),
        *("convolve", "convolve_weights", "long_convolve", "long_convolve_kernel"),
    }


def local(n: Node, dim: str) -> None:
    """No element of the results needs elements of the operands at another coordinate of dim. Raises AssertionError."""
    a, b, at = values(n, 1), values(n, 2), SIZES[dim] // 2
    changed = list(a)
    for i, v in enumerate(n.ins):
        if dim in v.dims:
            changed[i] = a[i].clone()
            changed[i].select(v.dims.index(dim), at).copy_(b[i].select(v.dims.index(dim), at))
    for v, x, y in zip(n.outs, ran(n, a), ran(n, changed), strict=True):
        if dim in v.dims:
            left = [i for i in range(SIZES[dim]) if i != at]
            x, y = (z.index_select(v.dims.index(dim), torch.tensor(left)) for z in (x, y))
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9, equal_nan=True)


def inside(n: Node) -> Sequence[Node]:
    """The nodes of what an op means or runs."""
    graph = n.op.opened(n.types) or body_of(n.op)
    return graph.nodes if graph else ()


def moved(n: Node, dim: str) -> bool:
    """Has the dim another name somewhere inside, so that nothing is said of it by this one?"""
    return dim in n.op.moves() or any(moved(m, dim) for m in inside(n))


def not_crossed(n: Node) -> list[str]:
    """Dims of operands along which the op says that it needs no other element."""
    return [d for d in n.space if d not in n.op.crossed(n) and not moved(n, d) and any(d in v.dims for v in n.ins)]


def test_no_result_needs_other_elements_along_what_is_not_crossed():
    seen = set[str]()
    for n in NODES:
        for dim in not_crossed(n):
            local(n, dim)
            seen.add(op_name(type(n.op)))
    without_operands, crossing_all = {"table", "block_table"}, {"opaque", "opaque_grad"}
    assert set(OPS) - seen == without_operands | crossing_all | {"route"}


@dataclass(frozen=True)
class Shallow(Loop):
    """Knows of its own dim alone."""

    def crossed(self, node: Node):
        return frozenset((self.dim,))


@dataclass(frozen=True)
class Blind(Scatter):
    """Forgets what it adds up."""

    def crossed(self, node: Node):
        return frozenset(self.at)


@pytest.mark.parametrize(
    ("node", "dims"),
    [
        (one(Shallow(**vars(stirred())), f32("batch out"), f32("batch seq out"), f32("out width")), {"out", "width"}),
        (one(Blind(("vocab",), ("vocab", "width")), ROWS, i64("batch seq")), {"batch", "seq"}),
    ],
    ids=lambda x: type(x.op).__name__ if isinstance(x, Node) else "",
)
def test_a_dim_that_is_crossed_in_silence_is_caught(node: Node, dims: set[str]):
    for dim in dims:
        assert dim in not_crossed(node)
        with pytest.raises(AssertionError, match="not close"):
            local(node, dim)


@pytest.mark.parametrize("name", KINDS)
def test_nodes_are_of_the_kind_that_they_say(name: str):
    """What a kind promises, in what is executed above or counted: see KINDS."""
    own = [n for n in NODES if kind(n) == name]
    assert own
    for n in own:
        assert promised(name, n), f"{op_name(type(n.op))} on {n.types} is {name}"


def factors(n: Node) -> int:
    """Float operands in each of which all results are linear, by execution."""
    found = 0
    for i in (i for i, v in enumerate(n.ins) if v.type.floating):
        with suppress(AssertionError):
            linear_in_holds(n, (i,))
            found += 1
    return found


def promised(name: str, n: Node) -> bool:
    kinds = {kind(m) for m in inside(n)}
    match name:
        case "view":
            args = values(n, 1)
            return n.op.shows and ran(n, args)[0].data_ptr() == args[0].data_ptr()
        case "pointwise":
            return not n.op.crossed(n) and kinds <= {"pointwise", "view"}
        case "rowwise":
            return bool(n.op.crossed(n)) or n.outs[0].dims != n.ins[0].dims  # or it permutes
        case "scatter":
            return bool(n.op.crossed(n))
        case "contraction" | "grouped" | "product":
            shared = set(n.outs[0].dims).intersection(*(v.dims for v in n.ins))
            same = name == "product" or bool(shared) == (name == "grouped")
            return same and bool(n.op.crossed(n)) and factors(n) >= 2
        case "attention":
            return sum(kind(m) in ("contraction", "grouped", "product") for m in inside(n)) >= 2
        case "scan":
            return isinstance(n.op, Loop) and kinds == {"pointwise"}
        case "matrix_scan":
            return isinstance(n.op, Loop) and bool(kinds & {"contraction", "grouped", "product", "rowwise"})
        case "chunked":
            row = n.op.attrs()["row"]
            return any(isinstance(m.op, Loop) and m.op.dim == row for m in inside(n))  # from place to place
        case "memory":
            return n.op.flops(n) == 0
        case "region":
            return body_of(n.op) is not None
        case _:
            return name == "composite"
