"""Cells with recurrent matrices, as examples/blocks has them, against torch's own and short loops; ways to run."""

from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.func import functional_call

import weft
from tests.campaign import SOAK
from tests.passes.recurrences import recurrence
from weft import api
from weft.frontends.lower.program import lower
from weft.passes.chunk.chunk import chunk

DIMS = {"batch": 2, "seq": 9, "width": 6, "heads": 2, "level": 4, "unit": 3, "vocab": 7}
CELLS = [*(["lstm", "gru", "slstm"] if SOAK else []), "on_lstm", "bilstm"]
Weights = Mapping[str, Tensor]


def block(name: str) -> dict[str, Any]:
    return yaml.safe_load(Path(f"examples/blocks/{name}.yaml").read_text())["blocks"]["mixer"]


@cache
def module() -> nn.Module:
    """All of them one after the other, with residuals."""
    stack = [{"layer": [{"block": block(name)}]} for name in CELLS]
    init = {"weight": {"normal": 0.5}}
    spec = {"name": "cells", "dims": DIMS, "init": init, "stack": stack, "sublayer": {"norm": "none"}}
    found = weft.compile(spec).double()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in found.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=draw, dtype=p.dtype))
    return found


def gates(w: Weights, names: str, prefix: str, end: str) -> Tensor:
    """Weights of torch's gates, one below the other: rows are results."""
    found = [w[f"{prefix}{n}{end}"] for n in names]
    return torch.cat([x.T if x.dim() == 2 else x for x in found])


def torchs(kind: type[nn.LSTM] | type[nn.GRU], x: Tensor, w: Weights, way: str = "") -> Tensor:
    """The cell of torch.nn with these weights."""
    names = "jfzo" if kind is nn.LSTM else "rzn"
    given = {
        "weight_ih_l0": gates(w, names, way, ".weight"),
        "weight_hh_l0": gates(w, names, f"{way}r", ".weight"),
        "bias_ih_l0": gates(w, names, f"{way}b", ""),
    }
    given["bias_hh_l0"] = torch.zeros_like(given["bias_ih_l0"])
    if kind is nn.GRU:
        given["bias_hh_l0"] = torch.cat([given["bias_hh_l0"][:6], w["bh"]])
    out, _ = functional_call(kind(x.shape[-1], 3, batch_first=True, dtype=x.dtype), given, (x,))
    return out @ w[f"{way}output.weight"]


def both_ways(x: Tensor, w: Weights) -> Tensor:
    return torchs(nn.LSTM, x, w, "forwards.") + torchs(nn.LSTM, x.flip(1), w, "backwards.").flip(1)


def products(x: Tensor, w: Weights, names: str, equation: str) -> Callable[[int, Tensor], tuple[Tensor, ...]]:
    """What each gate of step t is without its bias: W x + R h."""
    ins = {n: torch.tensordot(x, w[f"{n}.weight"], 1) for n in names.split()}
    return lambda t, h: tuple(u[:, t] + torch.einsum(equation, h, w[f"r{n}.weight"]) for n, u in ins.items())


def on_lstm(x: Tensor, w: Weights) -> Tensor:
    """Shen et al. 2019, equations 9 to 17."""
    inner, master = products(x, w, "j f z o", "blu,lumv->bmv"), products(x, w, "mf mi", "blu,lum->bm")
    h = c = x.new_zeros(2, 4, 3)
    out = []
    for t in range(x.shape[1]):
        j, f, z, o = inner(t, h)
        ahead, behind = (g.softmax(-1).cumsum(-1)[..., None] for g in master(t, h))
        both = ahead * (1 - behind)
        keep = (f + w["bf"]).sigmoid() * both + (ahead - both)
        add = (j + w["bj"]).sigmoid() * both + (1 - behind - both)
        c = keep * c + add * z.tanh()
        h = (o + w["bo"]).sigmoid() * c.tanh()
        out.append(h)
    return torch.stack(out, 1).flatten(2) @ w["output.weight"].flatten(0, 1)


def slstm(x: Tensor, w: Weights) -> Tensor:
    """Beck et al. 2024, equations 8 to 18, without the stabiliser, whose function it is not to change."""
    inner = products(x, w, "j f z o", "bhu,huv->bhv")
    h = c = n = x.new_zeros(2, 2, 3)
    out = []
    for t in range(x.shape[1]):
        j, f, z, o = inner(t, h)
        forget, enter = (f + w["bf"]).sigmoid(), (j + w["bj"]).exp()
        c, n = forget * c + enter * z.tanh(), forget * n + enter
        h = o.sigmoid() * c / n
        out.append(h)
    normed = nn.functional.layer_norm(torch.stack(out, 1), (3,), w["norm.weight"], w["norm.bias"], 1e-5)
    return normed.flatten(2) @ w["output.weight"].flatten(0, 1)


