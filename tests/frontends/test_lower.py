"""Spec -> program: the shape of the graph, names, sizes, initialisation, numbers, and what is told about a bad spec."""

import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from weft.errors import SpecError
from weft.frontends.load import load_model, load_spec, load_text
from weft.frontends.lower import lower
from weft.frontends.schema import Model, Opaque
from weft.ir.library.attention import Attend
from weft.ir.library.dropout import Dropout
from weft.ir.pattern.pattern import Pattern
from weft.ir.primitives import Call, Loop
from weft.ir.program import Init, Param, Program
from weft.ir.reference_model import initial, reference
from weft.ir.text import parse, show
from weft.ir.types import Graph, Node
from weft.ir.verify import verify

SPECS = sorted(Path("examples/specs").glob("*.yaml"))
CAUSAL = [p for p in SPECS if not p.stem.startswith(("bert", "longformer", "bigbird"))]
BASE: dict[str, Any] = {
    "name": "tiny",
    "dims": {"batch": 2, "seq": 12, "width": 16, "heads": 2, "head": 8, "inner": 32, "vocab": 20, "layers": 2},
    "blocks": {"attention": {"kind": "attention", "pattern": "causal"}, "ff": {"kind": "mlp"}},
    "stack": [{"repeat": "layers", "layer": ["attention", "ff"]}],
}
CELL = {
    "kind": "recurrence",
    "inputs": ["u", "g"],
    "state": {"c": 0.0},
    "update": {"c": "sigmoid(g)*c + u"},
    "output": "c",
}


def small(path: Path, train: bool = True) -> Program:
    loaded = load_spec(path, small=True)
    return lower(loaded.model, loaded.dims, train, loaded.src, loaded.name)


def tiny(train: bool = True, **change: Any) -> Program:
    """BASE with keys changed; maps are merged."""
    spec = deepcopy(BASE)
    for key, value in change.items():
        spec[key] = spec[key] | value if isinstance(value, dict) and key in spec else value
    loaded = load_model(Model.model_validate(spec))
    return lower(loaded.model, loaded.dims, train)


def nodes(graph: Graph) -> Iterator[Node]:
    """Every node, those inside calls and loops too."""
    for node in graph.nodes:
        yield node
        if isinstance(node.op, Call | Loop):
            yield from nodes(node.op.body)


def ops(program: Program, kind: type) -> list[Any]:
    return [n.op for n in nodes(program.graph) if isinstance(n.op, kind)]


def arguments(program: Program, seed: int = 0) -> dict[str, Any]:
    """Random public inputs at nominal sizes."""
    sizes, generator = program.resolve(batch=2, seq=program.runtime["seq"].max), torch.Generator().manual_seed(seed)
    below = {"types": "types", "labels": None, "segments": None}
    out: dict[str, Any] = {}
    for name in program.inputs:
        value = program.input(name)
        high = sizes.get(below.get(name, "vocab") or "", 2)
        drawn = torch.randint(0, high, [sizes[d] for d in value.dims], generator=generator)
        out[name] = drawn.bool() if value.dtype == "bool" else drawn
    return out


def weights(program: Program, scale: float = 0.3) -> dict[str, Any]:
    """Random everywhere, so that nothing is hidden by a zero."""
    generator = torch.Generator().manual_seed(1)
    return {n: torch.randn(v.shape, generator=generator).double() * scale for n, v in initial(program, torch).items()}


def run(program: Program, inputs: dict[str, Any], **params: Any) -> dict[str, Any]:
    return reference(program, torch, weights(program) | params, inputs, dtype=torch.float64)


