"""Rows decoded together, in any order of prompts, steps, selections and cuts, equal each row run alone, in fp64."""

import copy
import inspect
import random
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

from weft import api
from weft.codegen.build import module_of, temporary
from weft.codegen.package.emit import emit

VOCAB, SEQ = 11, 16
SPEC = """
weft: 1
name: drawn
dims: {{batch: 4, seq: {seq}, width: 8, heads: 2, head: 4, pairs: 1, inner: 12, vocab: {vocab}, experts: 3, layers: 2}}
blocks:
{blocks}
{embed}
stack: [{{repeat: layers, {layers}}}]
norm: rms_norm
head: {{tied: true}}
"""
CELL = """state: {c: 0.3}, parameters: {b: zeros}, let: {g: sigmoid(f + b * c)}, update: {c: "g * c + (1 - g) * u"},
     output: "tanh(c) + x\""""
LEARNED, BY_BLOCK = (
    "embed: {positions: [{learned: seq}]}",
    ("embed: {positions: [{learned: 4, index: i // 4}, {learned: 4, index: i % 4}]}"),
)
MIXERS = {
    "causal": "kind: attention, pattern: causal",
    "rotary": "kind: attention, pattern: causal, rotary: {}, kv_heads: pairs",
    "window": "kind: attention, pattern: window(3)",
    "rotary window": "kind: attention, pattern: window(5), rotary: {interleaved: true}, kv_heads: pairs",
    "own position alone": "kind: attention, pattern: window(1)",
    "latent": "kind: attention, pattern: causal, latent: {rank: 3, shared: 2}, rotary: {}",
    "latent window": "kind: attention, pattern: window(5), latent: {rank: 3, query_rank: 2}",
    "strict": "kind: attention, pattern: strict_causal",
    "strided": 'kind: attention, pattern: "causal and strided(3)"',
    "fixed": 'kind: attention, pattern: "causal and fixed(4, 1)"',
    "union": 'kind: attention, pattern: "causal and (window(3) or strided(3))"',
    "by head": 'kind: attention, pattern: "heads(window(3), causal)"',
    "blocks": 'kind: attention, pattern: "causal and blocks(4, [[0], [0, 1], [1, 2], [0, 3]])"',
    "blocks twice": 'kind: attention, pattern: "blocks(4, [[], [0, 0], [0, 1], [1, 2]])"',
    "segments": 'kind: attention, pattern: "window(6) and same_segment"',
    "valid": 'kind: attention, pattern: "causal and valid", score: "s - 0.1 * (q - k)"',
    "score": 'kind: attention, pattern: causal, score: "s - 0.3 * (q - k) / (1 + h)"',
    "recurrence": f"kind: recurrence, inputs: [u, f], {CELL}",
    "sru++": f"kind: recurrence, inputs: [u, f], projection: {{rank: 4, alpha: 0.5}}, {CELL}",
    "sru++ window": f"kind: recurrence, inputs: [u, f], projection: {{rank: 4, alpha: 1, pattern: window(4)}}, {CELL}",
    "tensors": """kind: tensor_recurrence, inputs: {k: [heads, head], v: [inner], g: [heads]}, chunk: 4,
     state: {s: {dims: [heads, head, inner], init: 0.5}, m: [heads]}, let: {top: "max(m - 0.1, g)"},
     update: {s: "exp(m - top)*s + k*v", m: top}, output: "sum(head, k*next(s))*exp(-next(m))\"""",
    "experts": "kind: moe, capacity: 3, inner: 6",
    "experts that drop none": "kind: moe, capacity: seq, inner: 6",
    "two experts": "kind: moe, capacity: 4, inner: 6, top_k: 2, normalize: true",
}
KINDS = {name: ((name,), "layer: [m0, f]", LEARNED) for name in MIXERS} | {
    "positions by block": (("causal",), "layer: [m0, f]", BY_BLOCK),
    "cycle": (("sru++", "window"), "cycle: [[m0, f], [m1, f]]", LEARNED),
}


@lru_cache(maxsize=32)
def model(name: str) -> nn.Module:
    """A package without training, its parameters drawn so that all of them count."""
    mixers, layers, embed = KINDS[name]
    blocks = [f"  m{i}: {{{MIXERS[m]}}}" for i, m in enumerate(mixers)] + ["  f: {kind: mlp}"]
    return built(SPEC.format(seq=SEQ, vocab=VOCAB, blocks="\n".join(blocks), layers=layers, embed=embed))


def built(text: str) -> nn.Module:
    path = temporary({"spec.yaml": text}) / "spec.yaml"
    module = module_of(temporary(emit(api.program(api.open_spec(path), train=False)))).double().eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=draw, dtype=p.dtype))
    return module


