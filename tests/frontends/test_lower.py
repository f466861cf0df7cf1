"""Spec -> program: the shape of the graph, names, sizes, initialisation and numbers."""

from pathlib import Path

import pytest
import torch

from benchmarks.specs import EVERY
from tests.effort import counted
from tests.frontends.lowering import ALL, BASE, CAUSAL, CELL, SPECS, arguments, nodes, ops, run, small, tiny, weights
from weft.errors import SpecError
from weft.frontends.load import load_spec, load_text
from weft.frontends.lower.program import lower
from weft.frontends.schema import Model
from weft.ir.composite import Call
from weft.ir.library.attention import Attend
from weft.ir.library.dropout import Dropout
from weft.ir.ops.primitives import Loop
from weft.ir.pattern.pattern import Pattern
from weft.ir.program import Init, Param
from weft.ir.reference_model import initial, reference
from weft.ir.text import parse, show
from weft.ir.verify import verify


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
@pytest.mark.parametrize("train", [True, False])
def test_shipped_specs_lower(path: Path, train: bool) -> None:
    """embed, loops over calls, head; every node has its line; the text reads back; the numbers are finite."""
    program = small(path, train)
    verify(program.graph)
    assert parse(show(program.graph)) == program.graph
    blocks = [n.op for n in program.graph.nodes if isinstance(n.op, Call | Loop)]
    several = [s.name for s in program.streams] if len(program.streams) > 1 else []
    ends = [f"{name}_embed" for name in several] or ["embed"]
    norms = [f"{name}_layer_norm" for name in several]  # after the last layer of a stage
    assert [b.name for b in blocks if isinstance(b, Call) and b.name not in norms] == [*ends, "head"]
    for loop in (b for b in blocks if isinstance(b, Loop)):
        assert all(isinstance(n.op, Call) for n in loop.body.nodes)
    names = [b.name for b in ops(program, Call)]
    assert len(set(names)) == len(names)
    files = tuple(f"{name}.yaml:" for name in EVERY)  # the spec's own, and one that it extends
    assert all(n.src.startswith(files) for n in nodes(program.graph)), "a node without its line"
    assert program.outputs[0] == ("loss" if train else "logits")
    out = run(program, arguments(program))
    assert all(bool(v.isfinite().all()) for v in out.values())
    assert out["logits"].shape == (2, program.runtime[program.growing[0]].max, program.resolve()["vocab"])


@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.stem)
def test_every_parameter_learns(path: Path) -> None:
    program = small(path)
    params = {n: v.requires_grad_() for n, v in weights(program).items()}
    out = reference(program, torch, params, arguments(program), dtype=torch.float64)
    grads = dict(zip(params, torch.autograd.grad(out["loss"], list(params.values()))))
    # A bias of the keys adds the same to every score of a row, which softmax does not see.
    still = {n for n, g in grads.items() if not g.abs().max() > 1e-12 and "key" not in n}
    assert not still


