"""Sizes of a program, its parameters by logical name, and the whole model by the interpreter."""

import math

import pytest
import torch

from tests.models import BLOCK, SIZES, f32, fill, gpt_block, gpt_stack, i64
from weft.errors import SpecError, UsageError
from weft.ir.builder import Builder
from weft.ir.composite import Call
from weft.ir.formula import parse
from weft.ir.library import CrossEntropy
from weft.ir.program import Init, Param, Program, Runtime
from weft.ir.reference import run
from weft.ir.reference_model import initial, reference, sizes_from, xavier_bound
from weft.ir.types import Val

OWN = ("width", "heads", "head", "inner", "layers", "vocab")


def model(period: int = 2) -> Program:
    """Embedding, a stack of `period` kinds of blocks, tied head, mean loss."""
    g = Builder()
    tokens, target = g.input("tokens", i64("batch seq")), g.input("target", i64("batch seq"))
    table = g.input("table", f32("vocab width"))
    stack = gpt_stack(period)
    ws = [g.input(v.name, v.type) for v in stack.inputs[1:]]
    (x,) = g.inline(stack, [g.gather(table, tokens, at="vocab"), *ws])
    logits = g.einsum(x, table, to="batch seq vocab")
    loss = g.mean(g.one(CrossEntropy("vocab"), logits, target), ("batch", "seq"))
    params = [Param("table", "embed.weight", ("vocab", "width"), Init("normal", 0.02))]
    params += [stacked(w, int(w.name[-1]), period) for w in ws]
    sizes = {d: SIZES[d] for d in OWN} | {"key": parse("n_seq"), "inner": parse("4*n_width")}
    runtime = {"batch": Runtime(8), "seq": Runtime(32, align=4)}
    public = ("tokens", "target"), ("logits", "loss")
    return Program("tiny", g.graph(logits, loss), sizes, runtime, tuple(params), *public)


def stacked(w: Val, start: int, step: int) -> Param:
    kind = "ones" if w.name.startswith("ln") and "_w" in w.name else "zeros" if w.name[0] in "bl" else "normal"
    return Param(w.name, f"blocks.{{}}.{w.name[:-2]}", w.dims[1:], Init(kind, 0.1), "f32", "layers", start, step)


def test_sizes():
    p = model()
    sizes = p.resolve(batch=3, seq=8)
    assert (sizes["batch"], sizes["seq"], sizes["key"], sizes["inner"]) == (3, 8, 8, 4 * SIZES["width"])
    assert p.resolve()["seq"] == 32  # 64 is over the maximum
    assert p.resolve(width=8)["inner"] == 32
    assert p.resolve(inner=5)["inner"] == 5


@pytest.mark.parametrize(
    ("given", "error", "word"),
    [
        ({"seq": 36}, SpecError, "over its declared maximum 32"),
        ({"seq": 6}, SpecError, "multiple of 4"),
        ({"batch": 0}, SpecError, "batch is 0"),
        ({"depth": 3}, UsageError, "no dim is called 'depth'"),
    ],
)
def test_sizes_refused(given, error, word):
    with pytest.raises(error, match=word):
        model().resolve(**given)


def test_sizes_that_cannot_be_worked_out():
    p = model()
    for bad, word in ({"key": parse("n_key2 + 1")}, "no size"), ({"key": parse("n_seq/5")}, "no integer"):
        broken = Program(**{**vars(p), "sizes": {**p.sizes, **bad}})
        with pytest.raises(SpecError, match=word):
            broken.resolve()
    loop = Program(**{**vars(p), "sizes": {**p.sizes, "key": parse("n_inner"), "inner": parse("n_key")}})
    with pytest.raises(SpecError, match="depends on itself"):
        loop.resolve()


def test_logical_names_and_count():
    p = model()
    names = p.logical_names()
    assert list(names)[:4] == ["embed.weight", "blocks.0.ln1_w", "blocks.2.ln1_w", "blocks.4.ln1_w"]
    assert "blocks.5.w2" in names
    assert len(names) == 1 + 2 * SIZES["layers"] * len(BLOCK)
    sizes = p.resolve()
    assert p.parameter_count() == sum(math.prod(sizes[d] for d in q.dims) for q, _ in names.values())
    assert {i for q, i in names.values() if q.value == "wq_1"} == {0, 1, 2}


