"""Stepping a block position by position equals running it at once, in fp64; and what cannot be stepped says so."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sympy as sp
import torch

from tests.passes.blocks import EPS, SIZES, floats, gpt
from weft import api
from weft.errors import DecodeError
from weft.ir.builder import Builder
from weft.ir.formula import parse
from weft.ir.library import Attend, LayerNorm, Rotary, Route
from weft.ir.pattern import Pattern
from weft.ir.reference import run
from weft.ir.types import Graph, Type, Val
from weft.passes.blocks import distinct
from weft.passes.decode.latents import absorbed, narrowed
from weft.passes.decode.step import StepGraph, decode
from weft.passes.structure import structure
from weft.targets import TARGETS

N = 8
MOE = SIZES | {"experts": 4, "routes": 4, "capacity": 3, "choice": 2, "channels": 6, "kv_heads": 2, "group": 2}


def inputs(graph: Graph, sizes: dict[str, int]) -> dict[str, torch.Tensor]:
    gen = torch.Generator().manual_seed(1)
    shapes = {v: [sizes[d] for d in v.dims] for v in graph.inputs}
    draw = {
        "i64": lambda s: torch.randint(0, 2, s, generator=gen).cumsum(-1),
        "bool": lambda s: torch.rand(s, generator=gen) < 0.8,
        "f32": lambda s: torch.randn(s, generator=gen, dtype=torch.float64),
    }
    return {v.name: draw[v.dtype](s) for v, s in shapes.items()}


def stepped(graph: Graph, step: StepGraph, args: dict[str, torch.Tensor], sizes: dict[str, int], chunks: list[int]):
    """The outputs of all steps, joined along seq; windows are cut as a cache would."""
    first = iter(run(step.start, sizes, {v.name: args[v.name] for v in step.start.inputs}, torch, torch.float64))
    held: dict[Val, torch.Tensor] = {}
    for s in step.states:
        held[s.value] = next(first) if s.kind == "carry" else torch.zeros(shape(s.value, sizes | {s.past: 0}))
    got: list[list[torch.Tensor]] = []
    pos, batch = 0, sizes["batch"]
    for chunk in chunks:
        now = {
            v: args[v.name].narrow(v.dims.index("seq"), pos, chunk) if "seq" in v.dims else args[v.name]
            for v in graph.inputs
        }
        here = sizes | {"seq": chunk}
        for s in step.states:
            if s.past:
                past = held[s.value].shape[s.value.dims.index(s.past)]
                here |= {s.past: past, s.past.removeprefix("past_"): past + chunk}
        at = torch.arange(pos, pos + chunk).expand(batch, chunk)
        fed = {step.fed.pos: torch.full((batch,), pos), step.fed.at: at, step.fed.real: at >= 0}
        given = {v.name: t for v, t in (now | held | fed).items()}
        wanted = {v.name: given[v.name] for v in step.graph.inputs}
        outs = run(step.graph, here, wanted, torch, torch.float64)
        k = len(step.outputs)
        got.append(list(outs[:k]))
        for s, new in zip(step.states, outs[k:], strict=True):
            if s.kind == "carry":
                held[s.value] = new
                continue
            keep = new.shape[1] if s.window is None else min(s.window - 1, new.shape[1])
            held[s.value] = new[:, new.shape[1] - keep :]
        pos += chunk
    kept = [graph.outputs[i] for i in step.outputs]
    return [torch.cat([g[i] for g in got], v.dims.index("seq")) for i, v in enumerate(kept)], held


def shape(v: Val, sizes: dict[str, int]) -> list[int]:
    return [sizes[d] for d in v.dims]


def agree(graph: Graph, sizes: dict[str, int] = MOE, chunks: list[int] | None = None) -> StepGraph:
    args = inputs(graph, sizes)
    step = decode(graph, sizes)
    whole = run(graph, sizes, args, torch, torch.float64)
    got, _ = stepped(graph, step, args, sizes, chunks or [1] * N)
    assert [v.name for v in step.graph.outputs[: len(step.outputs)]] == [graph.outputs[i].name for i in step.outputs]
    for a, i in zip(got, step.outputs, strict=True):
        assert (a - whole[i]).norm() <= 1e-10 * whole[i].norm()
    return step


@pytest.mark.parametrize("chunks", [[1] * N, [3, 4, 1], [8]])
@pytest.mark.parametrize(
    "pattern", ["causal", "causal and strided(3)", "causal and fixed(4, 1)", "causal and q % 3 != k % 2"]
)
def test_attention_keeps_its_keys(pattern: str, chunks: list[int]):
    step = agree(gpt(pattern), chunks=chunks)
    assert [(s.kind, s.past, s.window) for s in step.states] == [
        ("rows", "past_key", None),
        ("rows", "past_key", None),
    ]
    assert step.states[0].src == "spec.yaml:7"


def test_a_window_keeps_its_width():
    step = agree(gpt("window(3)"))
    assert {s.window for s in step.states} == {3}


def test_dropout_does_nothing():
    step = decode(gpt(dropout=True), SIZES)
    assert not any("dropout" in type(n.op).__name__.lower() for n in step.graph.nodes)


def attention(pattern: str = "causal", score: str = "s", meta: tuple[str, ...] = (), rotary: bool = True) -> Graph:
    """Grouped heads, rotary positions, a score that reads positions, metadata."""
    g = Builder("spec.yaml:4")
    x = g.input("x", floats("batch seq width"))
    shapes = ("width kv_heads group head", "width kv_heads head", "width kv_heads head")
    q, k, v = (g.einsum(x, g.input(f"w{n}", floats(d)), to=f"batch seq {d[6:]}") for n, d in zip("qkv", shapes))
    if rotary:
        q, k = g.one(Rotary("seq", "head"), q), g.one(Rotary("seq", "head"), k)
    k, v = g.rename(k, "seq", "key"), g.rename(v, "seq", "key")
    given = {"segments": Type("i64", ("batch", "seq")), "valid": Type("bool", ("batch", "seq"))}
    extra = [g.input(m, given[m]) for m in meta]
    extra = [g.rename(e, "seq", "key") if e.dtype == "bool" else e for e in extra]
    op = Attend(
        "head", "key", "seq", Pattern.parse(pattern), sp.Rational(1, 2), parse(score), ("kv_heads", "group"), meta
    )
    return g.graph(g.many(op, q, k, v, *extra, names=["o", "lse"])[0])


def test_positions_scores_and_grouped_heads():
    agree(attention(score="s - (i_q - i_k) / (1 + i_h)"), chunks=[2, 1, 5])


def test_segments_and_padding_are_kept_with_the_keys():
    step = agree(attention("causal and same_segment", meta=("segments",)))
    assert sorted(s.value.dtype for s in step.states) == ["f32", "f32", "i64"]
    agree(attention("causal and valid", meta=("valid",)))
    agree(attention("causal and same_segment and valid", meta=("segments", "valid")), chunks=[4, 4])


def test_a_cell_goes_on_from_its_state():
    g = Builder("spec.yaml:3")
    x, f = g.input("x", floats("batch seq width")), g.input("f", floats("width"))
    first = g.map("0.5", to="batch width", dtype="f32")
    got = g.scan("seq", {"c": ("c * sigmoid(f) + tanh(x) * sigmoid(c)", first)}, {"h": "c + x"}, x=x, f=f)
    graph = g.graph(g.map("h", h=got["h"], to="batch seq width"))
    step = agree(graph, chunks=[1, 2, 1, 4])
    assert [s.kind for s in step.states] == ["carry"]
    assert len(step.start.outputs) == 1


def routed(k: int) -> Graph:
    """A routed layer as the frontend builds it; its loss mixes positions."""
    g = Builder("spec.yaml:11")
    x = g.input("x", floats("batch seq width"))
    logits = g.einsum(x, g.input("router", floats("width routes")), to="batch seq routes")
    choice = "choice" if k > 1 else ""
    expert, place, gate, aux, _ = g.many(
        Route("routes", "seq", k, choice), logits, names=["expert", "place", "gate", "aux", "count"]
    )
    sent = g.scatter(x, expert, place, at="experts capacity", to="batch experts capacity width")
    up = g.einsum(sent, g.input("w1", floats("experts width inner")), to="batch experts capacity inner")
    up = g.map("relu(u + b)", u=up, b=g.input("b1", floats("experts inner")), to=up.dims)
    down = g.einsum(up, g.input("w2", floats("experts inner width")), to="batch experts capacity width")
    back = g.gather(down, expert, place, at="experts capacity")
    return g.graph(g.einsum(back, gate, to="batch seq width"), aux)


@pytest.mark.parametrize("k", [1, 2])
def test_routed_tokens_meet_their_experts_alone(k: int):
    step = agree(routed(k), chunks=[1, 1, 3, 1, 2])
    assert step.outputs == (0,)
    assert not any("capacity" in v.dims for n in step.graph.nodes for v in n.outs)
    assert [s.kind for s in step.states] == ["rows"]


def test_a_learned_position_is_read_where_it_is():
    g = Builder()
    x, table = g.input("x", floats("batch seq width")), g.input("table", floats("inner width"))
    place = g.gather(table, g.map("i_seq + 1", to="seq", dtype="i64"), at="inner")
    agree(g.graph(g.map("x + p", x=x, p=place)))


def refused(build) -> str:
    g = Builder("spec.yaml:5")
    x = g.input("x", floats("batch seq width"))
    with pytest.raises(DecodeError) as e:
        decode(g.graph(build(g, x)), MOE)
    assert "spec.yaml:5" in str(e.value)
    return str(e.value)


def test_what_mixes_positions_is_refused_with_its_place():
    assert "mixes positions" in refused(lambda g, x: g.one(LayerNorm("seq", EPS), x))
    assert "length along seq" in refused(lambda g, x: g.map("x / n_seq", x=x))
    assert "mixes positions" in refused(lambda g, x: g.gather(x, g.map("i_seq - 1", to="seq", dtype="i64"), at="seq"))
    assert "mixes positions" in refused(lambda g, x: g.map("x - m", x=x, m=g.reduce(x, to="batch width")))
    assert "backwards" in refused(lambda g, x: total(g, x)["h"])
    joined = "batch seq key"
    assert "renamed" in refused(lambda g, x: g.einsum(x, g.map("tanh(k)", k=g.rename(x, "seq", "key")), to=joined))
    with pytest.raises(DecodeError, match="sees later positions"):
        decode(attention("all"), MOE)
    with pytest.raises(DecodeError, match=r"spec\.yaml:4"):
        decode(attention("window(3) or k == 5"), MOE)


def total(g: Builder, x: Val) -> dict[str, Val]:
    return g.scan("seq", {"c": ("c + x", g.map(0, to="batch width"))}, {"h": "c"}, reverse=True, x=x)


SPECS = Path(__file__).parents[2] / "examples" / "specs"
CAUSAL = (
    "gpt2_345m", "megatron_8b", "mistral_7b", "sparse_transformer_cifar10", "sparse_transformer_enwik8",
    "sparse_transformer_imagenet64", "sru_pp_enwik8", "switch_base",
)  # fmt: skip


def blocks_of(name: str):
    """(block, sizes) of every distinct block of a shipped spec, small, as it runs without training."""
    spec = api.open_spec(SPECS / f"{name}.yaml", small=True)
    program = api.program(spec, train=False)
    sizes = program.resolve(**{d: spec.dims.values[d] for d in program.runtime})
    return [(b, sizes) for b in distinct(structure(program)).values()]


@pytest.mark.parametrize("name", CAUSAL)
def test_every_block_of_a_causal_spec_steps_as_it_runs(name: str):
    for block, sizes in blocks_of(name):
        n = sizes["seq"]
        agree(block.graph, sizes, [n // 2, 1, n - n // 2 - 1])


@pytest.mark.parametrize("name", ["bert_base", "bigbird_base", "longformer_base"])
def test_a_bidirectional_spec_has_no_step(name: str):
    block, sizes = next((b, s) for b, s in blocks_of(name) if b.name not in ("embed", "head"))
    with pytest.raises(DecodeError, match=rf"{name}\.yaml:\d+"):
        decode(block.graph, sizes)


def latent(bias: bool = False, rank: str = "rank", joined: bool = True, shared: str = "x") -> Graph:
    """Keys and values that are products of one latent, keys joined of these and of one that heads share."""
    g = Builder("spec.yaml:4")
    x = g.input("x", floats("batch seq width"))
    c = g.map("tanh(c)", c=g.einsum(x, g.input("wc", floats(f"width {rank}")), to=f"batch seq {rank}"), names=["c"])
    own = "own" if joined else "head"
    k = g.einsum(c, g.input("wk", floats(f"{rank} heads {own}")), to=f"batch seq heads {own}")
    v = g.einsum(c, g.input("wv", floats(f"{rank} heads channels")), to="batch seq heads channels")
    if bias:
        k = g.map("k + b", k=k, b=g.input("b", floats(f"heads {own}")), to=k.dims)
    if joined:
        one = g.einsum(x, g.input("ws", floats("width turning")), to="batch seq turning")
        one = g.one(Rotary("seq", "turning"), one, names=["one"])
        each = g.map(shared, x=one, to="batch seq heads turning")
        k = g.concat(each, k, dims="turning own", new="head")
    q = g.einsum(x, g.input("wq", floats("width heads head")), to="batch seq heads head")
    op = Attend("head", "key", "seq", Pattern.parse("causal"), parse("1/2"), parse("s + i_q - i_k"), ("heads",))
    out, _ = g.many(op, q, g.rename(k, "seq", "key"), g.rename(v, "seq", "key"), names=["out", "lse"])
    return g.graph(out)


WEIGHTS = ("wc", "wk", "wv", "ws", "wq", "b")
LATENT = SIZES | {"rank": 3, "most": 40, "head": 4, "own": 2, "turning": 2, "channels": 5}


@pytest.mark.parametrize("joined", [True, False])
def test_a_latent_is_kept_and_meets_the_queries(joined: bool):
    graph = latent(joined=joined)
    narrow = narrowed(graph, LATENT, "seq", WEIGHTS, TARGETS[0])
    step = agree(narrow.graph, LATENT | {"kept": 5}, [3, 1, 4])
    assert [s.value.dims[2:] for s in step.states] == [("kept",) if joined else ("rank",)]
    (told,) = narrow.decisions
    assert told.numbers[0] == ("bytes a position", 4 * (5 if joined else 3))
    assert told.rejected[0][:2] == ("keep keys and values", "more bytes")

    met = replace(step, graph=absorbed(step.graph, WEIGHTS))
    (attend,) = [n for n in met.graph.nodes if isinstance(n.op, Attend)]
    assert attend.ins[1] == attend.ins[2]
    assert "heads" not in attend.ins[1].dims
    args, sizes = inputs(graph, LATENT), LATENT | {"kept": 5}
    (want,) = run(graph, LATENT, args, torch, torch.float64)
    (got,), _ = stepped(graph, met, args, sizes, [2, 1, 5])
    assert (got - want).norm() <= 1e-10 * want.norm()


@pytest.mark.parametrize("how", [{"bias": True}, {"rank": "most"}, {"shared": "2*x"}])
def test_keys_and_values_are_kept_where_a_latent_gains_nothing(how: dict[str, Any]):
    graph = latent(**how)
    narrow = narrowed(graph, LATENT, "seq", WEIGHTS, TARGETS[0])
    assert narrow.graph == graph
    assert [d.choice for d in narrow.decisions] == ["keep keys and values"] * ("rank" in how)
