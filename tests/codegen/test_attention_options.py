"""Every score, scale, pattern, rotary rule and number of global tokens, beside others, against plain torch in fp64."""

from typing import Any

import pytest
import torch
from torch import Tensor

import weft
from tests.codegen.attention_options import EVERY, SEQ, VOCAB, WIDTH, Options, Stack, crossed
from tests.codegen.emission import callable_of
from tests.frontends.lowering import nodes
from weft.api import open_spec, program
from weft.codegen.torch.body import File
from weft.codegen.torch.composites import known
from weft.codegen.torch.function import print_function
from weft.codegen.torch.sizes import Sizes
from weft.ir.composite import Call
from weft.ir.derive import joint
from weft.ir.reference import run
from weft.passes.opened import prepare

WEIGHED = (
    Options("causal", "s", "4/seq", True, weights="relu2", gate="silu"),
    Options("band(2, 1)", "s - abs(q - k)/seq", globals=2, weights="relu2(s)/seq"),
    Options("causal and fixed(3, 1)", "30*tanh(s/30)", kv_heads=1, weights="laplace"),
    Options("longformer(1, 1, 2)", "s", -0.7, weights="s"),
    Options("causal", "s*(1 + h) - log(1 + q - k)", weights="s*h/(1 + q - k)", beside="valid and same_segment"),
)
METADATA = (
    Options("band(2, 1)", "s - abs(q - k)/seq", "-1/8", True, 2, beside="valid and same_segment"),
    Options("causal", "s*(1 + h) - log(1 + q - k)", kv_heads=1, beside="same_segment"),
    Options("all", "0", 0, globals=3, beside="valid"),
)
TOLERANCE = 1e-10
LENGTHS = (1, 5, 8)


def worst(got: list[Tensor], want: list[Tensor]) -> float:
    """The largest difference by the size of what there is; infinite where one is nan."""
    got, want = ([x.detach() for x in some] for some in (got, want))
    size = max(float(x.norm()) for x in want)
    return max(float((a - b).norm().nan_to_num(torch.inf)) for a, b in zip(got, want, strict=True)) / size


def allowed(given: dict[str, Tensor]) -> Tensor:
    """Which pairs [batch 1 query key] the metadata among a block's inputs lets through."""
    found = EVERY
    if "valid" in given:
        found = found & given["valid"][:, None, None]
    if "segments" in given:
        found = found & (given["segments"][:, None, :, None] == given["segments"][:, None, None])
    return found


@pytest.mark.parametrize(
    "options", [*crossed(), *METADATA, *WEIGHED], ids=lambda o: f"{o.pattern}; {o.score}; {o.weights}; {o.scale}"
)
def test_a_block(options: Options):
    """Its output and all gradients: the emitted code's, the interpreter's own, and those of the derived graph."""
    made = program(open_spec(Stack([options]).model()))
    graph = next(n.op.body for n in nodes(made.graph) if isinstance(n.op, Call) and n.op.name == "a0")
    names = [v.name for v in graph.inputs if v.type.floating]
    both = joint(graph, names)
    file = File(Sizes.of(made))
    printed = print_function(file, "fn", prepare(both, known))
    emitted = callable_of("\n".join([*file.header(), "", "", *printed.lines, ""]))
    for n in LENGTHS:
        sizes, draw = made.resolve(batch=2, seq=n), torch.Generator().manual_seed(n)
        x = [torch.randn([sizes[d] for d in v.dims], generator=draw, dtype=torch.float64) for v in graph.inputs]
        x = [a if v.type.floating else a > -0.5 if v.dtype == "bool" else (a > 0.6).long().cumsum(-1)
             for a, v in zip(x, graph.inputs)]  # fmt: skip
        d_out = torch.randn(2, n, WIDTH, generator=draw, dtype=torch.float64)
        leaves = [a.clone().requires_grad_(v.type.floating) for a, v in zip(x, graph.inputs)]
        given = dict(zip((v.name for v in graph.inputs), leaves))

        def whole(out: Tensor) -> list[Tensor]:
            grads = torch.autograd.grad(out, [given[name] for name in names], d_out, materialize_grads=True)  # noqa: B023
            return [out.detach(), *grads]

        w = {name.removeprefix("attention_"): given[name] for name in names}
        w = {f"{name.rpartition('_')[0]}.{name.rpartition('_')[2]}": v for name, v in w.items()}
        want = whole(leaves[0] + options.truth(leaves[0], w, allowed(given)))
        assert worst(whole(run(graph, sizes, leaves, torch, torch.float64)[0]), want) < TOLERANCE, n
        assert worst(list(run(both, sizes, [*x, d_out], torch, torch.float64)), want) < TOLERANCE, n
        assert worst(list(emitted(*x, d_out)), want) < TOLERANCE, n


@pytest.fixture(scope="module")
def stack() -> Stack:
    """Blocks that decode, for runs longer than the spec's own length."""
    blocks = [
        Options("causal", "s*(1 + h) - log(1 + q - k)", "-1/8", True),
        Options("window(seq // 2)", "s - abs(q - k)/seq", "4/seq", kv_heads=1, gate="silu"),
        Options("causal", "s", "1/sqrt(head)", weights="sigmoid(s - log(1 + q))"),
    ]
    return Stack(blocks, {"seq": {"max": SEQ}}, seq=5)


@pytest.fixture(scope="module")
def module(stack: Stack) -> Any:
    return weft.compile(stack.model()).double()


@pytest.mark.parametrize("n", LENGTHS)
def test_a_package_trains(stack: Stack, module: Any, n: int):
    tokens, targets = torch.randint(0, VOCAB, (2, 2, n), generator=torch.Generator().manual_seed(n))
    params = dict(module.named_parameters())
    out = module(tokens, targets)
    want = stack.truth(params, tokens)
    loss = torch.nn.functional.cross_entropy(want.flatten(0, 1), targets.flatten())

    def grads(x: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(x, list(params.values()), materialize_grads=True, allow_unused=True))

    assert worst([out.logits, *grads(out.loss)], [want, *grads(loss)]) < TOLERANCE


@pytest.mark.parametrize("prompt", [0, 1, 5, 8])
def test_a_package_decodes(stack: Stack, module: Any, prompt: int):
    """A prompt, then a token at a time: as the whole at once, whatever its length."""
    tokens = torch.randint(0, VOCAB, (2, SEQ), generator=torch.Generator().manual_seed(0))
    want = stack.truth(dict(module.named_parameters()), tokens).detach()
    got, state = list[Tensor](), module.state(2)
    if prompt:
        out, state = module.prefill(tokens[:, :prompt])
        got.append(out.logits)
    for t in range(prompt, SEQ):
        out, state = module.step(tokens[:, t], state)
        got.append(out.logits[:, None])

    assert worst([torch.cat(got, 1)], [want]) < TOLERANCE
