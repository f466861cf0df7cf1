"""A mesh in a plan: what is split whatever it is called, one device's share, and the collectives of what is emitted."""

from collections import Counter
from itertools import product
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from tests.campaign import some
from weft import api
from weft.codegen.plan import explain
from weft.codegen.plan.mesh import cut
from weft.errors import InfeasibleError, UsageError
from weft.frontends.blocks import Block
from weft.frontends.blocks.recurrence import CellAttention
from weft.frontends.lower.program import lower
from weft.frontends.schema import Model
from weft.frontends.schema_values import Size
from weft.ir.placement import collectives

SPECS = Path(__file__).parents[2] / "examples" / "specs"
DIMS = {"batch": 4, "seq": 32, "width": 16, "heads": 4, "head": 4, "inner": 64, "vocab": 64, "experts": 4, "layers": 2}


def planned(mesh, *blocks, sets=(), memory=None, dims=None, **keys):
    parts = {f"b{i}": b for i, b in enumerate(blocks)}
    stack = [{"repeat": "layers", "layer": [*parts]}]
    spec = {"name": "tiny", "dims": DIMS | (dims or {}), "blocks": parts, "stack": stack, **keys}
    return api.plan(Model.model_validate(spec), sets, target="sm_90", memory=memory, mesh=mesh)


def per_layer(plan, axis="tp"):
    """Collectives of the layer's own values, by half."""
    rows = [c for c in plan["mesh"]["collectives"] if c["block"] == "layer" and c["axis"] == axis]
    return Counter((c["side"].split(",")[0], c["kind"]) for c in rows if c["dims"][-1] == "width")


ATTENTION = {"kind": "attention", "pattern": "causal"}
MLP = {"kind": "mlp"}
MEGATRON = {("forward", "all_reduce"): 2, ("backward", "all_reduce"): 2}


BLOCKS = product(
    ["pre", "post"], [True, False], [{}, {"kv_heads": 2}], [{}, {"rotary": True}, {"pattern": "window(4)"}]
)


@pytest.mark.parametrize(("residual", "bias", "kv", "more"), some(BLOCKS, 6))
def test_a_layer_takes_two_all_reduces_forward_and_two_backward(residual, bias, kv, more):
    """Shoeybi et al. 2019, section 3."""
    block = ATTENTION | kv | more | {"bias": bias}
    plan = planned("tp=2", block, MLP | {"bias": bias, "gated": not bias}, sublayer={"residual": residual})

    assert per_layer(plan) == MEGATRON


@pytest.mark.parametrize(("own", "backward"), [(True, 2), (False, 1)])
def test_sub_layers_beside_each_other_are_added_before_they_are_reduced(own, backward):
    """One all-reduce forward; backward one a norm, of which each is nonlinear in what it normalises."""
    parts = [{"block": "b0"}, {"block": "b1"}]
    layer = {"parallel": parts} | ({} if own else {"norm": "layer_norm"})
    plan = planned("tp=2", ATTENTION, MLP, stack=[{"repeat": "layers", "layer": [layer]}])

    assert per_layer(plan) == {("forward", "all_reduce"): 1, ("backward", "all_reduce"): backward}


@pytest.mark.parametrize("name", some(["gpt2_345m", "bert_base", "mistral_7b", "sparse_transformer_enwik8"], 2))
def test_shipped_layers_take_four(name):
    plan = api.plan(SPECS / f"{name}.yaml", small=True, target="sm_90", mesh="tp=2")

    assert per_layer(plan) == MEGATRON


def test_what_is_recomputed_is_sent_again():
    free = planned("tp=2", ATTENTION, MLP)
    tight = planned("tp=2", ATTENTION, MLP, memory=free["memory"]["smallest"])

    assert {x["mode"] for x in tight["layers"] if x["block"] == "layer"} != {"save"}
    assert per_layer(tight)["backward", "all_reduce"] > 2
    assert all(c["times"] == 2 for c in free["mesh"]["collectives"] if c["block"] == "layer")


@pytest.mark.parametrize(
    ("sizes", "split"),
    [
        (("inner", 40), {"inner", "inner_2"}),
        (("a", "b"), {"a", "b"}),
        (("4*width", "5*width", "6*width"), {"inner", "inner_2", "inner_3"}),
    ],
)
def test_hidden_sizes_are_split_whatever_they_are_called(sizes, split):
    plan = planned("tp=2", *({"kind": "mlp", "inner": n} for n in sizes), dims={"a": 24, "b": 48})

    assert set(plan["mesh"]["dims"]["tp"]) == split | {"vocab"}
    assert per_layer(plan) == {("forward", "all_reduce"): len(sizes), ("backward", "all_reduce"): len(sizes)}


CELL = {"inputs": ["u"], "state": {"c": 0.0}, "update": {"c": "c + u"}, "output": "next(c)"}
NEEDS = {
    "attention": {"pattern": "causal", "heads": 32, "kv_heads": 4, "head": 4},
    "moe": {"capacity_factor": 1.5, "experts": 4, "inner": 48},
    "recurrence": CELL | {"projection": {"rank": 32, "heads": 2}},
    "block_recurrence": {"window": 8, "states": 4, "heads": 32, "head": 4, "inner": 48},
    "tensor_recurrence": {"inputs": {"u": []}, "state": {"c": []}, "update": {"c": "c + u"}, "output": "next(c)"},
}
"""What a block of a kind is given beside the size in question."""


