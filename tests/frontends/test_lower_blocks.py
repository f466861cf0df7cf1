"""Blocks of a person's own, modules and cells; and what is told about a spec that cannot be lowered."""

from typing import Any

import pytest
import torch

from tests.frontends.lowering import BASE, CELL, arguments, tiny, weights
from weft.errors import SpecError
from weft.frontends.blocks import OpaqueBlock
from weft.frontends.lower.program import lower
from weft.frontends.schema import Model
from weft.ir.reference_model import initial, reference
from weft.ir.text import show


def test_an_opaque_block_runs_its_module() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Tanh())
    spec = Model.model_validate(
        BASE | {"blocks": {"mine": OpaqueBlock(module)}, "stack": [{"repeat": "layers", "layer": ["mine"]}]}
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
        ({"embed": {"positions": [{"learned": "seq", "index": "j"}]}, "init": {"weight": {"normal": "width > 8"}}},
         [("W0301", "embed.positions.0.index"), ("W0301", "init.weight.normal")]),
        ({"blocks": {"attention": {"kind": "attention", "pattern": "all", "score": "q > k", "scale": "1/(head - 8)"},
                     "ff": {"kind": "mlp", "activation": "x > 0"}}, "embed": {"scale": "exp(exp(width))"}},
         [("W0301", "blocks.attention.score"), ("W0301", "blocks.attention.scale"),
          ("W0301", "blocks.ff.activation"), ("W0301", "embed.scale")]),
        ({"blocks": {"attention": {"kind": "attention", "pattern": "all", "scale": float("inf")}}},
         [("W0301", "blocks.attention.scale")]),
        ({"embed": {"scale": 0.0}, "head": {"scale": "batch - 2"}},
         [("W0301", "embed.scale"), ("W0301", "head.scale")]),
        ({"dims": {"part": "seq / 4"}, "runtime": {"seq": {"max": 22}}}, [("W0201", "dims.part")]),
    ],
)  # fmt: skip
def test_problems_have_their_places(change: dict[str, Any], problems: list[tuple[str, str]]) -> None:
    with pytest.raises(SpecError) as caught:
        tiny(**change)
    found = [(p.code, ".".join(map(str, p.path))) for p in caught.value.problems]
    assert set(problems) <= set(found), found
    assert len(found) == len(set(found))


@pytest.mark.parametrize(("init", "first"), [({}, -0.5), ({"norm": "ones"}, 1.0)])
def test_a_gain_with_an_offset_starts_at_one(init: dict[str, Any], first: float) -> None:
    """The weight at 1 - offset, unless the spec says where norms start."""
    program = tiny(sublayer={"norm": {"kind": "rms_norm", "offset": 1.5}}, init=init)
    weight = initial(program, torch)["layers.1.attention_norm.weight"]
    assert torch.equal(weight, torch.full_like(weight, first))


def test_a_bias_that_only_chooses_starts_at_zero_and_no_gradient_moves_it() -> None:
    block = {"kind": "moe", "experts": 4, "capacity": "none", "router": "sigmoid", "choice_bias": True}
    program = tiny(blocks={"ff": block})
    first = initial(program, torch)["layers.0.ff.router.bias"]
    assert not first.any()
    params, inputs = weights(program), arguments(program)
    moved = {n: v.clone().requires_grad_() for n, v in params.items()}
    loss = reference(program, torch, moved, inputs, dtype=torch.float64)["loss"]
    (grad,) = torch.autograd.grad(loss, [moved["layers.0.ff.router.bias"]], allow_unused=True, materialize_grads=True)
    assert not grad.any()
    one = torch.tensor([0.0, 0.0, 9.0, 0.0], dtype=torch.float64)  # which all tokens then go to
    other = reference(program, torch, params | {"layers.0.ff.router.bias": one}, inputs, dtype=torch.float64)["loss"]
    assert abs(float(other - loss.detach())) > 1e-6


def test_no_capacity_is_that_of_a_whole_sequence() -> None:
    texts = [show(tiny(blocks={"ff": {"kind": "moe", "experts": 4, "capacity": c}}).graph) for c in ("none", "seq")]
    assert texts[0] == texts[1]
