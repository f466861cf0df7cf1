"""What the tests of lowering share: a tiny spec to change, shipped specs at small dims, random arguments."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from benchmarks.specs import EVERY
from tests.campaign import SHIPPED
from weft.frontends.load import load_model, load_spec
from weft.frontends.lower.program import lower
from weft.frontends.schema import Model
from weft.ir.composite import Call
from weft.ir.ops.primitives import Loop
from weft.ir.program import Program
from weft.ir.reference_model import initial, reference
from weft.ir.types import Graph, Node

ALL = [Path(f"examples/specs/{name}.yaml") for name in EVERY]
SPECS = [path for path in ALL if path.stem in SHIPPED]
CAUSAL = [p for p in SPECS if not p.stem.startswith(("bert", "longformer", "bigbird"))]
BASE: dict[str, Any] = {
    "name": "tiny",
    "dims": {"batch": 2, "seq": 12, "width": 16, "heads": 2, "head": 8, "inner": 32, "vocab": 20, "layers": 2},
    "blocks": {"attention": {"kind": "attention", "pattern": "causal"}, "ff": {"kind": "mlp"}},
    "stack": [{"repeat": "layers", "layer": ["attention", "ff"]}],
}
CELL = {
    "kind": "recurrence",
    "inputs": ["u", "g"],
    "state": {"c": 0.0},
    "update": {"c": "sigmoid(g)*c + u"},
    "output": "c",
}


def small(path: Path, train: bool = True) -> Program:
    loaded = load_spec(path, small=True)
    return lower(loaded.model, loaded.dims, train, loaded.src, loaded.name)


def tiny(train: bool = True, **change: Any) -> Program:
    """BASE with keys changed; maps are merged."""
    spec = deepcopy(BASE)
    for key, value in change.items():
        spec[key] = spec[key] | value if isinstance(value, dict) and key in spec else value
    loaded = load_model(Model.model_validate(spec))
    return lower(loaded.model, loaded.dims, train)


def nodes(graph: Graph) -> Iterator[Node]:
    """Every node, those inside calls and loops too."""
    for node in graph.nodes:
        yield node
        if isinstance(node.op, Call | Loop):
            yield from nodes(node.op.body)


def ops(program: Program, kind: type) -> list[Any]:
    return [n.op for n in nodes(program.graph) if isinstance(n.op, kind)]


def arguments(program: Program, seed: int = 0) -> dict[str, Any]:
    """Random public inputs at nominal sizes."""
    lengths = {s.length: program.runtime[s.length].max for s in program.streams}
    sizes, generator = program.resolve(batch=2, **lengths), torch.Generator().manual_seed(seed)
    below = {"types": "types", "labels": None, "segments": None}
    out: dict[str, Any] = {}
    for name in program.inputs:
        value = program.input(name)
        high = sizes.get(below.get(program.part(name), "vocab") or "", 2)
        drawn = torch.randint(0, high, [sizes[d] for d in value.dims], generator=generator)
        out[name] = drawn.bool() if value.dtype == "bool" else drawn
    return out


def weights(program: Program, scale: float = 0.3) -> dict[str, Any]:
    """Random everywhere, so that nothing is hidden by a zero."""
    generator = torch.Generator().manual_seed(1)
    return {n: torch.randn(v.shape, generator=generator).double() * scale for n, v in initial(program, torch).items()}


def run(program: Program, inputs: dict[str, Any], **params: Any) -> dict[str, Any]:
    return reference(program, torch, weights(program) | params, inputs, dtype=torch.float64)