def sizes_in(part, *where):
    """The keys of a part of the language that are sizes, each with its path."""
    hints = get_type_hints(part, include_extras=True)
    return [(*where, k) for k, t in hints.items() if k in part.model_fields and (t == Size or Size in get_args(t))]


MINTED = [
    (kind, *path)
    for part in get_args(get_args(Block)[0])
    for kind in [part.model_fields["kind"].default]
    for path in sizes_in(part) + (sizes_in(CellAttention, "projection") if kind == "recurrence" else [])
    if (kind, *path) != ("block_recurrence", "window")  # what a model's memory keeps: all blocks have the same
]


GROUPS = {"experts": 64, "groups": 32, "groups_kept": 2}
"""What experts in groups are given."""


def block_of(kind, path, size):
    block = {"kind": kind} | NEEDS.get(kind, {})
    if path[-1] == "capacity":
        block.pop("capacity_factor")
    if path[-1].startswith("groups"):
        block |= GROUPS
    *inner, last = path
    return block | ({inner[0]: block[inner[0]] | {last: size}} if inner else {last: size})


def split_sizes(*blocks):
    """What each axis splits in a model of these blocks, in sizes, and the collectives of its forward."""
    parts = {f"b{i}": b for i, b in enumerate((*blocks, {"kind": "moe", **NEEDS["moe"]}))}
    dims = {d: DIMS[d] for d in ("batch", "seq", "width", "vocab", "layers")}  # all others are minted
    spec = {"name": "tiny", "dims": dims, "blocks": parts, "stack": [{"repeat": "layers", "layer": [*parts]}]}
    if any(b["kind"] == "block_recurrence" for b in blocks):
        spec["memory"] = {"keep": NEEDS["block_recurrence"]["window"]}
    program = lower(Model.model_validate(spec))
    sizes = program.resolve(batch=4, seq=32)
    split = cut(program, {"tp": 2, "ep": 2}, sizes).dims
    found = Counter((c.axis, c.kind) for c in collectives(program.graph, split))
    return {(axis, sizes[d]) for axis, own in split.items() for d in own}, found


@pytest.mark.parametrize("minted", MINTED, ids=".".join)
def test_a_second_size_of_a_kind_is_split_as_the_first(minted):
    """Every size of every block kind, by number: the dim is minted, under another name for the second block."""
    one, two = (block_of(minted[0], minted[1:], size) for size in (8, 16))
    nothing, first, second, both = split_sizes(), split_sizes(one), split_sizes(two), split_sizes(one, two)

    assert both[0] == first[0] | second[0]
    assert both[1] == first[1] + second[1] - nothing[1]


def test_experts_and_heads_of_any_name_are_split():
    plan = planned(
        "tp=2,ep=2", ATTENTION | {"heads": "h", "head": 4}, {"kind": "moe", "experts": "e", "capacity_factor": 1.25},
        dims={"h": 4, "e": 4},
    )  # fmt: skip

    assert plan["mesh"]["dims"]["ep"] == ["e"]
    assert plan["mesh"]["dims"]["tp"] == ["h", "inner", "vocab"]


def test_what_an_axis_does_not_divide_is_whole_and_said():
    plan = planned("tp=4", ATTENTION | {"heads": 8, "kv_heads": 2, "head": 2}, MLP, dims={"vocab": 61})

    assert plan["mesh"]["dims"]["tp"] == ["inner"]
    assert plan["mesh"]["whole"]["tp"] == ["kv_heads", "vocab"]
    assert "tp=4 splits inner; left whole, not a multiple: kv_heads, vocab" in explain.collectives(plan)


@pytest.mark.parametrize("mesh", some(["dp=2", "tp=2", "dp=2,tp=2", "ep=4", "sp=2", "cp=2,tp=2"], 2))
def test_the_plan_is_that_of_one_device(mesh):
    blocks = ATTENTION, {"kind": "moe", "capacity_factor": 2.0}, MLP
    whole, one = planned(None, *blocks), planned(mesh, *blocks)
    split = {d for dims in one["mesh"]["dims"].values() for d in dims}

    assert one["memory"]["peak"] < whole["memory"]["peak"]
    assert one["mesh"]["parameters"] == whole["parameters"] >= one["parameters"]
    assert all(one["dims"][d] * 2 <= whole["dims"][d] for d in split)
    assert all(one["dims"][d] == n for d, n in whole["dims"].items() if d not in split)
    assert one["totals"]["forward"]["flops"] < whole["totals"]["forward"]["flops"]


def test_a_budget_is_one_devices():
    smallest = planned("dp=4", ATTENTION, MLP)["memory"]["smallest"]

    assert planned("dp=4", ATTENTION, MLP, memory=smallest)["memory"]["peak"] <= smallest
    with pytest.raises(InfeasibleError):
        planned("dp=2", ATTENTION, MLP, memory=smallest)


@pytest.mark.parametrize(
    ("mesh", "said"), [("", "no mesh axis"), ("xp=2", "no mesh axis"), ("dp=x", "dp=2,tp=4"), ("dp=3", "batch 4"),
                       ("dp=2,dp=2", "dp=2,tp=4"), ("tp=0", "dp=2,tp=4"), ("ep=2", "no dim of experts")],
)  # fmt: skip
def test_no_mesh_is_ignored(mesh, said):
    with pytest.raises(UsageError, match=said):
        planned(mesh, ATTENTION)