@pytest.mark.parametrize("path", CAUSAL, ids=lambda p: p.stem)
def test_causal_specs_do_not_leak(path: Path) -> None:
    program = small(path, train=False)
    inputs = arguments(program)
    before = run(program, inputs)["logits"]
    (time,) = program.growing
    (tokens,) = (n for n in program.inputs if program.part(n) == "tokens" and time in program.input(n).dims)
    longest = program.runtime[time].max
    for at in (1, longest // 2, longest - 1):
        changed = inputs[tokens].clone()
        changed[:, at] = (changed[:, at] + 1) % 2
        after = run(program, inputs | {tokens: changed})["logits"]
        assert torch.equal(after[:, :at], before[:, :at])
        assert not torch.equal(after[:, at:], before[:, at:])


def test_layers_are_numbered_through_stages_and_cycles() -> None:
    stack = [
        {"repeat": 2, "layer": ["attention"]},
        {"repeat": "layers", "cycle": [["ff"], ["attention", "ff", "ff"]]},
        {"layer": ["ff"], "name": "last"},
    ]
    program = tiny(stack=stack)
    names = list(program.logical_names())
    assert len(set(names)) == len(names) == len(initial(program, torch))
    have = {int(n.split(".")[1]): set() for n in names if n.startswith("layers.")}
    for n in names:
        if n.startswith("layers."):
            have[int(n.split(".")[1])].add(n.split(".")[2])
    assert sorted(have) == list(range(7))
    assert have[2] == have[4] == have[6] == {"ff", "ff_norm"}
    assert have[3] == have[5] == {"attention", "attention_norm", "ff", "ff_norm", "ff_2", "ff_2_norm"}
    assert [c.name for c in ops(program, Call)] == ["embed", "layer", "layer_2_0", "layer_2_1", "last", "head"]


def test_a_cycle_is_the_same_as_its_layers_in_a_row() -> None:
    """Two layers in a cycle, repeated, against four stages: the same parameters by name, the same numbers."""
    cycle = [["attention"], ["ff"]]
    looped = tiny(stack=[{"repeat": 2, "cycle": cycle}])
    unrolled = tiny(stack=[{"layer": layer} for layer in cycle * 2])
    assert set(looped.logical_names()) == set(unrolled.logical_names())
    inputs, params = arguments(looped), weights(looped)
    a = reference(looped, torch, params, inputs, dtype=torch.float64)
    b = reference(unrolled, torch, params, inputs, dtype=torch.float64)
    assert torch.allclose(a["logits"], b["logits"], rtol=0, atol=1e-13)


def test_dropout_sites_are_told_apart() -> None:
    """One op id a site, over all stages; the layer's number within its stage tells the repeats apart."""
    stage = {"repeat": "layers", "layer": ["attention", "ff"]}
    program = tiny(sublayer={"dropout": 0.5}, embed={"dropout": 0.25}, stack=[stage, stage])
    sites = ops(program, Dropout)
    assert [d.op_id for d in sites] == [0, 1, 2, 3, 4]
    assert float(sites[0].rate) == 0.25
    inputs = arguments(program)
    once = [run(program, inputs | {"seed": torch.tensor(s)})["loss"] for s in (1, 1, 2)]
    assert once[0] == once[1] != once[2]
    assert not ops(tiny(train=False, sublayer={"dropout": 0.5}), Dropout)


def test_initial_values_come_from_the_spec() -> None:
    loaded = load_spec("examples/specs/sparse_transformer_enwik8.yaml")
    inits = {p.name: p.init for p in lower(loaded.model, loaded.dims).params}
    close = lambda name, kind, value: inits[name].kind == kind and inits[name].value == pytest.approx(value)  # noqa: E731
    assert close("embed.tokens", "normal", 0.125 / 512**0.5)
    assert close("embed.positions.1", "normal", 0.125 / 1024**0.5)
    assert close("layers.{}.attention.query.weight", "normal", 0.125 / 512**0.5)
    assert close("layers.{}.attention.output.weight", "normal", 0.125 / 512**0.5 / 60**0.5)
    assert close("layers.{}.feedforward.down.weight", "normal", 0.125 / 2048**0.5 / 60**0.5)
    assert inits["head.weight"] == Init("zeros")
    assert inits["layers.{}.attention.query.bias"] == Init("zeros")
    assert inits["norm.weight"] == Init("ones")
    loaded = load_spec("examples/specs/sru_pp_enwik8.yaml")
    cell = {p.name.rpartition("cell.")[2]: p.init for p in lower(loaded.model, loaded.dims).params}
    assert cell["reset_bias"] == Init("constant", -2.0)
    assert cell["alpha"].value == 0.0
    assert (cell["u.weight"].kind, cell["u.weight"].fan_in) == ("xavier", ("rank",))
    assert cell["u.weight"].value == pytest.approx(0.78**0.5)


@pytest.mark.parametrize("name", [p.stem for p in SPECS])
def test_initial_loss_is_near_that_of_a_guess(name: str) -> None:
    program = small(Path(f"examples/specs/{name}.yaml"), train=True)
    loss = reference(program, torch, initial(program, torch), arguments(program))["loss"]
    guess = (
        torch.tensor(float(program.resolve()["vocab"])).log() + ("labels" in program.inputs) * torch.tensor(2.0).log()
    )
    assert abs(float(loss) - float(guess)) < 2.5


def test_run_time_sizes() -> None:
    """A shorter sequence and a larger batch than the spec names, within what it allows."""
    program = tiny(runtime={"batch": {"max": 5}, "seq": {"max": 24, "align": 4}})
    inputs = {n: torch.zeros(5, 20, dtype=torch.long) for n in program.inputs}
    assert run(program, inputs)["logits"].shape == (5, 20, 20)
    assert program.resolve(batch=3, seq=8)["key"] == 8
    with pytest.raises(SpecError, match="multiple of 4"):
        program.resolve(seq=10)
    with pytest.raises(SpecError, match="maximum 5"):
        program.resolve(batch=6)


def test_a_run_time_dim_means_its_largest_size() -> None:
    """In every formula, pattern and fixed size: a run of any length is the start of the longest."""
    attention = {"kind": "attention", "pattern": "0 <= q - k < half", "score": "s - (q - k)/seq", "scale": "batch/half"}
    said = tiny(
        dims={"half": "seq // 2"},
        runtime={"batch": {"max": 5}, "seq": {"max": 24}},
        blocks={"attention": attention, "ff": {"kind": "mlp", "inner": "half", "activation": "x/seq"}},
        embed={"positions": [{"learned": "seq"}, {"learned": 2, "index": "i // half"}], "scale": "sqrt(seq)"},
        init={"weight": {"normal": "1/seq"}},
        head={"scale": "1/half"},
    )
    attention = attention | {"pattern": "0 <= q - k < 12", "score": "s - (q - k)/24", "scale": "5/12"}
    meant = tiny(
        dims={"half": "seq // 2"},
        runtime={"batch": {"max": 5}, "seq": {"max": 24}},
        blocks={"attention": attention, "ff": {"kind": "mlp", "inner": 12, "activation": "x/24"}},
        embed={"positions": [{"learned": 24}, {"learned": 2, "index": "i // 12"}], "scale": "sqrt(24)"},
        init={"weight": {"normal": "1/24"}},
        head={"scale": "1/12"},
    )
    assert show(said.graph) == show(meant.graph)
    assert said.sizes == meant.sizes
    assert said.params == meant.params


def test_capacity_follows_the_length() -> None:
    moe = {"kind": "moe", "experts": 4, "capacity_factor": 1.25}
    program = tiny(blocks={"ff": moe}, runtime={"seq": {"max": 4096}})
    assert [program.resolve(seq=n)["capacity"] for n in (1, 12, 13, 4096)] == [1, 4, 5, 1280]
    assert program.resolve()["routes"] == 4
    assert program.outputs == ("loss", "logits", "aux_loss")


def test_auxiliary_loss_is_weighted_into_the_loss() -> None:
    def total(weight: float) -> tuple[float, float]:
        out = run(program := tiny(blocks={"ff": moe | {"aux_loss": weight}}), arguments(program))
        return float(out["loss"]), float(out["aux_loss"])

    moe = {"kind": "moe", "experts": 4, "capacity": 12}
    (plain, balance), (weighted, same) = total(0.0), total(0.5)
    assert balance == same > 1.0
    assert weighted == pytest.approx(plain + 0.5 * balance, abs=1e-12)


def test_dims_keep_their_names_and_never_meet() -> None:
    """A dim that is already an axis of the tensor, and dims of the spec that have names lowering would like."""
    program = tiny(blocks={"ff": {"kind": "mlp", "inner": "width"}}, dims={"key": 3, "group": 5, "positions": 7},
                   embed={"positions": [{"learned": "seq"}]})  # fmt: skip
    verify(program.graph)
    sizes = program.resolve()
    assert sizes["inner_2"] == sizes["width"] == 16
    assert sizes["positions_2"] == 12
    assert all(p.dims.count(d) == 1 for p in program.params for d in p.dims)
    assert "heads" in {d for p in program.params for d in p.dims}


def test_grouped_heads_and_half_size_queries() -> None:
    attention = {
        "kind": "attention",
        "pattern": "causal",
        "kv_heads": 2,
        "head": "half",
        "value": "head",
        "rotary": True,
    }
    program = tiny(dims={"heads": 4, "half": 4}, blocks={"attention": attention})
    shapes = {p.name.removeprefix("layers.{}.attention."): p.dims for p in program.params if ".attention." in p.name}
    assert shapes["query.weight"] == ("width", "kv_heads", "group", "half")
    assert shapes["value.weight"] == ("width", "kv_heads", "head")
    assert shapes["output.weight"] == ("kv_heads", "group", "head", "width")
    assert ops(program, Attend)[0].heads == ("kv_heads", "group")
    assert run(program, arguments(program))["loss"].isfinite()


def test_patterns_reach_the_graph() -> None:
    near, far = tiny(
        blocks={"attention": {"kind": "attention", "pattern": "causal and window(inner // 8)"}},
        stack=[{"cycle": [["attention"], [{"block": "attention", "set": {"pattern": "causal and strided(heads)"}}]]}],
    ).graph.nodes[2 - 1].op.body.nodes  # fmt: skip
    patterns = [n.op.pattern for call in (near, far) for n in call.op.body.nodes if isinstance(n.op, Attend)]
    assert patterns == [Pattern.parse("causal and window(4)"), Pattern.parse("causal and strided(2)")]


def test_metadata_is_an_input() -> None:
    pattern = "causal and same_segment and valid"
    program = tiny(blocks={"attention": {"kind": "attention", "pattern": pattern}})
    assert program.inputs == ("tokens", "segments", "valid", "targets")
    inputs = arguments(program)
    inputs["segments"] = torch.arange(12).repeat(2, 1) // 6
    inputs["valid"] = torch.ones(2, 12, dtype=torch.bool)
    whole = run(program, inputs)["logits"]
    cut = {n: v[:, 6:] if v.ndim == 2 else v for n, v in inputs.items()}
    assert torch.allclose(run(program, cut)["logits"], whole[:, 6:], rtol=0, atol=1e-12)


def test_block_plan_counts_what_is_listed_twice() -> None:
    twice, once = (
        tiny(blocks={"attention": {"kind": "attention", "plan": {"block": 3, "random": 1, "table": [[[b], [0]]]}}})
        for b in (1, 3)
    )
    first = ops(twice, Attend)[0].pattern
    assert first.multiset
    assert str(first) == "blocks(3, [all, [0, 1, 1, 2, 3], [0, 0, 1, 2, 3], all])"
    inputs = arguments(twice)
    assert not torch.allclose(run(twice, inputs)["logits"], run(once, inputs)["logits"])


@pytest.mark.parametrize("little", [True, False])
def test_bigbird_draws_some_blocks_twice(little: bool) -> None:
    loaded = load_spec("examples/specs/bigbird_base.yaml", small=little)
    pattern = ops(lower(loaded.model, loaded.dims), Attend)[0].pattern
    assert pattern.multiset
    assert pattern.per_head


def test_ignored_targets_do_not_count() -> None:
    program = tiny(head={"ignore": -100})
    inputs = arguments(program)
    plain = run(tiny(), inputs)
    inputs["targets"] = inputs["targets"].clone()
    inputs["targets"][:, 1:] = -100
    out = run(program, inputs)
    want = torch.nn.functional.cross_entropy(plain["logits"][:, 0], inputs["targets"][:, 0])
    assert float(out["loss"]) == pytest.approx(float(want), abs=1e-12)
    inputs["targets"][:] = -100
    assert run(program, inputs)["loss"] == 0


@pytest.mark.parametrize("compute", ["bf16", "f16"])
def test_dtype_policy(compute: str) -> None:
    """Activations in the compute dtype, statistics and state in fp32, parameters as stored."""
    moe = {"kind": "moe", "experts": 4, "capacity": 5}
    program = tiny(dtype={"compute": compute}, stack=[{"layer": ["attention", "moe", "cell"]}],
                   blocks={"moe": moe, "cell": CELL}, sublayer={"norm": "layer_norm"})  # fmt: skip
    assert {p.dtype for p in program.params} == {"f32"}
    made = {v.name: v.dtype for n in nodes(program.graph) for v in n.outs}
    assert made["logits"] == compute
    assert made["loss"] == made["c_first"] == "f32"
    route = next(n for n in nodes(program.graph) if type(n.op).__name__ == "Route")
    assert route.ins[0].dtype == "f32"
    out = reference(program, torch, initial(program, torch), arguments(program))
    assert out["logits"].dtype == {"bf16": torch.bfloat16, "f16": torch.float16}[compute]
    assert out["loss"].isfinite()


def test_builder_and_yaml_give_the_same_graph() -> None:
    model = Model.model_validate(BASE)
    again = load_text(model.to_yaml())
    assert lower(model) == lower(again.model, again.dims)


def test_depth_costs_nothing() -> None:
    """A stack is one loop however deep it is."""
    tiny()
    (_, few), (program, many) = (counted(tiny, dims={"layers": n}) for n in (2, 1000))
    assert many <= 1.1 * few
    assert sum(isinstance(p, Param) and p.stack == "layers" for p in program.params) == 16
    assert program.parameter_count() > 1000 * 16 * 32


def test_a_stream_is_like_another_but_for_its_table() -> None:
    """Were `tied` taken over too, the second would be tied to itself."""
    dims = {"batch": 2, "a": 5, "b": 6, "width": 8, "heads": 2, "head": 4, "vocab": 11}
    attention = {"kind": "attention", "pattern": "causal"}
    model = {
        "name": "two",
        "dims": dims,
        "streams": {
            "b": {"length": "b", "embed": {"like": "a"}},
            "a": {"length": "a", "embed": {"tied": "b", "scale": 2.0, "positions": [{"learned": 6}]}},
        },
        "stack": [
            {"stream": "b", "layer": [{"block": attention}]},
            {"stream": "a", "layer": [{"block": {**attention, "context": "b"}}]},
        ],
        "head": {"stream": "a"},
    }
    program = lower(Model.model_validate(model))

    tables = [p.name for p in program.params if p.name.endswith("tokens")]
    assert tables == ["b.embed.tokens"]
    assert {"a.embed.positions.0", "b.embed.positions.0"} <= {p.name for p in program.params}


def test_a_pattern_that_differs_by_head_is_that_of_the_only_one():
    """A cell whose projection attends with one head, which is no dim of its graph."""
    cell = {"kind": "recurrence", "inputs": ["u"], "state": {"h": 0.0}, "update": {"h": "0.9*h + u"}}
    projection = {"rank": 4, "pattern": "heads(window(2), causal) and valid"}
    block = cell | {"output": "next(h)", "projection": projection}
    (attend,) = ops(tiny(stack=[{"layer": [{"block": block}]}]), Attend)
    assert attend.pattern.text == "q >= k and k + 1 >= q and valid"
    assert not attend.heads
