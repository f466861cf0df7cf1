"""The public surface: a literal list of names, each of which exists and says what it is."""

import subprocess
import sys

import pytest

import weft
from weft.frontends.load import load_text

NAMES = {
    "MLP",
    "Attention",
    "BlockRecurrence",
    "MoE",
    "H3",
    "Convolution",
    "Model",
    "Opaque",
    "Recurrence",
    "StateSpace",
    "TensorRecurrence",
    "WeftError",
    "compile",
    "load",
    "load_hf",
    "optimizer",
    "plan",
    "reference",
    "save_hf",
}


def test_the_names_are_these():
    assert set(weft.__all__) == NAMES
    assert len(NAMES) < 24  # one for each block kind, and few others


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_name_has_a_docstring(name: str):
    assert (getattr(weft, name).__doc__ or "").strip()


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'complie'"):
        _ = weft.complie


def test_the_builder_and_the_file_are_the_same_language():
    model = weft.Model(
        name="tiny",
        dims={"batch": 2, "seq": 16, "width": 8, "heads": 2, "head": 4, "inner": 16, "vocab": 11, "experts": 2},
        blocks={
            "attention": weft.Attention(pattern="causal", bias=["query"]),
            "mlp": weft.MLP(activation="silu", gated=True),
            "moe": weft.MoE(capacity=8),
            "cell": weft.Recurrence(inputs=["u"], state={"c": 0.0}, update={"c": "c + u"}, output="c"),
            "tensors": weft.TensorRecurrence(
                inputs={"k": ["heads", "head"], "v": ["inner"]},
                state={"s": ["heads", "head", "inner"]},
                update={"s": "s + k*v"},
                output="sum(head, k*next(s))",
            ),
        },
        stack=[
            {"repeat": 2, "layer": ["attention", {"block": "mlp", "dropout": 0.1}]},
            {"layer": ["cell", "tensors", "moe"]},
        ],
        init={"weight": {"normal": "1/sqrt(fan_in)"}, "output": "zeros"},
    )
    text = model.to_yaml()

    assert text.startswith("weft: 1\n")
    assert load_text(text).model == model
    assert load_text(text).model.to_yaml() == text


def test_the_builder_needs_no_torch():
    code = "import sys, weft; weft.Model; weft.Opaque; weft.WeftError; weft.plan; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
