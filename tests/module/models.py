"""Small packages, each emitted once a process, and what is fed to them."""

from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from weft import api
from weft.codegen.build import files_of, temporary
from weft.codegen.package.disk import load

VOCAB = 11

GPT = f"""
weft: 1
name: gpt
dims: {{batch: 4, seq: 8, width: 8, heads: 2, head: 4, inner: 16, layers: 2, vocab: {VOCAB}}}
blocks:
  attention: {{kind: attention, pattern: causal}}
  feedforward: {{kind: mlp, activation: gelu}}
embed: {{positions: [{{learned: seq}}]}}
stack: [{{repeat: layers, layer: [attention, feedforward]}}]
norm: layer_norm
head: {{tied: true}}
"""

ROUTED = """
weft: 1
name: routed
dims: {batch: 4, seq: 8, width: 8, heads: 2, head: 4, inner: 8, experts: 4, layers: 2, vocab: 11}
blocks:
  attention: {kind: attention, pattern: causal, rotary: {}}
  experts: {kind: moe, top_k: 2, capacity: 8, aux_loss: 0.01, activation: silu}
sublayer: {norm: rms_norm}
stack: [{repeat: layers, layer: [attention, experts]}]
norm: rms_norm
"""

RECURRENT = """
weft: 1
name: recurrent
dims: {batch: 4, seq: 8, width: 8, inner: 16, layers: 2, vocab: 11}
blocks:
  cell:
    kind: recurrence
    inputs: [u, forget]
    parameters: {bias: zeros}
    state: {c: 0}
    let: {f: "sigmoid(forget + bias)"}
    update: {c: "f*c + (1 - f)*u"}
    output: "tanh(min(max(c, -1000000), 1000000))"
  feedforward: {kind: mlp, activation: gelu, gated: true}
stack: [{repeat: layers, layer: [cell, feedforward]}]
norm: rms_norm
"""

BOTH = """
weft: 1
name: both
dims: {batch: 4, seq: 8, width: 8, heads: 2, head: 4, inner: 16, layers: 1, vocab: 11, kinds: 3}
blocks:
  attention: {kind: attention, pattern: all}
  feedforward: {kind: mlp, activation: gelu}
embed: {types: 2}
stack: [{repeat: layers, layer: [attention, feedforward]}]
norm: layer_norm
head: [{kind: language, tied: true}, {kind: classify, classes: kinds}]
"""

MIXED = """
weft: 1
name: mixed
dims: {batch: 8, seq: 16, width: 8, heads: 2, head: 4, inner: 8, experts: 4, layers: 1, vocab: 11}
blocks:
  attention: {kind: attention, pattern: "causal and (window(2) or strided(4))", rotary: {}}
  scored: {kind: attention, pattern: "causal and same_segment", score: "s - 0.1*(q - k)"}
  cell:
    kind: recurrence
    inputs: [u, forget]
    state: {c: 0}
    let: {f: "sigmoid(forget)"}
    update: {c: "f*c + (1 - f)*u"}
    output: "tanh(c)"
  experts: {kind: moe, top_k: 2, capacity_factor: 1.25, activation: silu, aux_loss: 0.01}
sublayer: {norm: rms_norm, dropout: 0.1}
stack: [{repeat: layers, layer: [attention, scored, cell, experts]}]
norm: rms_norm
"""
"""Attention merged from layouts and in tiles under metadata and a score, a cell, experts with a capacity, dropout."""

SPECS = {"gpt": GPT, "routed": ROUTED, "recurrent": RECURRENT, "both": BOTH}
EVERY = {**SPECS, "mixed": MIXED}


@lru_cache
def emitted(name: str, dtype: str = "", more: str = "", train: bool = True) -> ModuleType:
    """The package of a small spec. dtype: of parameters and computation; more: lines of the spec."""
    text = EVERY[name] + (f"dtype: {{params: {dtype}, compute: {dtype}}}\n" if dtype else "") + more
    folder = temporary({"spec.yaml": text})
    return load(temporary(files_of(api.planned(api.open_spec(folder / "spec.yaml"), train))))


def model(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """A model in one dtype, drawn from a seed, a little noise on all that starts at 0 or 1."""
    made = emitted(name, **options).Model(generator=0).to(dtype)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=draw, dtype=torch.float64).to(dtype))
    return made


def numbers(*shape: int, below: int = VOCAB, seed: int = 0) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))


def inputs(name: str, batch: int = 3, seq: int = 6) -> dict[str, Tensor]:
    """What a small model reads, targets apart."""
    types = {"types": numbers(batch, seq, below=2, seed=2)} if name == "both" else {}
    segments = {"segments": torch.arange(seq).expand(batch, seq) // 3} if name == "mixed" else {}
    return {"tokens": numbers(batch, seq), **types, **segments}


def targets(name: str, batch: int = 3, seq: int = 6) -> dict[str, Tensor]:
    """What its loss compares with; one of each does not count."""
    words, kinds = numbers(batch, seq, seed=3), numbers(batch, below=3, seed=4)
    words[0, 1] = kinds[1] = -100
    return {"targets": words} | ({"labels": kinds} if name == "both" else {})


def grads(module: Any, value: Tensor) -> dict[str, Tensor]:
    """The gradient of every parameter, zeros where there is none."""
    named = dict(module.named_parameters())
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(named, found))
