"""Every score, scale, pattern, rotary rule and number of global tokens, beside others, against plain torch in fp64."""

import pytest
import torch
from torch import Tensor

from tests.codegen.attention_options import WIDTH, Options, Stack, crossed
from tests.codegen.emission import callable_of
from tests.frontends.lowering import nodes
from weft.api import open_spec, program
from weft.codegen.body import File
from weft.codegen.composites import known
from weft.codegen.function import print_function
from weft.codegen.prepare import prepare
from weft.codegen.sizes import Sizes
from weft.ir.derive import joint
from weft.ir.primitives import Call
from weft.ir.reference import run

TOLERANCE = 1e-10
LENGTHS = (1, 5, 8)


def worst(got: list[Tensor], want: list[Tensor]) -> float:
    """The largest difference by the size of what there is; infinite where one is nan."""
    size = max(float(x.norm()) for x in want)
    return max(float((a - b).norm().nan_to_num(torch.inf)) for a, b in zip(got, want, strict=True)) / size


@pytest.mark.parametrize("options", tuple(crossed()), ids=lambda o: f"{o.pattern}; {o.score}; {o.scale}")
def test_a_block(options: Options):
    """Its output and all gradients: the emitted code's, the interpreter's own, and those of the derived graph."""
    made = program(open_spec(Stack([options]).model()))
    graph = next(n.op.body for n in nodes(made.graph) if isinstance(n.op, Call) and n.op.name == "a0")
    names = [v.name for v in graph.inputs]
    both = joint(graph, names)
    file = File(Sizes.of(made))
    printed = print_function(file, "fn", prepare(both, known))
    emitted = callable_of("\n".join([*file.header(), "", "", *printed.lines, ""]))
    for n in LENGTHS:
        sizes, draw = made.resolve(batch=2, seq=n), torch.Generator().manual_seed(n)
        x = [torch.randn([sizes[d] for d in v.dims], generator=draw, dtype=torch.float64) for v in graph.inputs]
        d_out = torch.randn(2, n, WIDTH, generator=draw, dtype=torch.float64)
        leaves = [v.clone().requires_grad_() for v in x]

        def whole(out: Tensor) -> list[Tensor]:
            grads = torch.autograd.grad(out, leaves, d_out, materialize_grads=True)  # noqa: B023
            return [out.detach(), *grads]

        w = {name.removeprefix("attention_"): v for name, v in zip(names, leaves)}
        w = {f"{name.rpartition('_')[0]}.{name.rpartition('_')[2]}": v for name, v in w.items()}
        want = whole(leaves[0] + options.truth(leaves[0], w))
        assert worst(whole(run(graph, sizes, leaves, torch, torch.float64)[0]), want) < TOLERANCE, n
        assert worst(list(run(both, sizes, [*x, d_out], torch, torch.float64)), want) < TOLERANCE, n
        assert worst(list(emitted(*x, d_out)), want) < TOLERANCE, n