@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.stem)
@pytest.mark.parametrize("train", [True, False])
def test_shipped_specs_lower(path: Path, train: bool) -> None:
    """embed, loops over calls, head; every node has its line; the text reads back; the numbers are finite."""
    program = small(path, train)
    verify(program.graph)
    assert parse(show(program.graph)) == program.graph
    blocks = [n.op for n in program.graph.nodes if isinstance(n.op, Call | Loop)]
    assert [b.name for b in blocks if isinstance(b, Call)] == ["embed", "head"]
    for loop in blocks[1:-1]:
        assert all(isinstance(n.op, Call) for n in loop.body.nodes)
    names = [b.name for b in ops(program, Call)]
    assert len(set(names)) == len(names)
    assert all(n.src.startswith(f"{path.name}:") for n in nodes(program.graph)), "a node without its line"
    assert program.outputs[0] == ("loss" if train else "logits")
    out = run(program, arguments(program))
    assert all(bool(v.isfinite().all()) for v in out.values())
    assert out["logits"].shape == (2, program.runtime["seq"].max, program.resolve()["vocab"])


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
    for at in (1, program.runtime["seq"].max // 2, program.runtime["seq"].max - 1):
        changed = inputs["tokens"].clone()
        changed[:, at] = (changed[:, at] + 1) % 2
        after = run(program, inputs | {"tokens": changed})["logits"]
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
    cell = {p.name: p.init for p in lower(*_pair("sru_pp_enwik8")).params}
    assert cell["layers.{}.cell.reset_bias"] == Init("constant", -2.0)
    assert (
        cell["layers.{}.cell.up.weight" if "layers.{}.cell.up.weight" in cell else "layers.{}.cell.u.weight"].kind
        == "xavier"
    )
    assert cell["layers.{}.cell.alpha"].value == 0.0


def _pair(name: str) -> tuple[Any, Any]:
    loaded = load_spec(f"examples/specs/{name}.yaml")
    return loaded.model, loaded.dims


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


def test_an_opaque_block_runs_its_module() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Tanh())
    spec = Model.model_validate(
        BASE | {"blocks": {"mine": Opaque(module)}, "stack": [{"repeat": "layers", "layer": ["mine"]}]}
    )
    program = lower(spec)
    assert {"layers.0.mine.0.weight", "layers.1.mine.0.bias"} <= set(program.logical_names())
    params, inputs = {n: v.double() for n, v in initial(program, torch).items()}, arguments(program)
    got = reference(program, torch, params, inputs, dtype=torch.float64, modules=spec.modules())["logits"]
    x = params["embed.tokens"][inputs["tokens"]]
    for i in range(2):
        y = torch.nn.functional.layer_norm(x, (16,))
        x = x + torch.tanh(y @ params[f"layers.{i}.mine.0.weight"].T + params[f"layers.{i}.mine.0.bias"])
    assert torch.allclose(got, x @ params["head.weight"], rtol=0, atol=1e-12)


