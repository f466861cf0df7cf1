"""Indices in gathers: an interval of a formula holds every value it takes, so an index called in range is in range."""

import random

import pytest
import yaml

from weft import api
from weft.codegen.torch.memory import bounds
from weft.codegen.torch.sizes import Sizes
from weft.ir.formula import parse

SIZES = {"a": 3, "b": 5}
FORMS = (
    *("({x} + {y})", "({x} - {y})", "{x} * {y}", "({x}) // 3", "({x}) % 4", "-({x})"),
    *("max({x}, {y})", "min({x}, {y})", "where({x} > {y}, {x}, {y})"),
)


def drawn(r: random.Random, depth: int) -> str:
    if depth == 0 or r.random() < 0.2:
        return r.choice(["i_a", "i_b", "n_a", "n_b", "2", "7", "1"])
    x, y = drawn(r, depth - 1), drawn(r, depth - 1)
    form = r.choice(FORMS)
    return form.format(x=x, y=y)


@pytest.mark.parametrize("seed", range(300))
def test_bounds_hold_every_value(seed):
    text = drawn(random.Random(seed), 3)
    found = bounds(Sizes(SIZES, {}), parse(text))
    code = compile(text.replace("where(", "pick("), text, "eval")
    places = [{"i_a": i, "i_b": j, "n_a": 3, "n_b": 5} for i in range(3) for j in range(5)]
    values = [eval(code, {"max": max, "min": min, "pick": lambda c, a, b: a if c else b}, p) for p in places]

    assert found is not None or any(f in text for f in ("//", "%", "*"))
    assert found is None or found[0] <= min(values) <= max(values) <= found[1]


def test_attention_of_several_heads_feeds_a_cell(tmp_path):
    cell = {"kind": "recurrence", "inputs": ["u"], "state": {"h": 0}, "update": {"h": "0.5*h + u"}, "output": "h"}
    cell["projection"] = {"rank": 8, "heads": 2}
    model = {"name": "srupp", "dims": {"batch": 2, "seq": 6, "width": 8, "vocab": 11}, "blocks": {"cell": cell}}
    path = tmp_path / "srupp.yaml"
    path.write_text("weft: 1\n" + yaml.safe_dump(model | {"stack": [{"layer": ["cell"]}]}))

    found = api.verify(path, target="cpu", kernels=False)

    assert found.ok, found.text()
