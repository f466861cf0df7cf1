"""torch.compile without a graph break, forward and backward, lengths fixed and open; what a compiler takes whole."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import weft
from tests.campaign import SOAK
from tests.module.models import EVERY, emitted, inputs, model, numbers, targets
from weft import api
from weft.codegen.runtime import attention, experts, whole
from weft.codegen.runtime.steps import Steps

pytestmark = [  # what torch says of its own steps
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def given(name: str, batch: int, seq: int, like: Any, dynamic: bool = False) -> dict[str, Any]:
    """All that a call takes, dropout's seed included, in tensors of their own."""
    found = {k: v.clone() for k, v in {**inputs(name, batch, seq), **targets(name, batch, seq)}.items()}
    for x in found.values() if dynamic else ():
        for axis in range(x.dim()):
            torch._dynamo.mark_dynamic(x, axis)
    return found | ({"seed": torch.tensor(3)} if "seed" in like.forward.__code__.co_varnames else {})


def trained(run: Any, module: Any, x: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a call and the gradient of every parameter."""
    module.zero_grad()
    loss = run(**x).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in module.named_parameters()}


@pytest.mark.parametrize("name", EVERY if SOAK else ["both"])
def test_a_whole_model_is_one_graph_of_open_lengths(name):
    """Attention in every kind of layout, a cell, experts, dropout, both heads; other lengths compile nothing anew."""
    module, counter = model(name, torch.float32), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, backend=counter, fullgraph=True)

    for batch, seq in ((3, 6), (2, 8), (4, 7)):
        loss, found = trained(compiled, module, given(name, batch, seq, module, dynamic=True))
        want, grads = trained(module, module, given(name, batch, seq, module))
        assert torch.allclose(loss, want, rtol=1e-5)
        assert all(torch.allclose(found[n], grads[n], rtol=1e-4, atol=1e-6) for n in grads)
    assert counter.frame_count == 1


def test_lengths_that_open_by_themselves():
    """Nothing is marked: the first length is compiled as it is, the second opens it."""
    module, counter = model("recurrent", torch.float32), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, backend=counter, fullgraph=True)

    for seq in (6, 7, 8, 5):
        loss, _ = trained(compiled, module, given("recurrent", 3, seq, module))
        assert torch.allclose(loss, trained(module, module, given("recurrent", 3, seq, module))[0], rtol=1e-5)
    assert counter.frame_count == 2


def test_layers_compiled_one_by_one():
    module, x = model("recurrent", torch.float32), given("recurrent", 3, 6, model("recurrent"))
    want, grads = trained(module, module, x)
    for layer in module.layers:
        layer.compile(backend="aot_eager", fullgraph=True)

    loss, found = trained(module, module, x)

    assert torch.allclose(loss, want, rtol=1e-5)
    assert all(torch.allclose(found[n], grads[n], rtol=1e-4, atol=1e-6) for n in grads)


def test_a_package_without_training_keeps_nothing_for_a_backward():
    module, x = emitted("recurrent", train=False).Model(), numbers(3, 6)
    out = torch.compile(module, backend="aot_eager", fullgraph=True)(x)

    assert torch.allclose(out.logits, module(x).logits, atol=1e-6)
    assert not module(x).logits.requires_grad
    assert not out.logits.requires_grad


def test_a_wrapped_module_breaks_the_graph_and_nothing_else():
    torch.manual_seed(0)
    own = torch.nn.Linear(4, 4)
    spec = weft.Model(
        name="wrapped",
        dims={"batch": 2, "seq": 8, "width": 4, "vocab": 11},
        blocks={"own": weft.Opaque(own)},
        stack=[{"repeat": 1, "layer": ["own"]}],
        norm="layer_norm",
        head={},
    )
    module, x = api.compile(spec, target="cpu"), numbers(2, 6)
    given = {"tokens": x, "targets": x}
    want, grads = trained(module, module, given)

    loss, found = trained(torch.compile(module, backend="eager"), module, given)
    assert torch.allclose(loss, want)
    assert all(torch.allclose(found[n], grads[n]) for n in grads)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="get_rng_state"):
        torch.compile(module, backend="eager", fullgraph=True)(**given)
    program = torch.export.export(module, (), given)
    assert torch.allclose(program.module()(**given).loss, want)


def keep(q: Tensor, k: Tensor, h: Tensor) -> Tensor:
    return (k <= q) & ((q - k) % 3 != h)


def score(s: Tensor, q: Tensor, k: Tensor, h: Tensor) -> Tensor:
    return s - 0.1 * (q - k)


LAYOUTS = (
    attention.Dense(),
    attention.Causal(),
    attention.Causal(-1),
    attention.Causal(2),
    attention.Window(3),
    attention.Band(2, 2),
    attention.Rows(0, 2),
    attention.Cols(0, 2),
    attention.Diagonal(4, attention.Causal()),
    attention.Residues(3, attention.Causal()),
    attention.Tail(2, attention.Band(2, 2)),
    attention.Corner(3, None, attention.Causal()),
    attention.Blocks(4, (((0,), (0, 1), (2,)), ((), (1,), (0, 2)))),
    attention.Merge(()),
    attention.Merge((attention.Columns(4, 3, 1), attention.Diagonal(4, attention.Causal()))),
    attention.PerHead(((range(1), attention.Window(3)), (range(1, 2), attention.Residues(4, attention.Causal())))),
    attention.Tiles(keep, block=4),
    attention.Scored(keep, block=4, score=score, slope=lambda s, *_: torch.ones_like(s)),
)


@pytest.mark.parametrize("n", [9, 1])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: type(x).__name__)
def test_every_layout_is_one_op(layout, n):
    """Schema, results that share no memory with operands, and fakes with the sizes, strides and dtypes of runs."""
    draw = torch.Generator().manual_seed(0)
    q, do = (torch.randn(2, n, 2, 4, generator=draw).transpose(1, 2) for _ in range(2))
    k, v = (torch.randn(2, n, 1 + (n > 1), 4, generator=draw).transpose(1, 2) for _ in range(2))
    out, lse = layout.forward(q, k, v, 0.5)
    forward = layout.key, q, k, v, 0.5, ()
    backward = layout.key, do, q, k, v, out, lse
    check = ("test_schema", "test_faketensor")

    torch.library.opcheck(whole.OPS.attend.default, forward, test_utils=check)
    torch.library.opcheck(whole.OPS.attend_backward.default, backward, {"scale": 0.5, "metadata": ()}, test_utils=check)
    assert all(torch.equal(a, b) for a, b in zip(whole.OPS.attend(*forward), (out, lse)))


def total(x: Tensor, factor: Tensor, start: Tensor, n: int) -> tuple[Tensor, Tensor]:
    after = []
    for row in x.unbind(1):
        start = start * factor + row * n
        after.append(start)
    return start, torch.stack(after, 1)


def test_a_loop_is_one_op():
    loop = Steps(total, (1,), (None, 1))
    x, factor, start = torch.randn(2, 5, 3), torch.randn(3), torch.randn(2, 3)
    given = loop.key, "tttn", [x, factor, start], [2]

    torch.library.opcheck(whole.OPS.steps.default, given, test_utils=("test_schema", "test_faketensor"))
    assert all(torch.equal(a, b) for a, b in zip(whole.OPS.steps(*given), loop(x, factor, start, 2)))


def test_a_loop_whose_carry_is_an_operand_gives_memory_of_its_own():
    def last(x: Tensor) -> tuple[Tensor]:
        for row in x.unbind(1):
            start = row
        return (start,)

    loop = Steps(last, (1,), (None,))
    x = torch.randn(2, 5, 3)
    torch.library.opcheck(
        whole.OPS.steps.default, (loop.key, "t", [x], []), test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize("each", [1, 2])
def test_products_of_experts_are_one_op(each):
    x, w, d = torch.randn(5, 3), torch.randn(4, 3, 2), torch.randn(5 * each, 2)
    expert = torch.tensor([0, 3, 3, 1, 0, 0, 3, 1, 1, 0][: 5 * each])
    check, rows = ("test_schema", "test_faketensor"), experts.groups(expert, 4)

    torch.library.opcheck(whole.OPS.expert_product.default, (x, w, expert, each), test_utils=check)
    torch.library.opcheck(whole.OPS.expert_weights.default, (x, d, expert, 4, each), test_utils=check)
    assert torch.equal(whole.OPS.expert_product(x, w, expert, each), experts.product(x, w, rows, each))
    assert torch.equal(whole.OPS.expert_weights(x, d, expert, 4, each), experts.weights(x, d, rows, each))


def test_keys_say_the_whole_object_and_no_address():
    """The same in another process, and different where layouts are."""
    keys = [layout.key for layout in LAYOUTS]

    assert len(set(keys)) == len(keys)
    assert not any(" at 0x" in key for key in keys)
    assert all(whole.KNOWN[layout.key] == layout for layout in LAYOUTS)