def test_reference_from_logical_parameters():
    """The same as six blocks called one after another; gradients reach every logical parameter."""
    p = model()
    sizes = p.resolve(batch=2, seq=8)
    params = {k: v.double().requires_grad_() for k, v in initial(p, torch, 3).items()}
    gen = torch.Generator().manual_seed(0)
    inputs = {n: torch.randint(0, SIZES["vocab"], (2, 8), generator=gen) for n in p.inputs}
    out = reference(p, torch, params, inputs, dtype=torch.float64)
    x = params["embed.weight"][inputs["tokens"]]
    for i in range(2 * SIZES["layers"]):
        args = [x, *(params[f"blocks.{i}.{n}"] for n in BLOCK)]
        (x,) = run(gpt_block(), sizes, args, torch, torch.float64)
    torch.testing.assert_close(out["logits"], x @ params["embed.weight"].T)
    flat = out["logits"].flatten(0, 1), inputs["target"].flatten()
    torch.testing.assert_close(out["loss"], torch.nn.functional.cross_entropy(*flat))
    grads = torch.autograd.grad(out["loss"], list(params.values()))
    assert all(g.abs().max() > 0 for g in grads)


def test_reference_names_what_is_missing():
    p = model()
    inputs = {n: torch.zeros(2, 8, dtype=torch.long) for n in p.inputs}
    params = initial(p, torch)
    with pytest.raises(UsageError, match="'target'"):
        reference(p, torch, params, {"tokens": inputs["tokens"]})
    with pytest.raises(UsageError, match=r"blocks\.1\.wq"):
        reference(p, torch, {k: v for k, v in params.items() if k != "blocks.1.wq"}, inputs)
    with pytest.raises(UsageError, match="batch is 2 in one input and 3"):
        sizes_from(p, inputs | {"target": torch.zeros(3, 8, dtype=torch.long)})
    with pytest.raises(UsageError, match="shape"):
        sizes_from(p, inputs | {"target": torch.zeros(3, dtype=torch.long)})
    with pytest.raises(UsageError, match="no input"):
        p.input("nothing")


def test_initial_depends_on_seed_and_name_alone():
    p, q = model(), model(1)
    a, b = initial(p, torch, 5), initial(q, torch, torch.Generator().manual_seed(5))
    both = set(a) & set(b)
    assert len(both) > 12
    assert all(torch.equal(a[n], b[n]) for n in both)
    assert not torch.equal(a["embed.weight"], initial(p, torch, 6)["embed.weight"])
    assert not torch.equal(a["blocks.0.wq"], a["blocks.2.wq"])
    assert all(v.dtype == torch.float32 for v in a.values())
    state = torch.random.get_rng_state()
    initial(p, torch, 5)
    assert torch.equal(state, torch.random.get_rng_state())


def test_initial_distributions():
    dims = {"a": 200, "b": 300, "c": 2}
    inits = {
        "normal": Init("normal", 0.02),
        "uniform": Init("uniform", 0.5),
        "xavier": Init("xavier", 1.0, ("a", "c")),
        "zeros": Init("zeros"),
        "ones": Init("ones"),
        "constant": Init("constant", -2.0),
    }
    g = Builder()
    for n in inits:
        g.input(n, f32("a b c"))
    params = tuple(Param(n, n, ("a", "b", "c"), i) for n, i in inits.items())
    p = Program("draws", g.graph(g.inputs[0]), dims, {}, params, (), ("out",))
    got = initial(p, torch)
    assert abs(got["normal"].std() / 0.02 - 1) < 0.01
    assert abs(got["uniform"].std() / (0.5 / math.sqrt(3)) - 1) < 0.01
    bound = math.sqrt(6 / (400 + 300))
    assert xavier_bound(inits["xavier"], ("a", "b", "c"), dims) == pytest.approx(bound)
    assert bound * 0.999 < got["xavier"].abs().max() <= bound
    assert [got[n].unique().tolist() for n in ("zeros", "ones", "constant")] == [[0.0], [1.0], [-2.0]]
    assert xavier_bound(Init("xavier", 2.0), ("a", "b"), dims) == pytest.approx(2 * math.sqrt(6 / 500))


def test_a_model_holds_calls_in_its_loop():
    (loop,) = [n for n in model().graph.nodes if hasattr(n.op, "body")]
    assert [type(n.op) for n in loop.op.body.nodes] == [Call, Call]
    assert fill(torch, model().graph)["tokens"].shape == (SIZES["batch"], SIZES["seq"])