def draw(module: nn.Module, rows: int, n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Inputs of new positions, [rows n] each."""
    names = [k for k in inspect.signature(module.step).parameters if k not in ("state", "lengths")]
    given = {k: torch.randint(0, 2, (rows, n), generator=generator) for k in names}
    given["tokens"] = torch.randint(0, VOCAB, (rows, n), generator=generator)
    return {k: x.bool() if k == "valid" else x for k, x in given.items()}


class Rows:
    """Rows of one batch and what they have been fed; every result is held to the row's own, alone from the start."""

    def __init__(self, module: nn.Module, batch: int, seed: int) -> None:
        self.module, self.rng = module, random.Random(seed)
        self.draw = torch.Generator().manual_seed(seed)
        self.fed = [{k: x[0] for k, x in draw(module, 1, 0, self.draw).items()}] * batch
        self.state = module.state(batch)

    @property
    def had(self) -> list[int]:
        return [len(row["tokens"]) for row in self.fed]

    def some(self) -> int:
        return self.rng.randint(0, SEQ - max(self.had))

    def new(self, n: int) -> dict[str, Tensor]:
        return draw(self.module, len(self.fed), n, self.draw)

    def whole(self) -> None:
        if n := self.some():
            given = self.new(n)
            fresh = max(self.had) == 0 and self.rng.random() < 0.7
            out, self.state = self.module.prefill(**given, state=None if fresh else self.state)
            self.check(given, [n] * len(self.fed), out.logits)

    def one(self) -> None:
        if max(self.had) < SEQ:
            given = self.new(1)
            out, self.state = self.module.step(**{k: x[:, 0] for k, x in given.items()}, state=self.state)
            self.check(given, [1] * len(self.fed), out.logits[:, None])

    def ragged(self) -> None:
        if n := self.some():
            given, lengths = self.new(n), torch.tensor([self.rng.randint(0, n) for _ in self.fed])
            padding = torch.arange(n) >= lengths[:, None]
            padded = {k: x.masked_fill(padding, -100) for k, x in given.items()}  # padding is no token
            state = self.state if max(self.had) else None
            out, self.state = self.module.prefill(**padded, lengths=lengths, state=state)
            self.check(given, lengths.tolist(), out.logits)

    def select(self) -> None:
        rows = [self.rng.randrange(len(self.fed)) for _ in range(self.rng.randint(1, 4))]
        self.fed, self.state = [self.fed[r] for r in rows], self.state.select(rows)

    def reorder(self) -> None:
        rows = [self.rng.randrange(len(self.fed)) for _ in self.fed]
        self.fed, self.state = [self.fed[r] for r in rows], self.state.reorder(torch.tensor(rows))

    def join(self) -> None:
        if len(self.fed) < 4:
            row = self.rng.randrange(len(self.fed))
            self.fed = [*self.fed, self.fed[row]]
            self.state = self.state.join((self.state, self.state.select(row)))

    def crop(self) -> None:
        most = [self.rng.randint(0, n) for n in self.had]
        try:
            self.state = self.state.crop(most)
        except ValueError:
            return
        self.fed = [{k: x[:n] for k, x in row.items()} for row, n in zip(self.fed, most)]

    def check(self, given: dict[str, Tensor], lengths: list[int], logits: Tensor) -> None:
        before = self.had
        self.fed = [{k: torch.cat((x, given[k][b, :n])) for k, x in self.fed[b].items()} for b, n in enumerate(lengths)]
        for row, start, n, got in zip(self.fed, before, lengths, logits):
            if n:
                want = self.module(**{k: x[None] for k, x in row.items()}).logits[0, start:]
                torch.testing.assert_close(got[:n], want, rtol=1e-10, atol=1e-10)

    def run(self, moves: int) -> None:
        feeds, edits = (self.whole, self.one, self.ragged), (self.select, self.reorder, self.join, self.crop)
        for _ in range(moves):
            self.rng.choice((*feeds, self.ragged, *edits))()
            assert self.state.lengths.tolist() == self.had
            assert self.state.length >= max(self.had)


@pytest.mark.parametrize("name", KINDS)
def test_rows_together_are_each_row_alone(name):
    for seed in range(3):
        Rows(model(name), 1 + seed % 3, seed).run(9)


@pytest.mark.parametrize("name", KINDS)
def test_any_split_of_a_prompt_is_the_prompt(name):
    """One prefill, prefills of pieces, and single steps leave the same behind."""
    module = model(name)
    given = draw(module, 2, SEQ, torch.Generator().manual_seed(3))
    whole, state = module.prefill(**given)
    for cuts in ([1] * SEQ, [5, 1, 7, 3], [SEQ - 1, 1]):
        now, parts = module.state(2), list[Tensor]()
        for pieces in zip(*(x.split(cuts, 1) for x in given.values())):
            out, now = module.step(*pieces, now)
            parts.append(out.logits)
        torch.testing.assert_close(torch.cat(parts, 1), whole.logits, rtol=1e-10, atol=1e-10)
        for mine, one in zip(now.blocks, state.blocks, strict=True):
            for x, y in zip((*mine.rows, *mine.carried), (*one.rows, *one.carried), strict=True):
                torch.testing.assert_close(x[:, x.shape[1] - y.shape[1] :], y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", KINDS)
def test_a_crop_is_the_state_from_before(name):
    """As far back as the last call on a state; further, or where nothing is held by position, it is refused."""
    module = model(name)
    given = draw(module, 2, SEQ, torch.Generator().manual_seed(3))

    def fed(first: int, end: int) -> dict[str, Tensor]:
        return {k: x[:, first:end] for k, x in given.items()}

    _, before = module.prefill(**fed(0, 9))
    _, after = module.prefill(**fed(9, 14), state=before)

    assert after.crop(14) is after
    if {"recurrence", "tensors", "sru++", "sru++ window"} & set(KINDS[name][0]):
        with pytest.raises(ValueError, match="crop: block 1 carries what all positions left behind; keep the state"):
            after.crop(9)
        return
    if "window" in name:
        with pytest.raises(ValueError, match=r"crop: block 1 sees [24] positions back and no longer holds so many"):
            after.crop(8)
    for length in ([9, 9], [11, 9]):
        _, again = module.prefill(**fed(9, 11), lengths=[n - 9 for n in length], state=before)
        want, _ = module.prefill(**fed(11, 15), state=again)
        got, _ = module.prefill(**fed(11, 15), state=after.crop(length))
        torch.testing.assert_close(got.logits, want.logits, rtol=1e-10, atol=1e-10)


def test_names_of_a_spec_are_no_names_of_its_package():
    """A block or a stage may be called like what decoding imports, or like its variables."""
    blocks = f"  past: {{{MIXERS['causal']}}}\n  now: {{{MIXERS['experts']}}}"
    layers = "name: state, layer: [past, now]"
    module = built(SPEC.format(seq=SEQ, vocab=VOCAB, blocks=blocks, layers=layers, embed=LEARNED))
    Rows(module, 2, 5).run(5)


def test_a_step_is_one_graph():
    """Of torch.compile, for one length and for all."""
    text = SPEC.format(seq=SEQ, vocab=VOCAB, blocks=f"  m: {{{MIXERS['window']}}}", layers="layer: [m]", embed=LEARNED)
    module = built(text.replace("layers: 2", "layers: 1"))
    whole = torch.compile(module.step, backend="eager", fullgraph=True)
    tokens = torch.randint(0, VOCAB, (2, SEQ), generator=torch.Generator().manual_seed(3))
    want = module(tokens).logits
    state = module.prefill(tokens[:, :5])[1]
    for t in range(5, 7):
        out, state = whole(tokens[:, t], state)
        torch.testing.assert_close(out.logits, want[:, t], rtol=1e-10, atol=1e-10)


def test_a_state_and_its_inputs_must_fit():
    module = model("causal")
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    state = module.state(2)
    for call, error, why in (
        (lambda: module.state(0), ValueError, "dim batch is 0, not positive"),
        (lambda: module.state(5), ValueError, "dim batch is 5, over its declared maximum 4"),
        (lambda: module.step(tokens, module.state(3)), ValueError, "state: dim batch is 3, but 2 in the inputs"),
        (lambda: module.step(tokens, (0, ())), TypeError, "state must be a State, .* got tuple"),
        (lambda: module.prefill(tokens, [3]), ValueError, r"lengths must be \[batch\], 2 whole numbers"),
        (lambda: module.prefill(tokens, [4, 0]), ValueError, r"lengths: \[4, 0\] are not all within the 3 positions"),
        (lambda: module.prefill(tokens.new_zeros(2, SEQ + 1)), ValueError, "dim seq is 17, over its declared maximum"),
        (lambda: state.crop([1, 2, 3]), ValueError, "crop: 3 lengths for dim batch of 2"),
        (lambda: state.crop(-1), ValueError, "crop: a length is at least 0, not -1"),
    ):
        with pytest.raises(error, match=why):
            call()


def test_a_state_moves_between_dtypes_and_copies():
    module = model("sru++ window")
    _, state = module.prefill(torch.zeros(2, 3, dtype=torch.int64))
    half, copy = state.to(torch.float16), state.clone()
    state.blocks[1].carried[0].zero_()
    assert {x.dtype for b in half.blocks for x in (*b.rows, *b.carried)} == {torch.float16}
    assert half.lengths.dtype == torch.int64
    assert copy.detach().blocks[1].carried[0].abs().sum() > 0
    assert {x.device.type for x in state.to("meta").blocks[1].rows} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_steps_in_half_precision_are_the_whole_run(dtype):
    """Of a model that was moved, with rows apart."""
    tokens = torch.randint(0, VOCAB, (2, SEQ), generator=torch.Generator().manual_seed(3))
    for name in ("rotary window", "score", "sru++", "two experts"):
        module = copy.deepcopy(model(name)).to(dtype)
        whole = module(tokens).logits
        _, state = module.prefill(tokens[:, :7], lengths=[7, 4])
        assert {x.dtype for b in state.blocks for x in (*b.rows, *b.carried)} <= {dtype, torch.int64}
        out, _ = module.step(torch.stack((tokens[0, 7:12], tokens[1, 4:9])), state)
        torch.testing.assert_close(out.logits, torch.stack((whole[0, 7:12], whole[1, 4:9])), rtol=0.02, atol=0.02)
