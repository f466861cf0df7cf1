"""Exported ONNX files: valid by the full checker, equal to the reference interpreter in ONNX Runtime."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests import models
from tests.campaign import SHIPPED
from weft import api, cli
from weft.codegen import onnx as weft_onnx
from weft.errors import UsageError
from weft.frontends.load import load_mapping
from weft.ir.builder import Builder
from weft.ir.formula import parse
from weft.ir.ops.primitives import Opaque
from weft.ir.program import Init, Param, Program, Runtime
from weft.ir.reference import run
from weft.ir.reference_model import initial, reference
from weft.ir.types import Graph
from weft.passes.inference import inference

TOLERANCE = 1e-5  # normwise, fp32 against the fp64 reference

MODELS = {
    "block": models.gpt_block,
    "stack": models.gpt_stack,
    "stack of two": lambda: models.gpt_stack(2),
    "recurrence": models.sru,
    "pieces": models.pieces,
    "routed": models.switch,
    "routed to two": lambda: models.switch(2, normalize=True, z_loss=True),
}


def program(graph: Graph) -> Program:
    """Every float input but `x` is a parameter; batch and seq stay open."""
    params = []
    for v in graph.inputs:
        if v.type.floating and v.name != "x":
            stacked = v.dims[:1] == ("layers",)
            name = f"layers.{{}}.{v.name}" if stacked else v.name
            stack = "layers" if stacked else None
            params.append(Param(v.name, name, v.dims[1:] if stacked else v.dims, Init("normal", 1.0), stack=stack))
    known = {p.value for p in params}
    sizes = {d: n for d, n in models.SIZES.items() if d not in ("batch", "seq")} | {"key": parse("n_seq")}
    inputs = tuple(v.name for v in graph.inputs if v.name not in known)
    outputs = tuple(f"y{i}" for i in range(len(graph.outputs)))
    runtime = {"batch": Runtime(64), "seq": Runtime(64)}
    return Program("test", graph, sizes, runtime, tuple(params), inputs, outputs, train=False)


def feed(p: Program, values: dict) -> dict[str, np.ndarray]:
    out = {name: values[name] for name in p.inputs}
    for param in p.params:
        rows = values[param.value] if param.stack else values[param.value][None]
        out |= {param.logical(i): row for i, row in enumerate(rows)}
    return {k: (v.float() if v.is_floating_point() else v).numpy() for k, v in out.items()}


@pytest.mark.parametrize("kind", ["portable", "semantic"])
@pytest.mark.parametrize("name", MODELS)
def test_runtime_equals_reference(name, kind, tmp_path):
    p = program(MODELS[name]())
    values = models.fill(torch, p.graph)
    want = run(p.graph, models.SIZES, values, torch, torch.float64)

    got = weft_onnx.run(p, weft_onnx.export(p, tmp_path)[kind], feed(p, values))

    for a, b in zip(got.values(), want, strict=True):
        assert a.shape == tuple(b.shape)
        assert np.linalg.norm(a - b.numpy()) <= TOLERANCE * max(np.linalg.norm(b.numpy()), 1e-3)


def test_the_length_stays_open(tmp_path):
    p = program(models.gpt_stack())
    paths = weft_onnx.export(p, tmp_path)
    for seq in (1, 5, 13):
        values = models.fill(torch, p.graph, seq=seq, key=seq)
        want = run(p.graph, models.SIZES | {"seq": seq, "key": seq}, values, torch, torch.float64)[0].numpy()
        got = weft_onnx.run(p, paths["portable"], feed(p, values))["y0"]
        assert np.linalg.norm(got - want) <= TOLERANCE * np.linalg.norm(want)


@pytest.mark.parametrize("kind", ["portable", "semantic"])
def test_a_block_that_reads_nothing_of_its_rows_is_told_how_many_there_are(kind, tmp_path):
    """A head that is the same for every row; so is a block whose activation is a number."""
    spec = {"name": "m", "dims": {"batch": 2, "seq": 4, "width": 8, "vocab": 11, "inner": 6}}
    spec |= {"blocks": {"a": {"kind": "mlp", "activation": "1", "bias": False}}}
    spec |= {"stack": [{"layer": [{"block": "a", "residual": "none", "norm": "none"}], "repeat": 2}]}
    spec |= {"head": {"kind": "classify", "classes": 3, "pool": "1"}}
    p = inference(api.program(load_mapping(spec)))
    paths = weft_onnx.export(p, tmp_path)
    values = {"tokens": torch.randint(0, 11, (2, 3))}
    params = initial(p, torch, 0)
    want = reference(p, torch, params, values, dtype=torch.float64)

    onnx.checker.check_model(onnx.load(paths[kind]), full_check=True)
    got = weft_onnx.run(p, paths[kind], {k: v.numpy() for k, v in (params | values).items()})
    assert np.allclose(got["classes"], want["classes"].numpy(), atol=1e-5)
    assert got["classes"].shape == (2, 3)


def test_semantic_has_one_node_per_block(tmp_path):
    p = program(models.gpt_stack(2))
    model = onnx.load(weft_onnx.export(p, tmp_path)["semantic"])

    blocks = [n for n in model.graph.node if n.domain == "weft"]

    assert len(blocks) == 2 * models.SIZES["layers"]
    assert len(model.functions) == 1
    assert {m.key for m in blocks[0].metadata_props} >= {"weft.block", "weft.src", "weft.flops"}


def test_inputs_are_logical_names(tmp_path):
    p = program(models.gpt_stack())
    model = onnx.load(weft_onnx.export(p, tmp_path)["portable"])

    assert tuple(i.name for i in model.graph.input) == (*p.inputs, *p.logical_names())
    assert "layers.2.wq_0" in p.logical_names()
    assert all(o.version == 23 for o in model.opset_import if o.domain == "")


def test_the_same_program_gives_the_same_bytes(tmp_path):
    p = program(models.gpt_stack(2))
    first, second = weft_onnx.export(p, tmp_path / "a"), weft_onnx.export(p, tmp_path / "b")

    assert all(first[k].read_bytes() == second[k].read_bytes() for k in first)


def test_a_wrapped_module_is_refused_and_nothing_written(tmp_path):
    g = Builder("model.yaml:7")
    x = g.input("x", models.f32("batch seq width"))
    (y,) = g.many(Opaque("mine", (x.type,)), x)
    p = replace(program(models.gpt_block()), graph=g.graph(y), params=(), inputs=("x",), outputs=("y",))

    with pytest.raises(UsageError, match=r"model\.yaml:7: a wrapped module has no ONNX form"):
        weft_onnx.export(p, tmp_path / "out")
    assert not (tmp_path / "out").exists()


SPECS = [Path(__file__).parents[2] / "examples" / "specs" / f"{name}.yaml" for name in SHIPPED]


@pytest.mark.parametrize("kind", ["portable", "semantic"])
@pytest.mark.parametrize("spec", SPECS, ids=lambda p: p.stem)
def test_every_shipped_spec_runs_in_onnx_runtime(spec, kind, tmp_path):
    p = api.program(api.open_spec(spec, small=True), train=False)
    sizes = p.resolve(batch=2)
    gen = torch.Generator().manual_seed(0)
    # Away from the initial values: a zero output matrix would make every file equal.
    params = {k: v + 0.05 * torch.randn(v.shape, generator=gen) for k, v in initial(p, torch, 0).items()}
    inputs = {name: whole(p.input(name), sizes, gen) for name in p.inputs}
    want = reference(p, torch, {k: v.double() for k, v in params.items()}, inputs, sizes, torch.float64)

    arrays = {k: v.numpy() for k, v in {**inputs, **params}.items()}
    got = weft_onnx.run(p, weft_onnx.export(p, tmp_path)[kind], arrays)

    for name, b in want.items():
        assert b.norm() > 0
        assert np.linalg.norm(got[name] - b.numpy()) <= TOLERANCE * float(b.norm())


def whole(value, sizes, gen):
    """Numbers that fit an integer input; rows that an earlier call left."""
    if value.type.floating:
        return torch.randn([sizes[d] for d in value.dims], generator=gen)
    top = sizes["types"] if value.name == "types" else sizes["vocab"]
    drawn = torch.randint(0, top, [sizes[d] for d in value.dims], generator=gen)
    return drawn % 3 > 0 if value.dtype == "bool" else drawn


TINY = {"batch": 2, "seq": 8, "width": 8, "heads": 2, "head": 4, "inner": 6, "vocab": 11}
POLICIES = [
    {"compute": "bf16"}, {"params": "bf16", "compute": "bf16"}, {"params": "f16", "compute": "f16"},
    {"accumulate": "f64"},
]  # fmt: skip


@pytest.mark.parametrize("policy", [{}, *POLICIES], ids=str)
def test_files_are_float32_and_say_so_where_the_spec_is_not(policy, tmp_path, capsys):
    block = {"kind": "attention", "pattern": "causal"}
    spec = {"name": "tiny", "dims": TINY, "dtype": policy, "stack": [{"layer": [{"block": block}]}]}
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps({"weft": 1, **spec}))

    assert cli.run(["export", str(path), "--format", "onnx", "-o", str(tmp_path / "onnx"), "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    for name in ("portable", "semantic"):
        model = onnx.load(tmp_path / "onnx" / f"{name}.onnx")
        floats = {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)} - {
            onnx.TensorProto.INT64
        }
        said = [p.value for p in model.metadata_props if p.key == "weft.dtype"]
        assert floats == {onnx.TensorProto.FLOAT}
        assert said == notes
    assert len(notes) == bool(policy)
    assert all(f"{k} {v}" in notes[0] for k, v in policy.items())
