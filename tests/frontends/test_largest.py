"""What is frozen when compiling is made for the largest run, not for the sizes in `dims`."""

import json

import pytest

from tests.codegen.attention_model import spec
from weft import api
from weft.frontends.blocks.block_plan import BlockPlan, draw
from weft.frontends.load import load_text
from weft.ir.library.attention import Attend
from weft.ir.pattern import Pattern
from weft.ir.pattern.table import mix


def pattern(block: dict, **dims: int | str) -> Pattern:
    """The pattern of the one attention of a spec with seq 4 in `dims` and 8 at most."""
    data = spec(block, seq=4, **dims) | {"runtime": {"seq": {"max": 8}}}
    program = api.program(load_text(json.dumps(data)))
    (call,) = (n for n in program.graph.nodes if hasattr(n.op, "dim"))
    (layer,) = call.op.body.nodes
    (attend,) = (n.op for n in layer.op.body.nodes if isinstance(n.op, Attend))
    return attend.pattern


def test_a_block_plan_serves_every_run():
    assert pattern({"plan": {"block": 2, "random": 1, "window": 1}}).at(8).text.count("all") == 4  # two rows, two heads


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("k < seq // 2", "k < 4"),
        ("window(half)", "window(4)"),
        ("bigbird(2, 1, 0)", "bigbird(2, 1, 0, 8)"),
        ("blocks(seq // 2, [[0], [0, 1]])", "blocks(4, [[0], [0, 1]])"),
    ],
)
def test_a_pattern_reads_the_largest_length(text, want):
    assert pattern({"pattern": text}, half="seq // 2").text == want


def test_random_blocks_are_drawn_from_those_outside_the_window():
    """As the definition: draw t of row i is number mix(seed, head, i, t) modulo how many are left, in order."""
    for rows in range(12):
        for window in (1, 3, 5):
            plan = BlockPlan(block=4, window=window, random=3, seed=5)
            for i, drawn in enumerate(draw(plan, rows, 2), 1):
                left = [b for b in range(1, rows - 1) if abs(b - i) > window // 2]
                assert drawn == ([left[int(mix(5, 2, i, t)) % len(left)] for t in range(3)] if left else [])