def test_a_lstm_is_a_formula() -> None:
    """A cell of the user's own, with two states, against torch's LSTM without its recurrent matrices."""
    cell = CELL | {
        "inputs": ["i", "f", "g", "o"], "state": {"c": 0.0, "h": 0.0},
        "let": {"c1": "sigmoid(f)*c + sigmoid(i)*tanh(g)", "h1": "sigmoid(o)*tanh(c1)"},
        "update": {"c": "c1", "h": "h1"}, "output": "h1",
    }  # fmt: skip
    program = tiny(blocks={"cell": cell}, stack=[{"layer": [{"block": "cell", "norm": "none", "residual": "none"}]}])
    params, inputs = weights(program), arguments(program)
    lstm = torch.nn.LSTM(16, 16, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for p in lstm.parameters():
            p.zero_()
        lstm.weight_ih_l0.copy_(torch.cat([params[f"layers.0.cell.{n}.weight"].T for n in ("i", "f", "g", "o")]))
        want = lstm(params["embed.tokens"][inputs["tokens"]])[0] @ params["head.weight"]
    got = reference(program, torch, params, inputs, dtype=torch.float64)["logits"]
    assert torch.allclose(got, want, rtol=0, atol=1e-12)


def test_names_of_a_cell_meet_nothing() -> None:
    """Names that are keywords of the builder, coordinates or sizes elsewhere are names like any other here."""
    cell = CELL | {"inputs": ["along", "n_seq", "let"], "update": {"c": "along*c + n_seq"}, "output": "c + let"}
    program = tiny(blocks={"ff": cell})
    other = tiny(blocks={"ff": CELL | {"inputs": ["a", "b", "d"], "update": {"c": "a*c + b"}, "output": "c + d"}})
    names = dict(zip(("along", "n_seq", "let"), "abd"))
    params = weights(program)
    renamed = {".".join(names.get(part, part) for part in n.split(".")): v for n, v in params.items()}
    inputs = arguments(program)
    a, b = (reference(p, torch, w, inputs, dtype=torch.float64) for p, w in ((program, params), (other, renamed)))
    assert torch.equal(a["logits"], b["logits"])


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        ({"blocks": {"attention": {"kind": "attention", "pattern": "k"}, "ff": {"kind": "mlp", "activation": "gelo"}}},
         [("W0302", "blocks.attention.pattern"), ("W0301", "blocks.ff.activation")]),
        ({"stack": [{"layer": ["nope", {"block": "f"}]}]},
         [("W0401", "stack.0.layer.0"), ("W0401", "stack.0.layer.1.block")]),
        ({"blocks": {"ff": CELL | {"parameters": {"alpha": "ones"}, "output": "alpha*c", "projection": {"rank": 4}}}},
         [("W0403", "blocks.ff.parameters.alpha")]),
        ({"blocks": {"attention": {"kind": "attention", "pattern": "all", "heads": 4, "kv_heads": 3}}},
         [("W0402", "blocks.attention.kv_heads")]),
        ({"blocks": {"attention": {"kind": "attention", "pattern": "all", "globals": {"tokens": 13}}}},
         [("W0402", "blocks.attention.globals.tokens")]),
        ({"blocks": {"ff": {"kind": "moe", "experts": 4, "capacity": 3, "top_k": 5}}}, [("W0402", "blocks.ff.top_k")]),
        ({"blocks": {"ff": {"kind": "mlp", "inner": "2*innr"}}}, [("W0201", "blocks.ff.inner")]),
        ({"blocks": {"ff": CELL | {"output": "d"}}}, [("W0301", "blocks.ff.output")]),
        ({"blocks": {"ff": CELL | {"parameters": {"w": "ones"}}}}, [("W0403", "blocks.ff.parameters.w")]),
        ({"blocks": {"ff": CELL | {"dropout": 0.5}}}, [("W0403", "blocks.ff.dropout")]),
        ({"dims": {"width": "seq + 4"}}, [("W0402", "dims.width")]),
        ({"head": {"tied": True, "vocab": 7}}, [("W0402", "head.tied")]),
        ({"head": [{"kind": "language"}, {"kind": "language"}]}, [("W0403", "head.1")]),
        ({"embed": {"positions": [{"learned": "seq", "index": "j"}]}, "init": {"weight": {"normal": "1/sqrt(seq)"}}},
         [("W0301", "embed.positions.0.index"), ("W0301", "init.weight.normal")]),
    ],
)  # fmt: skip
def test_problems_have_their_places(change: dict[str, Any], problems: list[tuple[str, str]]) -> None:
    with pytest.raises(SpecError) as caught:
        tiny(**change)
    found = [(p.code, ".".join(map(str, p.path))) for p in caught.value.problems]
    assert set(problems) <= set(found), found
    assert len(found) == len(set(found))


def test_builder_and_yaml_give_the_same_graph() -> None:
    model = Model.model_validate(BASE)
    again = load_text(model.to_yaml())
    assert lower(model) == lower(again.model, again.dims)


def test_depth_costs_nothing() -> None:
    """A stack is one loop however deep it is."""
    started = time.process_time()
    program = tiny(dims={"layers": 1000})
    assert time.process_time() - started < 1.0
    assert sum(isinstance(p, Param) and p.stack == "layers" for p in program.params) == 16
    assert program.parameter_count() > 1000 * 16 * 32
