"""State spaces in torch: what is printed of them in each form, with its derivative; where their poles start."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import weft
from tests.codegen import test_state_drawn as drawn
from tests.codegen.emission import callable_of, source_of
from tests.passes.recurrences import recurrence
from tests.passes.state_spaces import program
from tests.passes.test_state_spaces import forms
from weft import api
from weft.codegen.build import module_of, temporary
from weft.codegen.package.emit import emit
from weft.codegen.runtime import module as runtime
from weft.frontends.load import load_mapping
from weft.ir import reference_model
from weft.ir.reference import run
from weft.passes.derivative import joint

SAID = {"in chunks": "chunked.powers(", "by one long convolution": "fourier.convolve("}


def test_what_is_printed_is_the_graph(monkeypatch: pytest.MonkeyPatch):
    """Forward and derivative of chunks that the last position does not fill, 5 places each: no power of two."""
    made = program({"kind": "h3", "taps": 3, "head": 2, "system": {"states": 3, "chunk": 5}})
    sizes = made.resolve(seq=9)
    for name, graph in forms(recurrence(made), sizes, monkeypatch).items():
        both = joint(graph)
        source = source_of(both, sizes)
        gen = torch.Generator().manual_seed(0)
        args = [torch.randn([sizes[d] for d in v.dims], generator=gen, dtype=torch.float64) for v in both.inputs]
        want, got = run(both, sizes, args, torch, torch.float64), callable_of(source)(*args)

        assert SAID[name] in source
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_an_optimizer_is_told_the_rates():
    spec = {"weft": 1, "name": "told", "dims": {"batch": 2, "seq": 8, "width": 4, "layers": 2, "vocab": 5}}
    spec |= {"blocks": {"a": {"kind": "state_space", "system": {"states": 2, "rates": {"lr": 0.5}}}}}
    spec |= {"stack": [{"repeat": "layers", "layer": ["a"]}]}
    module: Any = module_of(temporary(emit(api.program(load_mapping(spec), train=False))))
    names = {id(p): name for name, p in module.named_parameters()}
    plain, own = module.parameter_groups()

    assert {k: v for k, v in own.items() if k != "params"} == {"lr": 0.5}
    assert {names[id(p)].split(".a.")[1] for p in own["params"]} == {"poles_real", "poles_imag", "log_dt"}
    assert len(plain["params"]) + len(own["params"]) == len(names)
    for made in (torch.optim.AdamW(module.parameter_groups(), 0.1), weft.optimizer("lamb", module.parameter_groups())):
        assert [g["lr"] == 0.5 for g in made.param_groups] == [False, True]


@pytest.mark.parametrize("kind", ["poles_lin", "poles_inv", "poles_legs", "poles_real"])
def test_poles_start_where_the_papers_say(kind: str):
    found = runtime.poles(kind, 4)
    n = torch.arange(4, dtype=torch.float64)
    root = (2 * torch.arange(8, dtype=torch.float64) + 1).sqrt()
    hippo = -torch.tril(torch.outer(root, root), -1) - torch.diag(torch.arange(8, dtype=torch.float64) + 1)
    normal = hippo + torch.outer(root, root) / 2  # the HiPPO matrix and its part of rank one: -1/2 + skew
    legs = torch.linalg.eigvals(normal).imag.sort().values[4:]
    want = {"poles_lin": math.pi * n, "poles_inv": 4 / math.pi * (4 / (2 * n + 1) - 1), "poles_legs": legs}

    torch.testing.assert_close(found, want.get(kind, torch.log(n + 1)))
    torch.testing.assert_close(reference_model.poles(torch, kind, 4), found)


BLOCKS = {
    "state space": "kind: state_space, system: {states: 3, chunk: 4, kernel: softmax}, output: glu",
    "h3": "kind: h3, taps: 3, head: 2, system: {states: 2, chunk: 4}",
}


@pytest.mark.parametrize("name", BLOCKS)
def test_rows_decoded_together_are_each_row_alone(name: str, monkeypatch: pytest.MonkeyPatch):
    """Prompts of any length onto a state, steps and selections; and prompts cut in pieces leave the same behind."""
    monkeypatch.setitem(drawn.MIXERS, name, BLOCKS[name])
    monkeypatch.setitem(drawn.KINDS, name, ((name,), "layer: [m0, f]", drawn.LEARNED))
    drawn.Rows(drawn.model(name), 2, 1).run(6)
    drawn.test_any_split_of_a_prompt_is_the_prompt(name)


@pytest.mark.parametrize("name", ["state space", "h3"])
def test_a_document_is_what_it_is_alone(name: str):
    """In rows of documents and padding: what precedes a document is nothing to it, in both passes."""
    blocks: dict[str, Any] = {
        "state space": {"kind": "state_space", "system": {"states": 3}},
        "h3": {"kind": "h3", "taps": 3, "head": 2, "system": {"states": 2}},
    }
    body = recurrence(program(blocks[name], documents=True))
    sizes = {**program(blocks[name], documents=True).resolve(seq=7), "batch": 1}
    gen = torch.Generator().manual_seed(0)
    place, start = torch.tensor([[0, 1, 2, 3, 0, 1, 2]]), 4

    def ran(x: Tensor, place: Tensor) -> tuple[Tensor, ...]:
        of = {**sizes, **program(blocks[name], documents=True).resolve(seq=x.shape[1]), "batch": 1}
        args = [x if v.name == "x" else place if not v.type.floating else own[v.name] for v in body.inputs]
        return run(body, of, args, torch, torch.float64)

    own = {
        v.name: torch.randn([sizes[d] for d in v.dims], generator=gen, dtype=torch.float64)
        for v in body.inputs
        if v.type.floating
    }
    x = own["x"].requires_grad_()
    (whole,), (alone,) = ran(x, place), ran(x[:, start:], place[:, start:])

    torch.testing.assert_close(whole[:, start:], alone)
    (grad,) = torch.autograd.grad(whole[:, start:].square().sum(), x)
    (want,) = torch.autograd.grad(alone.square().sum(), x)
    torch.testing.assert_close(grad, want)
