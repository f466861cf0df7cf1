"""Fusion: the search against every set partition, the legality rules one by one, one verdict per adjacent pair."""

import random
from dataclasses import replace
from functools import partial

import sympy as sp

from tests.campaign import count
from tests.passes.blocks import GENERATED, PARAMS, SIZES, floats, generated, gpt
from tests.passes.test_downsets import acyclic, set_partitions
from weft.codegen.skeletons import rows
from weft.ir.builder import Builder
from weft.ir.derive import joint
from weft.ir.graphs import dce
from weft.ir.library import LayerNorm
from weft.ir.ops.primitives import Einsum, Scatter
from weft.ir.types import Graph, Type
from weft.passes.fusion import grouping as fusing
from weft.passes.fusion.downsets import bits
from weft.passes.fusion.grouping import Fusion, _Search
from weft.passes.fusion.legality import Reason, Work
from weft.passes.fusion.price import Prices
from weft.passes.recompute import modes, split
from weft.targets import find

BIG = {"batch": 1, "seq": 2048, "key": 2048, "width": 1024, "heads": 16, "head": 64, "inner": 4096}
PRICES = Prices(BIG, find("sm_90"))
SKELETONS = rows()
fuse = partial(fusing.fuse, skeletons=SKELETONS)


def fusion(graph: Graph, prices: Prices) -> Graph:
    """The graph with what fusion decides on it."""
    return fusing.grouped(graph, fuse(graph, prices))


def groups(found: Fusion) -> list[tuple[str, ...]]:
    return [r.nodes for r in found.regions]


def verdict(found: Fusion, a: str, b: str):
    (v,) = (v for v in found.verdicts if (v.producer, v.consumer) == (a, b))
    return v


def test_a_transformer_block():
    found = fuse(gpt(), PRICES)
    assert found.exact
    assert groups(found) == [
        ("norm1",),
        ("einsum",),
        ("einsum_1",),
        ("einsum_2",),
        ("mixed",),
        ("einsum_3",),
        ("middle", "norm2"),
        ("einsum_4",),
        ("active", "einsum_5", "y"),
    ]
    assert [r.skeleton for r in found.regions][3:] == ["matmul", "attention", "matmul", "rowwise", "matmul", "matmul"]
    assert (found.regions[8].before, found.regions[8].after) == (("active",), ("y",))
    assert found.regions[5].src == "spec.yaml:9"
    assert found.seconds < found.unfused
    assert verdict(found, "norm1", "einsum").reason is Reason.ROW_PROLOGUE
    assert verdict(found, "middle", "norm2").fused
    assert verdict(found, "einsum_3", "middle").reason is Reason.VENDOR
    assert verdict(found, "einsum_3", "middle").microseconds > 0
    assert "the vendor's product is ahead" in str(verdict(found, "einsum_4", "active"))
    assert verdict(found, "einsum", "mixed").reason is Reason.TWO_CORES
    assert verdict(found, "middle", "y").reason is Reason.PATH_OUTSIDE


def test_every_adjacent_pair_has_one_verdict_and_every_node_one_region():
    j = joint(gpt(), ("x", *PARAMS))
    for kept in modes(j, 1, PRICES, PARAMS).values():
        for half in (split(j, 1, kept).forward, split(j, 1, kept).backward):
            found, work = fuse(half, PRICES), Work(half, PRICES, SKELETONS)
            pairs = [(work.name(i), work.name(k)) for k in range(len(work.nodes)) for i in bits(work.dag.preds[k])]
            assert [(v.producer, v.consumer) for v in found.verdicts] == pairs
            assert sorted(n for r in found.regions for n in r.nodes) == sorted(n.outs[0].name for n in work.nodes)
            home = {n: r.id for r in found.regions for n in r.nodes}
            for v in found.verdicts:
                assert v.fused == (home[v.producer] == home[v.consumer])
                assert v.fused == (v.reason is None)


def brute(search: _Search) -> int:
    n = len(search.work.nodes)
    priced = ([search.price(g) for g in p] for p in set_partitions(list(range(n))) if acyclic(search.work.dag.preds, p))
    return min(sum(p) for p in priced if None not in p)


def test_prices_equal_brute_force_on_generated_blocks():
    tried = 0
    for seed in range(count(sample=40, soak=150)):
        rng = random.Random(seed)
        g = generated(rng, rng.randint(3, 5))
        sizes = {"row": rng.choice([64, 100, 4096]), "col": rng.choice([96, 1024])}
        prices = Prices(sizes, find(rng.choice(["cpu", "sm_90"])))
        search = _Search(g, prices, SKELETONS, 10**6)
        if len(search.work.nodes) > 8:
            continue
        tried += 1
        assert round(search.run().seconds * 10**12) == brute(search), seed
    assert tried > count(sample=20, soak=100)


