"""What the page says of formulas is accepted wherever a key takes one; what is no number is refused at its place."""

import pytest

from tests.formulas import sums
from weft import Model, api
from weft.errors import SpecError

DIMS = {"batch": 2, "seq": 8, "width": 8, "heads": 2, "head": 4, "inner": 6, "experts": 2, "vocab": 11}
CELL = {"kind": "recurrence", "inputs": ["u"], "state": {"h": 0}, "update": {"h": "0.5*h + u"}, "output": "h"}

KEYS = {  # key -> the name its formulas have, and the part of a spec with one
    "activation": ("x", lambda f: {"blocks": {"a": {"kind": "mlp", "activation": f}}}),
    "activation of experts": ("x", lambda f: {"blocks": {"a": {"kind": "moe", "capacity": 4, "activation": f}}}),
    "pool": ("x", lambda f: {"head": {"kind": "classify", "classes": 3, "pool": f}}),
    "transform": ("x", lambda f: {"head": {"transform": {"activation": f}}}),
    "score": ("s", lambda f: {"blocks": {"a": {"kind": "attention", "pattern": "causal", "score": f}}}),
    "scale": ("head", lambda f: {"blocks": {"a": {"kind": "attention", "pattern": "causal", "scale": f}}}),
    "scale of the embedding": ("width", lambda f: {"embed": {"scale": f}}),
    "scale of the head": ("width", lambda f: {"head": {"scale": f}}),
    "init": ("fan_in", lambda f: {"init": {"weight": {"normal": f}}}),
    "index": ("i", lambda f: {"embed": {"positions": [{"learned": 100, "index": f"max(0, min(9, floor({f})))"}]}}),
    "let": ("u", lambda f: {"blocks": {"a": CELL | {"let": {"l": f}, "output": "l + h"}}}),
    "update": ("h", lambda f: {"blocks": {"a": CELL | {"update": {"h": f"{f} + u"}}}}),
    "output": ("h", lambda f: {"blocks": {"a": CELL | {"output": f}}}),
}


def check(part):
    model = {"name": "formulas", "dims": DIMS, "blocks": {"a": {"kind": "mlp"}}, "stack": [{"layer": ["a"]}]} | part
    return api.check(Model(**model))


@pytest.mark.parametrize("key", KEYS)
def test_a_documented_form_is_accepted(key):
    name, part = KEYS[key]
    for formula in sums("(i + 1)" if key == "index" else name, 6):
        check(part(formula))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("formula", ["1 if V else 2", "where(V, 1, 2)", "V > 1", "1 if V > 1 and V else 2", "V = 1"])
def test_a_number_is_no_condition_and_a_condition_no_number(key, formula):
    name, part = KEYS[key]
    with pytest.raises(SpecError) as e:
        check(part(formula.replace("V", name)))

    assert {p.code for p in e.value.problems} == {"W0301"}
    assert all(p.place is not None and p.hint for p in e.value.problems)
