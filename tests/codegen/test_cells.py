"""Recurrent cells as emitted, against autograd through a plain loop: forward, gradients, prefill, step, the start."""

import inspect
import sys

import pytest
import torch
import yaml

from tests.campaign import count
from tests.codegen.cells import BARE, SIZES, WRITTEN, draw, loop, spec
from weft import Model, api
from weft.codegen import onnx
from weft.codegen.check import verify
from weft.codegen.runtime.state import State, feed
from weft.ir.reference_model import reference

CELLS = (*BARE, *WRITTEN, *map(draw, range(count(8, 400))))
GROUP = 20


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """The module of every cell, several cells to a package."""
    made = []
    for k in range(0, len(CELLS), GROUP):
        folder = tmp_path_factory.mktemp("cells")
        (folder / "cells.yaml").write_text("weft: 1\n" + yaml.safe_dump(spec(CELLS[k : k + GROUP])))
        model = api.compile(folder / "cells.yaml", target="cpu", out=folder / "package")
        by_file = {sys.modules[type(b).__module__].__name__.rsplit(".", 1)[1]: b for b in model.modules()}
        made += [by_file[f"k{i}"] for i in range(len(CELLS[k : k + GROUP]))]
    return made


def same(got, want):
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def case(block, cell):
    """x, what the cell reads by name (leaves), and the loop's result."""
    torch.manual_seed(0)
    weights = {name.split(".")[1]: torch.nn.init.normal_(p) for name, p in block.named_parameters()}
    x = torch.randn(SIZES["batch"], SIZES["seq"], SIZES["width"], dtype=torch.float64, requires_grad=True)
    return x, weights, loop(cell, x, weights)


@pytest.mark.parametrize("i", range(len(CELLS)))
def test_a_cell_and_its_gradients(blocks, i):
    x, weights, want = case(blocks[i], CELLS[i])
    got = blocks[i](x)
    leaves, seed = [x, *weights.values()], torch.randn_like(want)

    def grads(y):
        anchor = 0 * sum(v.sum() for v in leaves)  # a constant cell has gradients too: zeros
        return torch.autograd.grad((y * seed).sum() + anchor, leaves)

    same(got, want)
    for a, b in zip(grads(got), grads(want), strict=True):
        same(a, b)


@pytest.mark.parametrize("i", range(len(CELLS)))
@torch.no_grad()
def test_a_cell_decodes(blocks, i):
    x, _, want = case(blocks[i], CELLS[i])

    def run(a, b, state):
        """Positions a to b - 1; state: what came before, None for the method of a prompt."""
        signature = {"x": (torch.float64, ("batch", "seq"))}
        fed, _ = feed({"x": x[:, a:b, 0]}, "seq", signature, {}, {}, (), None, state)
        method, before = (blocks[i].step, (state.blocks[0],)) if state else (blocks[i].prefill, ())
        given = (x[:, a:b],) if next(iter(inspect.signature(method).parameters)) != "fed" else ()  # a constant cell
        y, left = method(*given, fed, *before)
        same(y, want[:, a:b])
        return fed.after([left])

    for prompt in (0, 3):
        start = State.first(SIZES["batch"], None, [blocks[i].state(SIZES["batch"], x)], x.device)
        state = run(0, prompt, None) if prompt else start
        for t in range(prompt, SIZES["seq"]):
            state = run(t, t + 1, state)


def test_layers_without_a_single_parameter(tmp_path):
    """Alone, repeated and in a cycle: nothing is stacked for such a layer, and nothing of it tells device or dtype."""
    cells = [BARE[10], BARE[0]]
    stack = [{"layer": ["c0"]}, {"repeat": 2, "layer": ["c0"]}, {"repeat": 2, "cycle": [["c0"], ["c1"]]}]
    path = tmp_path / "cells.yaml"
    path.write_text("weft: 1\n" + yaml.safe_dump(spec(cells, "f32") | {"stack": stack}))

    found = api.verify(path, target="cpu", kernels=False)

    assert found.ok, found.text()


@pytest.mark.parametrize("i", [0, 5, 12, 18])
def test_a_cell_as_onnx(i, tmp_path):
    """A loop that slices nothing is a Scan all the same."""
    program = api.program(api.open_spec(Model.model_validate(spec([BARE[i]], "f32"))), False)
    sizes, params, inputs, _ = verify.case(program, 0)
    feed = {n: inputs[n].numpy() for n in program.inputs} | {n: x.float().numpy() for n, x in params.items()}
    made = onnx.run(program, onnx.export(program, tmp_path)["portable"], feed)

    want = reference(program, torch, params, inputs, sizes, torch.float64)["logits"]
    torch.testing.assert_close(torch.tensor(made["logits"]).double(), want, rtol=1e-5, atol=1e-6)
