"""Recurrences of tensors in torch: the functions that are printed of them, and the examples."""

from pathlib import Path

import pytest
import torch

from tests.campaign import some
from tests.codegen.emission import callable_of, source_of
from tests.passes.recurrences import STATE, program, recurrence
from weft import api
from weft.codegen.runtime.chunked import unit_inverse
from weft.ir.reference import run
from weft.passes.chunk.chunk import chunk
from weft.passes.derivative import joint

EXAMPLES = sorted(p for p in Path("examples/blocks").glob("*.yaml") if "tensor_recurrence" in p.read_text())
KEY, VALUE = ["heads", "key"], ["heads", "value"]
UPDATES = {
    "one decay for all keys": ("sigmoid(g)*s + k*v", {"g": ["heads"]}),
    "a decay for each key": ("sigmoid(g)*s + k*v", {"g": KEY}),
    "delta rule with a decay for each key": ("sigmoid(g)*s - r*sum(key, e*s) + k*v", {"g": KEY, "r": KEY, "e": KEY}),
}


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("seq", [9])
def test_what_is_printed_is_the_graph(name: str, seq: int):
    """Forward and derivative of chunks that the last position does not fill, 5 places each: no power of two."""
    update, more = UPDATES[name]
    block = {
        "kind": "tensor_recurrence", "inputs": {"q": KEY, "k": KEY, "v": VALUE, **more}, "state": {"s": STATE},
        "update": {"s": update}, "output": "sum(key, q*next(s))",
    }  # fmt: skip
    made = program(block, chunk=5, seq=seq)
    both = joint(chunk(recurrence(made)))
    sizes = made.resolve(seq=seq)
    source = source_of(both, sizes)
    gen = torch.Generator().manual_seed(0)
    args = [torch.randn([sizes[d] for d in v.dims], generator=gen, dtype=torch.float64) for v in both.inputs]
    want, got = run(both, sizes, args, torch, torch.float64), callable_of(source)(*args)

    assert ("chunked.decayed_product_backward(" in source) == ("each key" in name)
    assert ("chunked.unit_inverse(" in source) == ("delta" in name)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("path", some(EXAMPLES, 3), ids=lambda p: p.stem)
def test_an_example_is_computed_in_chunks_unless_it_multiplies_by_matrices(path: Path):
    found = chunk(recurrence(api.program(api.open_spec(path, small=True))))
    expected = "step by step" if "matrices:" in path.read_text() else "in chunks"

    assert {d.choice.split(":")[0] for d in found.decisions} == {expected}


def test_a_triangle_of_a_narrow_dtype_is_inverted_in_a_wide_one():
    x = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = unit_inverse(x)

    assert found.dtype == torch.bfloat16
    assert torch.equal(found, unit_inverse(x.float()).bfloat16())
