"""A dispatch for each kind of product: the text after, the same values, where it does not fire; it is never kept."""

import torch

from weft.ir.builder import Builder
from weft.ir.derive import joint
from weft.ir.ops.primitives import Einsum, Scatter
from weft.ir.reference import run
from weft.ir.text import show
from weft.ir.types import Graph, Type
from weft.ir.verify import verify
from weft.passes.dispatch import dispatched
from weft.passes.fusion.price import Prices
from weft.passes.recompute import modes
from weft.targets import find

SIZES = {"batch": 2, "seq": 5, "experts": 3, "capacity": 2, "width": 4, "inner": 3}


def sent(also: bool = False) -> Graph:
    """Tokens sent to experts, and read by two products of one kind and one of another."""
    g = Builder()
    x = g.input("x", Type("f32", ("batch", "seq", "width")))
    routing = [g.input(n, Type("i64", ("batch", "seq"))) for n in ("expert", "place")]
    slots = ("batch", "experts", "capacity")
    d = g.one(Scatter(slots[1:], (*slots, "width")), x, *routing, names=["sent"])
    w = [g.input(n, Type("f32", ("experts", "width", "inner"))) for n in ("w0", "w1")]
    made = [g.one(Einsum((*slots, "inner")), d, v, names=[f"h{j}"]) for j, v in enumerate(w)]
    made.append(g.one(Einsum(("experts", "width", "inner")), d, made[0], names=["dw"]))
    return g.graph(*made, *([d] if also else []))


def test_each_kind_of_product_has_its_own():
    before = sent()
    after = verify(dispatched(before))
    lines = [line.strip() for line in show(after).split("\n")]

    assert [line.split(":")[0] for line in lines if "scatter(" in line] == ["sent", "sent_1"]
    assert any(line.startswith("h0:") and "einsum(sent," in line for line in lines)
    assert any(line.startswith("h1:") and "einsum(sent," in line for line in lines)
    assert any(line.startswith("dw:") and "einsum(sent_1," in line for line in lines)
    args = {v.name: torch.randn([SIZES[d] for d in v.dims]) for v in before.inputs if v.type.floating}
    args |= {"expert": torch.tensor([[0, 1, 2, 0, 0]] * 2), "place": torch.tensor([[0, 0, 0, 1, 2]] * 2)}
    results = zip(run(before, SIZES, args, torch), run(after, SIZES, args, torch))
    assert all(torch.equal(a, b) for a, b in results)


def test_it_does_not_fire():
    for g in (sent(also=True), dispatched(sent())):
        assert dispatched(g) == g


def test_what_was_sent_is_gathered_again_in_every_mode():
    j = joint(sent(), ("x", "w0", "w1"))
    found = modes(j, 3, Prices(SIZES | {"inner": 64}, find("sm_90")), ("w0", "w1"))

    assert found
    assert not any("sent" in kept for kept in found.values())