def test_nodes_that_some_legal_group_holds_together_are_searched_together():
    blocks = [gpt(), *(generated(random.Random(s), 6) for s in range(12))]
    for g in blocks:
        search = _Search(g, Prices(BIG | GENERATED, find("sm_90")), SKELETONS, 10**6)
        work, mates = search.work, search.mates
        for group in range(1, 1 << min(11, len(work.nodes))):
            if group & (group - 1) and work.refuse(group) is None:
                members = list(bits(group))
                assert all(mates.may[a] >> b & 1 for a in members for b in members if a != b)


def reason(g: Graph, a: str, b: str, **sizes: int) -> Reason | None:
    return verdict(fuse(g, Prices(BIG | sizes, find("sm_90"))), a, b).reason


def two(first, second) -> Graph:
    """A block of two nodes, `a` then `b`."""
    g = Builder()
    x = g.input("x", floats("batch seq width"))
    a = first(g, x)
    second(g, a)
    return g.graph(*g.nodes[-1].outs)


def matmul(name: str, to: str, w: str):
    return lambda g, x: g.one(Einsum(tuple(to.split())), x, g.input(f"w_{name}", floats(w)), names=[name])


def pointwise(name: str, to: str = "batch seq width", dtype: str = "f32"):
    return lambda g, x: g.map("tanh(x)", x=x, to=to, dtype=dtype, names=[name])


def norm(name: str):
    def build(g: Builder, x):
        weights = (g.input(f"{name}_{i}", floats(x.dims[-1])) for i in "wb")
        return g.one(LayerNorm(x.dims[-1], sp.Rational(1, 1000)), x, *weights, names=[name])

    return build


def test_reasons():
    up = matmul("a", "batch seq inner", "width inner")
    assert reason(two(up, matmul("b", "batch seq width", "inner width")), "a", "b") is Reason.CHAINED_CORES
    assert reason(two(up, norm("b")), "a", "b") is Reason.ROW_OF_TILE
    assert reason(two(up, norm("b")), "a", "b", inner=64) is Reason.ROW_OF_TILE
    assert reason(two(norm("a"), matmul("b", "batch seq inner", "width inner")), "a", "b") is Reason.ROW_PROLOGUE
    assert reason(two(up, pointwise("b", "batch seq inner heads")), "a", "b") is Reason.OTHER_SPACE
    assert reason(two(pointwise("a"), pointwise("b")), "a", "b") is None
    assert reason(two(pointwise("a"), pointwise("b", "batch seq width heads")), "a", "b") is Reason.OTHER_SPACE
    assert reason(two(norm("a"), lambda g, x: g.reduce(x, to="width")), "a", "reduce") is Reason.OTHER_ROWS
    picked = two(pointwise("a"), lambda g, x: g.gather(x, g.input("i", Type("i64", ("heads",))), at="seq"))
    assert reason(picked, "a", "gather") is Reason.NO_SKELETON


def sharing(*outputs: str) -> Graph:
    """Maps a and b before a product c of both, or of one with a weight; d after it; which of them are wanted."""
    g = Builder()
    x, u, w = (g.input(n, floats(d)) for n, d in (("x", "seq width"), ("u", "inner width"), ("w", "width inner")))
    a, b = g.map("tanh(x)", x=x, names=["a"]), g.map("tanh(u)", u=u, names=["b"])
    one, both = g.einsum(a, w, to="seq inner"), g.einsum(a, b, to="seq inner")
    half = g.map("w*2 + 1", w=g.input("v", floats("inner")), names=["half"])
    made = {"a": a, "one": one, "both": both, "half": half}
    made["d"] = g.map("c + h", c=one, h=half, to="seq inner", names=["d"])
    return dce(g.graph(*(made[n] for n in outputs)))


def refused(g: Graph, *names: str, **sizes: int) -> Reason | None:
    """Why a group of nodes is no kernel."""
    work = Work(g, Prices(BIG | sizes, find("sm_90")), SKELETONS)
    no = work.refuse(sum(1 << i for i in range(len(work.nodes)) if work.name(i) in names))
    return no.reason if no else None


def test_what_a_product_holds():
    assert refused(sharing("d"), "a", "einsum", "half", "d") is None
    assert refused(sharing("both"), "a", "einsum_1") is None
    assert refused(sharing("both"), "a", "b", "einsum_1") is Reason.TWO_PROLOGUES
    assert refused(sharing("d", "a"), "a", "einsum", "d") is Reason.LEAVES  # others read a
    assert refused(sharing("d", "half"), "einsum", "half", "d") is Reason.OTHER_SPACE  # half is stored, it has no rows


