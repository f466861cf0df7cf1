"""Routed experts against plain torch that loops over tokens: results, gradients, prefill and step, in fp64."""

import json
from functools import lru_cache
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.campaign import count
from weft import api
from weft.codegen.build import module_of, temporary
from weft.codegen.package.emit import emit
from weft.codegen.runtime import experts
from weft.frontends.capacity import capacity, drops
from weft.frontends.load import load_text
from weft.frontends.resolve import resolve
from weft.frontends.schema import Model
from weft.ir.reference_model import reference

SEQ = 8
CAPACITIES: dict[str, Any] = {
    "2": lambda n, b: 2, "seq": lambda n, b: n, "8": lambda n, b: 8,
    "max(1, seq // experts)": lambda n, b: max(1, n // 4),
    "min(seq, 3)": lambda n, b: min(n, 3), "ceil_div(seq, 3)": lambda n, b: -(-n // 3),
    "1 + seq % 3": lambda n, b: 1 + n % 3,
    "seq // 4": lambda n, b: max(1, n // 4), "max(min(batch, seq), seq - 4)": lambda n, b: max(min(b, n), n - 4),
}  # fmt: skip
ACTIVATIONS: dict[str, Any] = {"gelu": F.gelu, "silu": F.silu, "max(x, 0)**2": lambda x: x.relu().square()}
LIKE_SEQ = (
    {},
    {"width": "seq"},
    {"inner": "seq"},
    {"vocab": "seq"},
    {"width": 8, "inner": 8, "vocab": 8},
    {"batch": 8},
)
"""Dims that are of one size with the longest run, by a number or by their expression."""


def spec(block: dict[str, Any], dims: dict[str, Any]) -> str:
    sizes = {"batch": 2, "seq": SEQ, "width": 6, "experts": 4, "inner": 5, "vocab": 11} | dims
    layer = {"layer": [{"block": {"kind": "moe", **block}, "norm": "none"}]}
    return json.dumps({"weft": 1, "name": "routed", "dims": sizes, "stack": [layer]})


def drawn(rng: Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """A block and dims."""
    block: dict[str, Any] = {"top_k": rng.randint(1, 4), "activation": rng.choice(list(ACTIVATIONS))}
    block |= {key: rng.random() < 0.5 for key in ("gated", "bias", "normalize")} | {"aux_loss": rng.choice([0.0, 0.5])}
    if rng.random() < 0.5:
        return block | {"capacity": rng.choice(list(CAPACITIES))}, rng.choice(LIKE_SEQ)
    return block | {"capacity_factor": rng.choice([0.5, 1.0, 1.25, 4 / block["top_k"]])}, rng.choice(LIKE_SEQ)


def room(block: dict[str, Any], n: int, batch: int) -> int:
    """The capacity of a run of n."""
    if "capacity" in block:
        return CAPACITIES[block["capacity"]](n, batch)
    return -int(-n * block["top_k"] * block["capacity_factor"] // 4)


@lru_cache(maxsize=64)
def compiled(text: str) -> tuple[Any, nn.Module]:
    program = api.program(load_text(text))
    module = module_of(temporary(emit(program))).double()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=draw, dtype=p.dtype) * 0.6)
    return program, module


def oracle(p: dict[str, Tensor], tokens: Tensor, targets: Tensor, o: dict[str, Any], most: int) -> dict[str, Tensor]:
    """Loss, logits and auxiliary loss of one routed layer of 4 experts that take `most` tokens of a sequence each."""
    w = {k.removeprefix("layers.0.moe."): v for k, v in p.items()}
    x = p["embed.tokens"][tokens]
    logits = x @ w["router.weight"]
    order = torch.sort(logits, dim=-1, descending=True, stable=True).indices[..., : o["top_k"]]
    gate = logits.softmax(-1).gather(-1, order)
    gate = gate / gate.sum(-1, keepdim=True) if o["normalize"] else gate
    act, rows = ACTIVATIONS[o["activation"]], list[Tensor]()
    for b in range(tokens.shape[0]):
        full = [0] * 4
        for t in range(tokens.shape[1]):
            y = x[b, t]
            for j, e in enumerate(order[b, t].tolist()):
                full[e] += 1
                if full[e] > most:
                    continue
                made = {m: x[b, t] @ w[f"{m}.weight"][e] for m in ("gate", "up") if f"{m}.weight" in w}
                made = {m: v + w[f"{m}.bias"][e] if o["bias"] else v for m, v in made.items()}
                h = act(made["gate"]) * made["up"] if o["gated"] else act(made["up"])
                y = y + gate[b, t, j] * (h @ w["down.weight"][e] + (w["down.bias"][e] if o["bias"] else 0))
            rows.append(y)
    out = torch.stack(rows).view_as(x) @ p["head.weight"]
    share = F.one_hot(order, 4).sum(2).to(x.dtype).mean(1)
    aux = 4 * (share * logits.softmax(-1).mean(1)).sum(-1).mean()
    loss = F.cross_entropy(out.flatten(0, 1), targets.flatten()) + o["aux_loss"] * aux
    return {"loss": loss, "logits": out, "aux_loss": aux}


def close(got: Tensor, want: Tensor, what: str) -> None:
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, msg=lambda m: f"{what}: {m}")


def holds(block: dict[str, Any], dims: dict[str, Any]) -> None:
    """Everything that a layer does, at a run of one token, an odd one and the longest, against the oracle."""
    block = {
        "top_k": 1,
        "activation": "gelu",
        "gated": False,
        "bias": False,
        "normalize": False,
        "aux_loss": 0.01,
    } | block
    program, module = compiled(spec(block, dims))
    params = {k: v.detach().clone().requires_grad_() for k, v in module.named_parameters()}
    for n in (1, 5, SEQ):
        what, draw = f"{block}, {dims}, length {n}", torch.Generator().manual_seed(n)
        vocab = module.get_parameter("embed.tokens").shape[0]
        tokens, targets = (torch.randint(0, vocab, (2, n), generator=draw) for _ in range(2))
        want = oracle(params, tokens, targets, block, room(block, n, 2))
        got = dict(zip(program.outputs, module.train()(tokens, targets)))
        for name, y in want.items():
            close(got[name], y, f"{what}: {name}")
        want_grads = torch.autograd.grad(want["loss"], list(params.values()), allow_unused=True, materialize_grads=True)
        grads = torch.autograd.grad(got["loss"], list(module.parameters()), allow_unused=True, materialize_grads=True)
        for name, a, b in zip(params, grads, want_grads):
            close(a, b, f"{what}: gradient of {name}")
        with torch.no_grad():
            sizes = program.resolve(batch=2, seq=n)
            given = {"tokens": tokens, "targets": targets}
            truth = reference(program, torch, dict(params), given, sizes, torch.float64)
            close(truth["logits"], want["logits"], f"{what}: reference")
            decodes(module.eval(), tokens, oracle(params, tokens, targets, block, room(block, SEQ, 2))["logits"], what)


def decodes(module: Any, tokens: Tensor, want: Tensor, what: str) -> None:
    """A prompt of none, half and all of the tokens, and steps for the others: in both the longest run's capacity."""
    n = tokens.shape[1]
    for start in sorted({0, n // 2, n}):
        state, parts = module.state(2), list[Tensor]()
        if start:
            out, state = module.prefill(tokens[:, :start])
            parts.append(out.logits)
        for t in range(start, n):
            out, state = module.step(tokens[:, t], state)
            parts.append(out.logits[:, None])
        close(torch.cat(parts, 1), want, f"{what}: decode from {start}")


@pytest.mark.parametrize(
    ("block", "dims"),
    [
        ({"capacity": "2", "top_k": 3, "normalize": True}, {}),
        ({"capacity": "seq"}, {}),
        ({"capacity_factor": 2.0, "top_k": 2, "gated": True, "bias": True}, {"batch": 8}),
        ({"capacity": "max(1, seq // experts)"}, {"vocab": "seq"}),
        ({"capacity": "min(seq, 3)", "top_k": 4, "bias": True}, {"inner": "seq"}),
        ({"capacity": "seq // 4", "top_k": 2}, {}),
        ({"capacity_factor": 0.5, "normalize": True}, {"width": 8, "inner": 8, "vocab": 8}),
    ],
)
def test_experts(block, dims):
    holds(block, dims)


@pytest.mark.parametrize("seed", range(count(sample=4, soak=150)))
def test_drawn_experts(seed):
    holds(*drawn(Random(seed)))


def test_what_is_never_dropped_lies_in_no_slots():
    """Nothing of the size of experts times the sequence, in the layer nor in its steps; and no queue is kept."""
    for block in ({"capacity": "seq"}, {"capacity": "8", "top_k": 2}, {"capacity_factor": 2.0, "top_k": 2}):
        program, module = compiled(spec(block, {}))
        assert "capacity" not in program.sizes
        assert sum(x.numel() for part in module.state(2).blocks for x in part.carried) == 0


def test_a_prompt_copies_no_matrices():
    """Tokens that may be dropped meet their experts' matrices where those lie."""
    text = temporary(emit(api.program(load_text(spec({"capacity": "2", "bias": True}, {}))))) / "blocks" / "layer.py"
    after = text.read_text().split("\ndef step(")[1]
    assert "experts.product(" in after
    assert after.count("rows.take(") == 4  # the two biases, in a step and in a prompt


@pytest.mark.parametrize("batch", [1, 3])
def test_a_capacity_is_never_nothing_and_what_drops_none_is_known(batch):
    """Against every length: at least 1, and as said where tokens cannot find an expert full."""
    texts = [
        *CAPACITIES,
        "seq - 1",
        "7",
        "2*seq",
        "seq + seq // 2 - 3",
        "max(3, seq)",
        "min(2*seq, 8)",
        "seq % 5",
        "-2 + seq",
    ]
    texts += [f"ceil_div({a}*seq, {b})" for a in (3, 4, 5) for b in (3, 4)] + [f"{a}*seq // 4" for a in (3, 4, 5)]
    known = set[str]()
    for text in texts:
        model = Model.model_validate(json.loads(spec({"capacity": text}, {"batch": batch})))
        dims, block = resolve(model), model.stack[0].layers[0][0].block
        found = capacity(block, dims)
        for n in range(1, SEQ + 1):
            at = {"n_seq": n, "n_batch": batch}
            value = found if isinstance(found, int) else int(found.subs({s: at[s.name] for s in found.free_symbols}))
            assert value == max(1, dims_of(text, n, batch)), (text, n)
            assert drops(block, dims) or value >= n, (text, n)
        if not drops(block, dims):
            known.add(text)
    assert known == {
        "seq", "8", "2*seq", "max(3, seq)", "min(2*seq, 8)", "4*seq // 4", "5*seq // 4",
        "ceil_div(3*seq, 3)", "ceil_div(4*seq, 3)", "ceil_div(5*seq, 3)", "ceil_div(4*seq, 4)", "ceil_div(5*seq, 4)",
    }  # fmt: skip


def dims_of(text: str, n: int, batch: int) -> int:
    """The expression's value by Python."""
    names = {"seq": n, "batch": batch, "experts": 4, "ceil_div": lambda a, b: -(-a // b), "min": min, "max": max}
    return eval(text, {"__builtins__": {}}, names)


def test_check_says_that_capacities_differ(tmp_path):
    path = tmp_path / "spec.yaml"
    for block, said in (({"capacity": "seq // 4"}, 1), ({"capacity": "2"}, 0), ({"capacity": "seq"}, 0)):
        path.write_text(spec(block, {}))
        notes = [w["message"] for w in api.check(path)["warnings"]]
        assert len([x for x in notes if "prefill and step that of the longest (2 at 8)" in x]) == said == len(notes)


@pytest.mark.parametrize("each", [1, 2])
def test_a_traced_product_takes_all_rows_and_keeps_its_own(each):
    """What cannot be read off a tensor gives what is read off one."""
    draw = torch.Generator().manual_seed(0)
    expert = torch.randint(0, 3, (10,), generator=draw).clamp(max=1)  # the last has none
    x, w, d = (torch.randn(*s, generator=draw, dtype=torch.float64) for s in ((10 // each, 4), (3, 4, 5), (10, 5)))
    known, traced = experts.groups(expert, 3), [expert == e for e in range(3)]
    wide = x.repeat_interleave(each, 0)
    want = torch.einsum("rk,rkn->rn", wide, w[expert])
    grad = torch.stack([wide[expert == e].T @ d[expert == e] for e in range(3)])
    for rows in (known, traced):
        close(experts.product(x, w, rows, each), want, "product")
        close(experts.weights(x, d, rows, each), grad, "weights")
