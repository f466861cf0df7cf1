"""Losses: what counts and what does not, what is out of range, logits without a loss, losses of the caller's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from tests.module.models import SPECS, VOCAB, emitted, grads, inputs, model, numbers, targets
from weft import api
from weft.codegen.build import temporary
from weft.codegen.check.tolerance import TOLERANCE
from weft.ir.indices import indices
from weft.ir.reference_model import reference


def close(got: Tensor, want: Tensor) -> bool:
    return torch.allclose(got, want, rtol=TOLERANCE["f64"].model, atol=TOLERANCE["f64"].model)


def own_loss(name: str, out: object, ignore: int = -100) -> Tensor:
    """The loss by torch's own function, of a model's logits."""
    wanted = targets(name)
    total = F.cross_entropy(out.logits.flatten(0, 1), wanted["targets"].flatten(), ignore_index=ignore)
    if name == "both":
        total = total + F.cross_entropy(out.classes, wanted["labels"], ignore_index=ignore)
    return total + (0.01 * out.aux_loss if name == "routed" else 0)


@pytest.mark.parametrize("name", SPECS)
def test_the_loss_and_its_gradients_are_those_of_torch(name):
    module = model(name)
    out, plain = module(**inputs(name), **targets(name)), module(**inputs(name))
    want = own_loss(name, plain)

    assert close(out.loss, want)
    got, want = grads(module, out.loss), grads(module, want)
    assert all(close(got[n], want[n]) for n in want), [n for n in want if not close(got[n], want[n])]


@pytest.mark.parametrize("name", SPECS)
def test_without_targets_there_are_logits_and_no_loss(name):
    module = model(name)
    given, wanted = inputs(name), targets(name)

    with torch.no_grad():
        out, plain = module(**given, **wanted), module(**given)

    assert plain.loss is None
    assert type(plain) is type(out)
    assert all(torch.equal(a, b) for k, a in out._asdict().items() if k != "loss" for b in [getattr(plain, k)])
    if len(wanted) > 1:
        with pytest.raises(ValueError, match="the loss needs targets and labels, but labels is None"):
            module(**given, targets=wanted["targets"])


def test_no_loss_is_computed_where_there_are_no_targets():
    module = model("gpt")
    with torch.profiler.profile() as seen:
        module(**inputs("gpt")).logits.sum().backward()

    assert not {e.key for e in seen.key_averages()} & {"aten::logsumexp", "aten::gather", "aten::scatter_add_"}


@pytest.mark.parametrize("what", ["loss", "logits", "both", "twice"])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_any_combination_of_results_differentiates_in_any_dtype(what, dtype):
    """The gradient of each result has that result's dtype, whichever others have none."""
    module = model("gpt", torch.float32) if dtype == "f32" else emitted("gpt", dtype).Model(generator=0)
    out = module(**inputs("gpt"), **targets("gpt"))
    free = out.logits.float().logsumexp(-1).mean()

    total = {"loss": out.loss, "logits": free, "both": out.loss + free, "twice": 2 * out.loss + out.loss * free + free}
    total[what].backward()

    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in module.parameters())


def test_a_loss_of_one_s_own_is_that_of_the_reference():
    """Preferences (DPO): two sequences, log-probabilities of tokens, a frozen copy beside."""
    module, frozen = model("gpt"), model("gpt")
    with torch.no_grad():
        frozen.norm.weight.mul_(1.1)
    spec = temporary({"spec.yaml": SPECS["gpt"]}) / "spec.yaml"
    program = api.program(api.open_spec(spec))
    chosen, rejected = numbers(2, 6, seed=5), numbers(2, 6, seed=6)

    def preference(policy, other):
        def score(run, x):
            return run(x)[:, :-1].log_softmax(-1).gather(-1, x[:, 1:, None]).sum((1, 2))

        margin = [score(policy, x) - score(other, x).detach() for x in (chosen, rejected)]
        return -F.logsigmoid(margin[0] - margin[1]).mean()

    def truth(held):
        params = dict(held.named_parameters())
        return lambda x: reference(program, torch, params, {"tokens": x, "targets": x}, None, torch.float64)["logits"]

    got = grads(module, preference(lambda x: module(x).logits, lambda x: frozen(x).logits))
    want = grads(module, preference(truth(module), truth(frozen)))

    assert all(close(got[n], want[n]) for n in want)


@pytest.mark.parametrize("name", ["gpt", "both"])
def test_with_no_target_that_counts_loss_and_gradients_are_zero(name):
    module = model(name)
    loss = module(**inputs(name), **{k: torch.full_like(x, -100) for k, x in targets(name).items()}).loss

    assert loss == 0
    assert all(not g.any() for g in grads(module, loss).values())


def test_the_number_that_does_not_count_is_the_spec_s():
    text = SPECS["gpt"].replace("head: {tied: true}", "head: {tied: true, ignore: 0}")
    module = api.compile(temporary({"spec.yaml": text}) / "spec.yaml", target="cpu").double()
    given = inputs("gpt")["tokens"]
    out = module(given, given)

    assert close(out.loss, F.cross_entropy(out.logits.flatten(0, 1), given.flatten(), ignore_index=0))
    with pytest.raises(IndexError, match=r"targets: -100 is outside dim vocab, 0 to 10 \(0 does not count\)"):
        module(given, torch.full_like(given, -100))


@pytest.mark.parametrize(("wrong", "said"), [(VOCAB, str(VOCAB)), (-1, "-1"), (-100, "-100"), (2**40, str(2**40))])
@pytest.mark.parametrize("name", SPECS)
def test_numbers_that_do_not_exist_are_refused_by_name(name, wrong, said):
    module = model(name)
    given = inputs(name) | targets(name)
    program = api.program(api.open_spec(temporary({"spec.yaml": SPECS[name]}) / "spec.yaml"))

    for index in indices(program):
        if wrong == index.ignore:
            continue
        bad = given | {index.input: given[index.input].clone()}
        bad[index.input].view(-1)[-1] = wrong
        message = f"{index.input}: {said} is outside dim {index.dim}, 0 to "
        with pytest.raises(IndexError, match=message):
            module(**bad)
        with pytest.raises(IndexError, match=message):
            reference(program, torch, dict(module.named_parameters()), bad, dtype=torch.float64)
        if name in ("gpt", "recurrent") and index.input == "tokens":
            with pytest.raises(IndexError, match=message):
                module.prefill(bad["tokens"])
            with pytest.raises(IndexError, match=message):
                module.step(bad["tokens"][:, -1], module.state(3))


def test_range_checks_stand_where_torch_traces_as_assertions():
    """Nothing in a traced graph waits for a number: the check is an assertion of torch's own."""
    package, given = emitted("gpt"), inputs("gpt")["tokens"]

    def checked(x):
        package.model.check({"tokens": x}, {"tokens": package.model.SIGNATURE["tokens"]}, {}, {}, package.model.RANGES)
        return x

    graph = make_fx(checked, tracing_mode="fake")(given).graph
    assert any("_assert_async" in str(n.target) for n in graph.nodes)
