"""Every function that sizes may use, at every key that takes a size; and such a program as a package saves it."""

import json

import pytest

from weft import api
from weft.codegen.package.saved import from_data, to_data
from weft.frontends.load import load_text
from weft.ir.program import Program
from weft.ir.text import show

DIMS = {"batch": 2, "seq": 8, "width": 8, "heads": 2, "head": 4, "inner": 6, "vocab": 11}
TWO = ("min(heads, seq)", "max(1, seq // 4)", "ceil_div(seq - 1, 4)", "seq % 3", "heads / 1", "-(1 - seq) // 3")


def program(size: str) -> Program:
    """Every key of a size set to this expression, which is 2 at the longest run."""
    blocks = {
        "attention": {
            "kind": "attention", "pattern": "causal", "heads": size, "kv_heads": size, "head": size, "value": size,
        },
        "far": {"kind": "attention", "pattern": "window(2)", "globals": {"tokens": size}},
        "cell": {
            "kind": "recurrence", "inputs": ["u"], "state": {"c": 0}, "update": {"c": "c/2 + u"}, "output": "c",
            "projection": {"rank": size, "heads": size, "pattern": "causal"},
        },
        "moe": {"kind": "moe", "experts": size, "capacity": size, "inner": size},
        "feedforward": {"kind": "mlp", "inner": "own"},
    }  # fmt: skip
    spec = {
        "weft": 1, "name": "sized", "dims": DIMS | {"own": size}, "blocks": blocks,
        "stack": [{"repeat": size, "layer": list(blocks)}],
        "runtime": {"batch": {"max": f"2*({size})"}, "seq": {"align": size}},
        "embed": {"types": size, "positions": [{"learned": f"4*({size})"}]},
        "head": [{"kind": "language"}, {"kind": "classify", "classes": size}],
    }  # fmt: skip
    return api.program(load_text(json.dumps(spec)))


@pytest.mark.parametrize("size", TWO)
def test_every_size_takes_every_function(size):
    made = program(size)
    sizes = made.resolve(seq=8)
    for dim in ("heads", "experts", "capacity", "types", "classes", "rank", "layers", "globals"):
        assert sizes.get(dim, 2) == 2, dim
    up = next(p for p in made.params if p.name.endswith("feedforward.up.weight"))
    assert [sizes[d] for d in up.dims] == [8, 2]
    assert {"experts", "capacity", "rank"} <= set(sizes)
    assert (made.runtime["batch"].max, made.runtime["seq"].align, sizes["positions"]) == (4, 2, 8)


@pytest.mark.parametrize("size", TWO)
def test_a_saved_program_has_the_same_sizes(size):
    made = program(size)
    again = from_data(json.loads(json.dumps(to_data(made))), show(made.graph))
    assert dict(again.sizes) == dict(made.sizes)
    assert [again.resolve(seq=n)["capacity"] for n in (2, 6, 8)] == [made.resolve(seq=n)["capacity"] for n in (2, 6, 8)]
