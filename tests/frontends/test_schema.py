"""The spec language as pydantic models: what is accepted, what is refused, and that builder and YAML are the same."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

import weft
from weft.frontends import schema
from weft.frontends.blocks import Attention, Mlp
from weft.frontends.load import load_spec, load_text
from weft.frontends.schema import LanguageHead, Model, NormRule, Stage, SubLayer

SPECS = sorted(Path("examples/specs").glob("*.yaml"))
SMALLEST: dict[str, Any] = {
    "name": "tiny",
    "dims": {"batch": 2, "seq": 8, "width": 16, "heads": 2, "head": 8, "inner": 32, "vocab": 20},
    "stack": [{"layer": [{"block": {"kind": "attention", "pattern": "causal"}}]}],
}

CELL = {"kind": "recurrence", "inputs": ["u"], "state": {"c": 0.0}, "update": {"c": "c + u"}, "output": "c"}


def parts() -> list[type[BaseModel]]:
    found = [schema.SpecPart]
    for part in found:
        found += part.__subclasses__()
    return sorted((p for p in found if p.model_fields), key=lambda p: p.__name__)


@pytest.mark.parametrize("part", parts(), ids=lambda p: p.__name__)
def test_every_key_is_described(part: type[BaseModel]) -> None:
    assert part.__doc__
    for name, field in part.model_fields.items():
        inherited = any(getattr(m, "description", None) for m in field.metadata)
        assert field.description or inherited or name == "kind", name


@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.stem)
def test_shipped_specs_round_trip(path: Path) -> None:
    model = load_spec(path).model
    assert load_text(model.to_yaml()).model == model
    assert {*model.runtime_dims, "width", "vocab"} <= set(model.dims)
    assert set(model.small) <= set(model.dims)
    assert {*model.runtime_dims[1:]} <= set(model.small) or "rows" in model.small


def test_the_builder_writes_the_same_spec() -> None:
    built = Model(
        name="gpt2_345m",
        dims={"batch": 1, "seq": 1024, "width": 1024, "heads": 16, "head": "width // heads", "inner": "4*width",
              "layers": 24, "vocab": 50257},
        blocks={"attention": Attention(pattern="causal"), "feedforward": Mlp(activation="gelu_tanh")},
        sublayer=schema.SubLayerDefaults(norm="layer_norm", residual="pre", dropout=0.1),
        stack=[Stage(repeat="layers", layer=["attention", SubLayer(block="feedforward")])],
        norm=NormRule(kind="layer_norm", eps=1e-5),
        head=LanguageHead(tied=True),
    )  # fmt: skip
    again = load_text(built.to_yaml()).model
    assert again == built
    assert again.blocks["attention"].kind == "attention"
    assert weft.Model is Model
    assert weft.Attention is Attention


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"hedas": 2}, ("hedas",)),
        ({"weft": 2}, ("weft",)),
        ({"name": "Tiny"}, ("name",)),
        ({"dims": {"batch": 1, "seq": 2}}, ()),
        ({"dims": SMALLEST["dims"] | {"width": 0}}, ("dims", "width")),
        ({"dims": SMALLEST["dims"] | {"width": 1.5}}, ("dims", "width")),
        ({"dims": SMALLEST["dims"] | {"width": True}}, ("dims", "width")),
        ({"stack": []}, ("stack",)),
        ({"stack": [{}]}, ("stack", 0)),
        ({"stack": [{"layer": ["a"], "cycle": [["a"]]}]}, ("stack", 0)),
        ({"stack": [{"layer": []}]}, ("stack", 0, "layer")),
        ({"norm": "batch_norm"}, ("norm",)),
        ({"norm": 3}, ("norm",)),
        ({"norm": {"kind": "layer_norm", "eps": 0}}, ("norm",)),
        ({"sublayer": {"dropout": 1.0}}, ("sublayer", "dropout")),
        ({"sublayer": {"dropout": "0.1"}}, ("sublayer", "dropout")),
        ({"head": {"tied": "yes"}}, ("head",)),
        ({"head": []}, ()),
        ({"init": {"weight": {"normal": 1.0, "uniform": 1.0}}}, ("init", "weight")),
        ({"init": {"weight": {}}}, ("init", "weight")),
        ({"blocks": {"a": {"pattern": "causal"}}}, ("blocks", "a")),
        ({"blocks": {"a": {"kind": "atention", "pattern": "causal"}}}, ("blocks", "a")),
        ({"blocks": {"a": {"kind": "attention"}}}, ("blocks", "a")),
        ({"blocks": {"a": {"kind": "attention", "pattern": "all", "plan": {"block": 4}}}}, ("blocks", "a")),
        ({"blocks": {"a": {"kind": "attention", "plan": {"block": 4, "window": 2}}}}, ("blocks", "a")),
        ({"blocks": {"a": {"kind": "attention", "pattern": "all", "rotary": "yes"}}}, ("blocks", "a")),
        ({"blocks": {"a": {"kind": "moe"}}}, ("blocks", "a")),
        ({"blocks": {"a": {"kind": "moe", "capacity": 2, "capacity_factor": 1.0}}}, ("blocks", "a")),
        ({"blocks": {"a": {"kind": "opaque", "module": "os.system"}}}, ("blocks", "a")),
        ({"blocks": {"a": CELL | {"update": {}}}}, ("blocks", "a")),
        ({"blocks": {"a": CELL | {"inputs": ["c"]}}}, ("blocks", "a")),
        ({"blocks": {"a": CELL | {"inputs": ["mask"]}}}, ("blocks", "a")),
    ],
)  # fmt: skip
def test_refused(change: dict[str, Any], where: tuple[str, ...]) -> None:
    Model.model_validate(SMALLEST)
    with pytest.raises(ValidationError) as caught:
        Model.model_validate(SMALLEST | change)
    errors = caught.value.errors()
    assert any(e["loc"][: len(where)] == where for e in errors), errors
    assert len(errors) == 1, [e["loc"] for e in errors]


def test_an_opaque_block_has_no_yaml_form() -> None:
    torch = pytest.importorskip("torch")
    model = Model.model_validate(SMALLEST | {"stack": [{"layer": [SubLayer(block=weft.Opaque(torch.nn.Tanh()))]}]})
    with pytest.raises(ValueError, match="no YAML form"):
        model.to_yaml()


def test_the_schema_needs_no_torch() -> None:
    code = "import sys, weft.frontends.lower.program, weft.frontends.schema\n"
    code += "assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