def experts(seen: bool = False) -> Graph:
    """Tokens sent to experts, a gated product of them, its weights' gradients from `d`."""
    g = Builder()
    x = g.input("x", floats("batch seq width"))
    expert, place = (g.input(n, Type("i64", ("batch", "seq"))) for n in ("expert", "place"))
    to = ("batch", "experts", "capacity", "width")
    sent = g.one(Scatter(("experts", "capacity"), to), x, expert, place, names=["sent"])
    own = g.map("x + 1", x=sent, names=["own"]) if seen else sent
    weights = [g.input(n, floats("experts width inner")) for n in ("wg", "wu")]
    gate, up = (
        g.one(Einsum(("batch", "experts", "capacity", "inner")), own, w, names=[n])
        for n, w in zip(("gate", "up"), weights)
    )
    hidden = g.map("gelu(gate)*up", gate=gate, up=up, names=["hidden"])
    return g.graph(hidden, sent) if seen else g.graph(hidden)


def test_what_a_grouped_product_holds():
    group = ("sent", "gate", "up", "hidden")
    sizes = {"experts": 8, "capacity": 8}
    assert refused(experts(), *group, **sizes) is None
    assert refused(experts(True), *group, "own", **sizes) is Reason.NO_HOLE  # a map of empty slots
    assert refused(experts(True), *group[1:], "own", **sizes) is None
    few = fuse(experts(), Prices(BIG | sizes, find("sm_90")))
    assert groups(few) == [group]  # the weights' bytes bound it
    assert few.regions[0].before == ("sent",)
    nbytes = 4 * (2048 * 1024 + 2 * 8 * 1024 * 4096 + 8 * 8 * 4096) + 2 * 8 * 2048
    assert abs(few.seconds - (nbytes / 3.35e12 / 0.7 + 3 * 4e-6)) < 1e-8  # with two launches for the slots' tokens
    assert groups(fuse(experts(), Prices(BIG | sizes | {"capacity": 256}, find("sm_90"))))[0] == ("sent",)  # FLOPs


def test_the_vendors_lead_is_the_reason_where_a_product_stays_alone():
    """At a ratio of 1 the pair is fused; the lead of a large product is more than what its epilogue saves."""
    g = two(matmul("a", "batch seq inner", "width inner"), pointwise("b", "batch seq inner"))
    even = tuple(replace(s, ratio=1.0) for s in SKELETONS)
    prices = Prices(BIG | {"width": 16384}, find("sm_90"))
    assert verdict(fuse(g, prices, skeletons=even), "a", "b").fused
    assert verdict(fuse(g, prices), "a", "b").reason is Reason.VENDOR
    assert verdict(fuse(g, PRICES), "a", "b").fused is (fuse(g, PRICES).regions[0].nodes == ("a", "b"))
    decided = next(d for d in fusion(g, prices).decisions if d.subject == "a+b")
    assert decided.rejected[0][:2] == ("fused", str(Reason.VENDOR))


def test_a_prologue_is_computed_again_for_each_tile_of_columns():
    formula = "exp(tanh(x)) * sigmoid(x) + tanh(x * x)"
    for inner, fused in ((512, True), (32768, False)):
        g = two(lambda g, x: g.map(formula, x=x, names=["a"]), matmul("b", "batch seq inner", "width inner"))
        found = verdict(fuse(g, Prices(BIG | {"inner": inner}, find("sm_90"))), "a", "b")
        assert found.fused == fused
        assert fused or found.reason is Reason.SLOWER


def test_one_reading_of_a_shared_operand():
    found = fuse(gpt(), Prices(BIG | {"seq": 128, "key": 128}, find("sm_90")))
    one = found.regions[1]
    assert one.nodes == ("einsum", "einsum_1", "einsum_2")
    x, w = 4 * 128 * 1024, 4 * 1024 * 1024
    assert one.bytes == x + 3 * (w + x)  # norm1 once, three weights, three results


def test_decisions_are_written_on_the_graph():
    g = fusion(gpt(), Prices(SIZES, find("cpu")))
    assert g == gpt()
    found = {d.subject: d for d in g.decisions}
    assert found["middle+norm2"].choice in ("fused", "rowwise")
    apart = next(d for d in g.decisions if d.subject == "norm1+einsum")
    assert apart.choice == "apart"
    assert apart.rejected[0][1] == str(Reason.ROW_PROLOGUE)


def test_sixteen_bit_values_that_stay_in_registers_change_the_rounding():
    g = fusion(two(pointwise("a", dtype="bf16"), pointwise("b")), PRICES)
    assert {d.subject: d.kind for d in g.decisions if d.choice == "fused"} == {"a+b": "numerics"}
