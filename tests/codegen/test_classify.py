"""A model whose only head is a classifier reads its first position and nothing else of the length: it trains all the
same, is verified and exported, whatever its blocks are."""

import onnx
import pytest
import yaml

from weft import api

BLOCKS = {
    "mlp": {"kind": "mlp"},
    "attention": {"kind": "attention", "pattern": "all"},
    "moe": {"kind": "moe", "capacity": 4},
    "cell": {"kind": "recurrence", "inputs": ["u"], "state": {"h": 0}, "update": {"h": "0.5*h + u"}, "output": "h"},
}
DIMS = {"batch": 2, "seq": 8, "width": 8, "heads": 2, "head": 4, "inner": 6, "experts": 2, "vocab": 11}
HEAD = {"kind": "classify", "classes": 3}


@pytest.mark.parametrize(
    ("layer", "more"),
    [
        (["mlp"], {"head": HEAD}),
        (["attention", "moe", "cell"], {"head": HEAD | {"pool": "none"}, "norm": "rms_norm"}),
        (["mlp"], {"head": [HEAD], "sublayer": {"norm": "none", "residual": "none"}}),
    ],
)
def test_a_pure_classifier_trains_and_is_exported(tmp_path, layer, more):
    model = {"name": "classifier", "dims": DIMS, "blocks": BLOCKS, "stack": [{"layer": layer}], **more}
    spec = tmp_path / "classifier.yaml"
    spec.write_text("weft: 1\n" + yaml.safe_dump(model))

    found = api.verify(spec, target="cpu", kernels=False)

    assert found.ok, found.text()
    for path in api.export(spec, "onnx", str(tmp_path / "onnx")):
        assert onnx.load(path).graph.node
