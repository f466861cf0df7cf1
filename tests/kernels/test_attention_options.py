"""What a spec may say of attention, through its kernels; the truth is what plain torch agrees with elsewhere."""

import pytest
import torch

from tests.campaign import some
from tests.codegen.attention_options import Options, Stack
from tests.frontends.lowering import nodes
from tests.kernels.emitted import Emitted, check
from weft.api import open_spec, program
from weft.ir.builder import Builder
from weft.ir.library import Attend

CASES = [
    Options("window(3)", "0"),
    Options("band(2, 1)", "cos(k)", "4/seq"),
    Options("heads(causal, window(2))", "where(s > 0, 1, 0)"),
    Options("causal and fixed(3, 1)", "s*exp(1000*(k - q))", "-1/8"),
    Options("causal", "s*(1 + h) - log(1 + q - k)", "-1/8", kv_heads=1),
    Options("all", "s*log(1 + seq - q)", -0.7),
    Options("all", "s*sqrt(seq - 1 - k) + log(seq - k)", 0.3, globals=3),
    Options("strict_causal", "s/(k - q - 1)", 0),
    Options("causal and strided(3)", "s", "-1/8"),
    Options("band(2, 1)", "s - abs(q - k)/seq", globals=2, beside="valid and same_segment"),
]


@pytest.mark.parametrize("options", some(CASES, 5), ids=lambda o: f"{o.pattern}; {o.score}; {o.scale}")
def test_kernels_keep_to_the_options(options: Options):
    """Each attention of the block: its output and gradients in fp64 and fp32, every one by a kernel."""
    made = program(open_spec(Stack([options]).model()))
    for n in nodes(made.graph):
        if not isinstance(n.op, Attend):
            continue
        g = Builder()
        names = ("q", "k", "v", *n.op.meta)
        out = g.many(n.op, *(g.input(name, v.type) for name, v in zip(names, n.ins)))[0]
        emitted = Emitted(g.graph(out), made.resolve(batch=2, seq=8), runtime=())
        draw = torch.Generator().manual_seed(1)
        args = {v.name: torch.randn([emitted.sizes[d] for d in v.dims], generator=draw) for v in emitted.graph.inputs}
        args |= {name: (args[name] > 0.6).long().cumsum(-1) for name in args.keys() & {"segments", "key_segments"}}
        args |= {name: args[name] > -0.5 for name in args.keys() & {"valid"}}
        assert check(emitted, args) < 1e-10
        assert check(emitted, args, torch.float32) < 1e-5
        assert {r.kernel.split("_")[1] for r in emitted.rows} == {"attention"}