KNOWN: dict[str, Callable[[Tensor, Weights], Tensor]] = {
    "lstm": lambda x, w: torchs(nn.LSTM, x, w),
    "gru": lambda x, w: torchs(nn.GRU, x, w),
    "on_lstm": on_lstm,
    "slstm": slstm,
    "bilstm": both_ways,
}


def plainly(tokens: Tensor, weights: Weights) -> Tensor:
    x = weights["embed.tokens"][tokens]
    for i, name in enumerate(CELLS):
        stem = f"layers.{i}.tensor_recurrence."
        x = x + KNOWN[name](x, {k.removeprefix(stem): v for k, v in weights.items() if k.startswith(stem)})
    return x @ weights["head.weight"]


@pytest.mark.parametrize("n", [9])
def test_cells_are_torchs_and_the_papers(n: int):
    """Outputs and every gradient, in float64."""
    weights = dict(module().named_parameters())
    tokens = torch.randint(0, 7, (2, n), generator=torch.Generator().manual_seed(n))
    want, got = plainly(tokens, weights), module()(tokens).logits
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    seed = torch.randn(want.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    grads = [torch.autograd.grad((y * seed).sum(), [*weights.values()]) for y in (got, want)]
    for name, a, b in zip(weights, *grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


def test_a_cell_both_ways_sees_what_comes_and_takes_no_step():
    """Changing the last token changes the first result; decoding is refused in words."""
    tokens = torch.zeros(1, 9, dtype=torch.int64)
    other = tokens.clone()
    other[0, -1] = 1
    run: Any = module()
    with torch.no_grad():
        change = run(tokens).logits - run(other).logits
    assert change[0, 0].abs().max() > 1e-6
    with pytest.raises(NotImplementedError, match="backwards along seq"):
        run.step(tokens[:, :1], None)


def test_a_cell_both_ways_is_told_where_it_shows_what_is_to_be_predicted():
    spec = {"name": "cells", "dims": DIMS, "stack": [{"layer": [{"block": block("bilstm")}]}]}

    def told(**keys: Any) -> list[str]:
        found = api.check(weft.Model.model_validate({**spec, **keys}))["warnings"]
        return [w["message"] for w in found if w["code"] == "W0503"]

    assert ["later ones" in note for note in told()] == [True]
    assert told(head={"kind": "classify", "classes": 3}) == []
    assert api.check(Path("examples/specs/bart_base.yaml"))["warnings"] == []  # its encoder sees everything


def test_a_linear_cell_with_a_matrix_is_said_to_be_one():
    cell = {"kind": "tensor_recurrence", "inputs": {"u": ["unit"]}, "matrices": {"r": ["unit"]}, "output": "next(h)"}
    cell |= {"state": {"h": ["unit"]}, "update": {"h": "r(h) + u"}}
    spec = {"name": "cells", "dims": DIMS, "stack": [{"layer": [{"block": cell}]}]}
    made = chunk(recurrence(lower(weft.Model.model_validate(spec))))

    assert [d.rejected[0][1] for d in made.decisions] == ["the next value of h is a matrix times the state"]


def test_documents_of_a_cell_both_ways_are_what_they_are_alone():
    """From whichever side a document begins, and whatever padding stands in it."""
    stack = [{"layer": [{"block": block("bilstm")}]}]
    rows = {"documents": True, "padding": True}
    both: Any = weft.compile({"name": "cells", "dims": DIMS, "rows": rows, "stack": stack}, train=False).double()
    tokens = torch.arange(18).reshape(2, 9) % 7
    segments = torch.tensor([[3, 3, 3, 1, 1, 1, 1, 3, 3], [2, 2, 0, 0, 0, 0, 0, 0, 0]])
    valid = torch.tensor([[0, 1, 1, 1, 0, 1, 1, 1, 0], [1, 0, 0, 1, 1, 1, 1, 1, 1]]).bool()
    together = both(tokens, segments=segments, valid=valid).logits
    for row, ends in enumerate([(0, 3, 7, 9), (0, 2, 9)]):
        for start, end in pairwise(ends):
            own = [i for i in range(start, end) if valid[row, i]]
            here = {"segments": segments[row : row + 1, own], "valid": valid[row : row + 1, own]}
            alone = both(tokens[row : row + 1, own], **here).logits
            torch.testing.assert_close(together[row, own], alone[0], rtol=1e-12, atol=1e-12)
