"""Models of several streams: the package against the reference, gradients, decoding and constant states included."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.campaign import some
from weft import api
from weft.codegen.build import files_of, module_of
from weft.codegen.check import verify
from weft.codegen.package.disk import write
from weft.codegen.plan.planner import Planned
from weft.frontends.load import load_mapping

DIMS = {"batch": 3, "source": 7, "target": 5, "width": 8, "heads": 2, "head": 4, "inner": 6, "vocab": 11, "experts": 2}
ENCODE = {"kind": "attention", "pattern": "valid"}
DECODE = {"kind": "attention", "pattern": "causal"}
CROSS = {"kind": "attention", "pattern": "valid", "context": "source"}
MLP = {"kind": "mlp"}
MOE = {"kind": "moe", "capacity_factor": 2.0, "top_k": 1}
CELL = {
    "kind": "recurrence", "inputs": ["u"], "state": {"h": 0.0}, "update": {"h": "0.9*h + u"}, "output": "next(h)",
}  # fmt: skip


def spec(source: list[Any], target: list[Any], **more: Any) -> dict[str, Any]:
    """An encoder of two layers and a decoder of two."""
    stack = [{"stream": "source", "repeat": 2, "layer": source}] if source else []
    stack.append({"stream": "target", "repeat": 2, "layer": target})
    layers = [[{"block": b} for b in stage["layer"]] for stage in stack]
    stack = [{**stage, "layer": layer} for stage, layer in zip(stack, layers)]
    streams = {"source": {"length": "source", "once": True}, "target": {"length": "target"}}
    found = {"name": "pair", "dims": DIMS, "streams": streams, "stack": stack, "head": {"stream": "target"}}
    return {**found, **more}


TIED = {
    "source": {"length": "source", "once": True, "embed": {"norm": "layer_norm", "dropout": 0.1}},
    "target": {"length": "target", "embed": {"like": "source", "tied": "source", "scale": 2.0}},
}
CASES = {
    "plain": spec([ENCODE, MLP], [DECODE, CROSS, MLP]),
    "tied": spec([ENCODE], [DECODE, CROSS], streams=TIED, head={"stream": "target", "tied": True}),
    "grouped and turned": spec(
        [ENCODE], [DECODE, {**CROSS, "kv_heads": 1, "rotary": True, "score": "s - 0.1*(q - k)"}]
    ),
    "segments": spec(
        [{**ENCODE, "pattern": "same_segment"}], [DECODE, {**CROSS, "pattern": "same_segment and valid"}]
    ),
    "near the diagonal": spec([ENCODE], [DECODE, {**CROSS, "pattern": "valid and q - k < 3 and k - q < 3"}]),
    "experts and a cell": spec([ENCODE, MOE], [CELL, CROSS, MOE]),
    "experts in the encoder": spec([MOE], [DECODE, CROSS]),
    "embedded alone": spec([], [CROSS, DECODE]),
    "a norm between": spec(
        [ENCODE], [DECODE, CROSS], sublayer={"norm": "rms_norm"}, norm="rms_norm",
        stack=[
            {"stream": "source", "layer": [{"block": ENCODE}], "norm": "rms_norm"},
            {"stream": "target", "repeat": 2, "layer": [{"block": DECODE}, {"block": CROSS}]},
        ],
    ),
    "classified": spec([ENCODE], [DECODE, CROSS], head=[
        {"stream": "target"}, {"kind": "classify", "classes": 3, "stream": "target"},
    ]),
}  # fmt: skip


@cache
def planned(name: str) -> Planned:
    return api.planned(load_mapping(CASES[name]), True, "cpu")


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory):
    made: dict[str, Any] = {}

    def module(name: str) -> Any:
        if name not in made:
            folder: Path = write(files_of(planned(name)), tmp_path_factory.mktemp(name.replace(" ", "_")) / "package")
            made[name] = module_of(folder)
        return made[name]

    return module


@pytest.mark.parametrize("name", some(CASES, 6))
def test_a_package_is_its_reference(name: str, modules: Any) -> None:
    found = verify.verify(planned(name).program, lambda: modules(name))

    assert found.ok, found.text()
    assert "decode = parallel" in {row.check for row in found.rows}, found.text()


def drawn(module: Any, batch: int = 3) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    given = {"source_tokens": (7, 11), "target_tokens": (5, 11)}
    tokens = {k: torch.randint(0, n, (batch, m), generator=draw) for k, (m, n) in given.items()}
    return {**tokens, "source_valid": torch.arange(7)[None] < torch.tensor([[7], [4], [2]])[:batch]}


def test_a_changed_source_moves_every_position_and_padding_of_it_none(modules: Any) -> None:
    module = modules("plain").double().eval()
    given = drawn(module)
    before = module(**given).logits
    tokens = given["source_tokens"].clone()
    tokens[:, 0] = (tokens[:, 0] + 1) % 11
    padded = torch.where(given["source_valid"], given["source_tokens"], 3)

    assert ((module(**{**given, "source_tokens": tokens}).logits - before).abs().amax(-1) > 1e-6).all()
    torch.testing.assert_close(module(**{**given, "source_tokens": padded}).logits, before, rtol=0, atol=1e-12)


def test_what_is_read_once_is_kept_and_steps_never_read_it_again(modules: Any) -> None:
    """Keys and values of a cross attention are projected once: a step multiplies by no such matrix."""
    module = modules("plain").double().eval()
    given = drawn(module)
    once = {k: given[k] for k in ("source_tokens", "source_valid")}
    state = module.state(**once)
    layer = module.target.layers[0]
    torch.nn.init.zeros_(layer.get_parameter("attention_2.key.weight"))  # too late: it is made
    torch.nn.init.zeros_(layer.get_parameter("attention_2.value.weight"))

    assert [len(b.constant) for b in state.blocks] == [0, 3, 3, 0]
    out, after = module.step(given["target_tokens"][:, 0], state)
    assert all(a is b for x, y in zip(state.blocks, after.blocks) for a, b in zip(x.constant, y.constant))
    assert not torch.equal(out.logits, module.step(given["target_tokens"][:, 0], module.state(**once))[0].logits)


def test_rows_of_a_state_are_chosen_joined_and_gone_on_from(modules: Any) -> None:
    module = modules("tied").double().eval()
    given = drawn(module)
    once = {k: given[k] for k in ("source_tokens", "source_valid")}
    whole = module(**given).logits
    _, state = module.prefill(**once, target_tokens=given["target_tokens"][:, :3])
    turned = state.select([2, 0])
    out, _ = module.step(given["target_tokens"][[2, 0], 3], turned)
    torch.testing.assert_close(out.logits, whole[[2, 0], 3], rtol=0, atol=1e-12)
    both = type(state).join([turned, state.select([1])])
    out, _ = module.step(given["target_tokens"][[2, 0, 1], 3:], both)
    torch.testing.assert_close(out.logits, whole[[2, 0, 1], 3:], rtol=0, atol=1e-12)
    short = {k: x[:1, :4] for k, x in once.items()}
    with pytest.raises(ValueError, match="differs in length"):
        type(state).join([turned, module.state(**short)])


def test_two_streams_that_grow_are_trained_and_say_why_there_is_no_step(modules: Any) -> None:
    grow = {name: {"length": name} for name in ("source", "target")}
    one = api.planned(load_mapping({**CASES["plain"], "streams": grow}), True, "cpu")

    assert one.decoding.why == "source and target grow at once"


def test_bad_calls_name_the_input_and_the_dim(modules: Any) -> None:
    module = modules("plain").eval()
    given, tokens = drawn(module), torch.zeros(3, 5, dtype=torch.int64)
    _, state = module.prefill(given["source_tokens"], given["source_valid"], tokens)
    with pytest.raises(ValueError, match="target_tokens: dim target is 6, over its declared maximum 5"):
        module(**{**given, "target_tokens": torch.zeros(3, 6, dtype=torch.int64)})
    with pytest.raises(ValueError, match="source_valid: dim source is 3, but 7 in another input"):
        module.state(given["source_tokens"], given["source_valid"][:, :3])
    with pytest.raises(IndexError, match="source_tokens: 11 is outside dim vocab"):
        module.encode(given["source_tokens"].fill_(11), given["source_valid"])
    with pytest.raises(ValueError, match="dim target would be 6, over its declared maximum 5"):
        module.step(tokens[:, 0], state)
