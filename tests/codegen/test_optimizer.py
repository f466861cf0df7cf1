"""An optimizer in the memory plan: what torch's own holds and takes, never less; and what a plan says of it."""

import pytest
import torch

import weft
from weft import api, cli
from weft.codegen.measure.profile import LiveBytes
from weft.codegen.plan import explain
from weft.errors import InfeasibleError, UsageError
from weft.frontends.schema import Model

BLOCKS = [{"kind": "attention", "pattern": "causal"}, {"kind": "mlp"}]
TORCH = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, foreach=False),
    "adamw": lambda ps: torch.optim.AdamW(ps, foreach=False),
    "lamb": lambda ps: weft.optimizer("lamb", ps),
    "lars": lambda ps: weft.optimizer("lars", ps),
}


def spec(**dims):
    sizes = {"batch": 2, "seq": 16, "width": 32, "heads": 4, "head": 8, "inner": 64, "vocab": 50, "layers": 2} | dims
    parts = {f"b{i}": b for i, b in enumerate(BLOCKS)}
    return Model.model_validate(
        {"name": "tiny", "dims": sizes, "blocks": parts, "stack": [{"repeat": "layers", "layer": [*parts]}]}
    )


@pytest.mark.parametrize("dims", [{}, {"vocab": 4000, "seq": 2, "batch": 1}], ids=["activations", "parameters"])
@pytest.mark.parametrize("name", TORCH)
def test_a_training_step_never_takes_more(name, dims):
    """The second step, when the state is there; in the second model its own step is the peak."""
    module = api.compile(spec(**dims), target="cpu", optimizer=name)
    memory, sizes = module.plan["memory"], module.plan["dims"]
    tokens = torch.randint(0, sizes["vocab"], (sizes["batch"], sizes["seq"]))
    optimizer = TORCH[name](module.parameters())

    def step():
        optimizer.zero_grad(set_to_none=True)
        module(tokens, tokens).loss.backward()
        optimizer.step()

    step()
    optimizer.zero_grad(set_to_none=True)
    held = [
        *module.parameters(),
        tokens,
        *(x for s in optimizer.state.values() for x in s.values() if isinstance(x, torch.Tensor) and x.dim()),
    ]
    with LiveBytes(held) as live:
        step()
    real = live.most + sum(x.untyped_storage().nbytes() for x in held)

    assert real <= memory["peak"] + 1024  # a step's counters and the seed are scalars
    assert memory["peak"] <= 1.1 * real
    assert (memory["at"]["side"] == "step") == (bool(dims) and name != "sgd")  # momentum takes no more in its step


def test_states_are_of_their_parameters_size():
    of = {name: api.plan(spec(), target="cpu", optimizer=name) for name in ("none", "sgd", "adamw", "lamb")}
    weights = 4 * of["none"]["parameters"]

    assert {n: p["memory"]["optimizer"].get("state") for n, p in of.items()} == {
        "none": None, "sgd": weights, "adamw": 2 * weights, "lamb": 2 * weights
    }  # fmt: skip
    assert of["none"]["memory"]["optimizer"] == {"name": "none", "not_counted": 2 * weights}
    assert "not counted: state of adamw (--optimizer adamw)" in explain.memory(of["none"])
    assert "state of the optimizer" in explain.memory(of["adamw"])
    assert of["none"]["memory"]["peak"] < of["sgd"]["memory"]["peak"] < of["adamw"]["memory"]["peak"]


@pytest.mark.parametrize("dims", [{}, {"vocab": 4000, "seq": 2, "batch": 1}], ids=["activations", "parameters"])
def test_a_budget_counts_it(dims):
    smallest = api.plan(spec(**dims), target="cpu", optimizer="adamw")["memory"]["smallest"]

    got = api.plan(spec(**dims), target="cpu", optimizer="adamw", memory=smallest)
    assert got["memory"]["peak"] <= smallest
    with pytest.raises(InfeasibleError) as refused:
        api.plan(spec(**dims), target="cpu", optimizer="adamw", memory=smallest - 1)
    assert refused.value.smallest == smallest


def test_an_unknown_one_is_refused_with_those_there_are(capsys):
    with pytest.raises(UsageError, match="known: none, sgd, adamw, lamb"):
        api.plan(spec(), optimizer="adam")
    assert cli.run(["plan", "examples/specs/gpt2_345m.yaml", "--small", "--optimizer", "adam"]) == 2
    assert "no optimizer is called 'adam'" in capsys.readouterr().err


def test_without_training_there_is_none():
    assert api.plan(spec(), train=False, optimizer="adamw", target="cpu")["memory"]["optimizer"]["state"] == 0
