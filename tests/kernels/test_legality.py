"""Kernels of generated graphs as the compiler sees them, which takes less than the interpreter: groups of operands, of
states and of results that are empty, constants, dtypes."""

from random import Random

import pytest

from tests.campaign import count
from tests.codegen.cells import BARE, draw, spec
from tests.ir.generate import random_graph
from tests.kernels.emitted import Emitted
from tests.kernels.legality import refusals
from tests.kernels.product_regions import Experts, Products
from tests.kernels.test_regions import attention, cell, chain
from weft import Model, api
from weft.ir.composite import Call

FAMILIES = {
    "cell": lambda seed: cell(seed),
    "attention": lambda seed: attention(seed)[:2],
    "chain": lambda seed: chain(seed),
    "any": lambda seed: random_graph(Random(seed)),
    "products": lambda seed: (Products(seed).graph, Products(seed).sizes),
    "experts": lambda seed: (Experts(seed).graph, Experts(seed).sizes),
}
GRU = {
    "inputs": ["z", "u"], "state": {"h": 0.5}, "let": {"g": "sigmoid(z)", "n": "(1 - g)*h + g*u"},
    "update": {"h": "n"}, "output": "n",
}  # fmt: skip
CELLS = (GRU, *Random(0).sample(BARE, count(3, len(BARE))), *map(draw, range(count(1, 40))))


def body(cell):
    """The block of a spec's cell."""
    program = api.program(api.open_spec(Model.model_validate(spec([cell], "f32", sublayer={"norm": "none"}))))
    todo = list(program.graph.nodes)
    for n in todo:
        if isinstance(n.op, Call) and n.op.name == "k0":
            return n.op.body, program.resolve()
        todo += n.op.body.nodes if not isinstance(n.op, Call) and hasattr(n.op, "body") else ()
    raise AssertionError("no such block")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(count(1, 40)))
def test_every_kernel_of_a_graph_compiles(family, seed):
    graph, sizes = FAMILIES[family](seed)

    assert refusals(Emitted(graph, sizes, runtime=()), "bf16" if seed % 2 else "f32") == {}


@pytest.mark.parametrize("i", range(len(CELLS)))
def test_every_kernel_of_a_cell_compiles(i):
    graph, sizes = body(CELLS[i])
    made = Emitted(graph, sizes)

    assert refusals(made) == {}
    assert i or any("scan" in region.skeleton for region in made.kernels[2].files.values())
