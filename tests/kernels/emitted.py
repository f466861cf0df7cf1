"""Graphs through the whole emission of kernels: joint graph, regions, files on disk, ops; run in the interpreter.

made = Emitted(graph, sizes)              writes and loads the kernels of a block with this body
made.forward(args), made.backward(...)    run its halves, each region by its kernel's op, the rest by the reference
"""

import importlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from tests.kernels.dual import interpreting
from weft.codegen.package.disk import as_json, digest
from weft.codegen.package.fused import Kernels, RegionOutcome
from weft.codegen.package.wide import wide_of_joint
from weft.codegen.skeletons import shipped
from weft.ir.graphs import with_gradient
from weft.ir.ops.regions import Fused
from weft.ir.program import Program, Runtime
from weft.ir.reference import run
from weft.ir.types import Graph
from weft.passes.derivative import joint as joint_of
from weft.passes.dispatch import dispatched
from weft.passes.fusion.price import Prices
from weft.passes.pairs import fast
from weft.passes.recompute import split
from weft.passes.rewrite import merge, unlet
from weft.targets import find

_folders: list[Any] = []


def load(folder: Path) -> Any:
    """The `kernels.common.ops` of a package folder that need not hold a model; imported under a name of its own."""
    name = "weft_test_" + digest("".join(p.read_text() for p in sorted((folder / "kernels").rglob("*.py"))))[:16]
    home = str(folder.parent)
    target = folder.parent / name
    if not target.exists():
        folder.rename(target)
        (target / "__init__.py").touch()
    sys.path.insert(0, home)
    try:
        importlib.invalidate_caches()
        return importlib.import_module(f"{name}.kernels.common.ops")
    finally:
        sys.path.remove(home)


@dataclass
class Emitted:
    """A block's body with its kernels. runtime: dims that are open. keep: whether the backward reads what the forward
    made (else it computes all again)."""

    graph: Graph
    sizes: Mapping[str, int]
    runtime: tuple[str, ...] = ("batch", "seq")
    keep: bool = True
    longest: int = 0

    @cached_property
    def joint(self) -> Graph:
        return fast(merge(unlet(joint_of(self.graph))))

    @property
    def wide(self) -> frozenset[str]:
        return wide_of_joint(self.joint, len(self.graph.outputs))

    @cached_property
    def halves(self) -> tuple[Graph, Graph]:
        joint = self.joint
        n = len(self.graph.outputs)
        names = [v.name for m in split(joint, n, ()).forward.nodes for v in m.outs] if self.keep else []
        two = split(joint, n, names)
        return dispatched(two.forward), dispatched(two.backward)

    @cached_property
    def kernels(self) -> tuple[Graph, Graph, Kernels]:
        open_ = {d: Runtime(self.longest or n) for d, n in self.sizes.items() if d in self.runtime}
        sizes: dict[str, Any] = {d: n for d, n in self.sizes.items() if d not in open_}
        program = Program("test", self.graph, sizes, open_, (), (), ())
        found = Kernels(program, Prices(self.sizes, find("sm_90")), {})
        floats = {v.dtype for g in self.halves for n in g.nodes for v in n.outs if v.type.floating}
        forward, backward = (
            found.collapsed(g, "test", side, len(floats) > 1, self.wide)
            for g, side in zip(self.halves, ("forward", "backward"))
        )
        return forward, backward, found

    @property
    def rows(self) -> list[RegionOutcome]:
        return self.kernels[2].rows

    @cached_property
    def ships(self) -> dict[str, str]:
        """The files of the families that the regions need."""
        return shipped({r.family for r in self.kernels[2].files.values()})

    @cached_property
    def folder(self) -> Path:
        home = tempfile.TemporaryDirectory(prefix="weft-test-")
        _folders.append(home)
        folder = Path(home.name) / "package"
        (folder / "kernels").mkdir(parents=True)
        regions = list(self.kernels[2].files.values())
        texts = {f"{r.kernel}.py": r.text for r in regions} | self.ships
        for name, text in {**texts, "__init__.py": ""}.items():
            path = folder / "kernels" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        configs = {"schema": "weft.configs/1", "kernels": {r.kernel: r.configs for r in regions}}
        (folder / "configs.json").write_text(as_json(configs))
        return folder

    @cached_property
    def ops(self) -> Any:
        return load(self.folder)

    def run(self, graph: Graph, args: Mapping[str, Any], dtype: torch.dtype) -> tuple[Tensor, ...]:
        ops = self.ops

        def by_kernel(op: Fused, s: Any, torch_: Any, *x: Any) -> Any:
            layers = {n.ins[i] for n in op.body.nodes for i, what in n.op.scalars.items() if what == "layer"}
            given = [int(a) if v in layers else a for v, a in zip(op.body.inputs, x)]
            return getattr(ops.OPS, op.kernel)(*given)

        with interpreting(), patch.object(Fused, "torch", by_kernel):
            ops.load()
            return run(graph, self.sizes, args, torch, dtype)

    def forward(
        self, args: Mapping[str, Any], dtype: torch.dtype = torch.float64
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """The graph's results; and by name all that the forward half gives, those kept for the backward too."""
        graph = self.kernels[0]
        found = self.run(graph, args, dtype)
        return found[: len(self.graph.outputs)], dict(zip((v.name for v in graph.outputs), found))

    def gradients(
        self,
        args: Mapping[str, Any],
        made: Mapping[str, Tensor],
        cotangents: Sequence[Tensor],
        dtype: Any = torch.float64,
    ) -> list[Tensor]:
        """d(inputs), from what `forward` made and the cotangents of the graph's outputs, those that can have one."""
        graph = self.kernels[1]
        floats = with_gradient(self.graph, self.graph.outputs)
        seeds = [v.name for v in graph.inputs[len(graph.inputs) - len(floats) :]]
        given = {**args, **made, **dict(zip(seeds, cotangents))}
        return list(self.run(graph, {v.name: given[v.name] for v in graph.inputs}, dtype))


def check(made: Emitted, args: Mapping[str, Any], dtype: torch.dtype = torch.float64) -> float:
    """The largest error of results and gradients against the reference and autograd in fp64, per tensor."""
    g, sizes = made.graph, made.sizes
    wide = {k: v.double() if v.is_floating_point() else v for k, v in args.items()}
    live, shown = [v.name for v in with_gradient(g, g.inputs)], with_gradient(g, g.outputs)
    leaves = {k: v.detach().requires_grad_(k in live) for k, v in wide.items()}
    truth = run(g, sizes, leaves, torch, torch.float64)
    floats = [t for t, v in zip(truth, g.outputs) if v in shown]
    draw = torch.Generator().manual_seed(1)
    seeds = [torch.randn(t.shape, generator=draw, dtype=torch.float64) for t in floats]
    pairs = [(t, s) for t, s in zip(floats, seeds) if t.requires_grad]
    grads = torch.autograd.grad(
        [t for t, _ in pairs],
        [leaves[n] for n in live],
        [s for _, s in pairs],
        allow_unused=True,
        materialize_grads=True,
    )
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in args.items()}
    results, got = made.forward(cast, dtype)
    back = made.gradients(cast, got, [s.to(dtype) for s in seeds], dtype)
    return max(error(a, b) for a, b in zip([*results, *back], [*truth, *grads], strict=True))


def error(got: Tensor, want: Tensor) -> float:
    """The largest difference, relative to the largest value (1 if that is less); infinities must be the same."""
    assert got.shape == want.shape
    if not want.numel():
        return 0.0
    got, want = got.double(), want.detach().double()
    finite = want.isfinite()
    if not torch.equal(got[~finite], want[~finite]):
        return float("inf")
    scale = max(1.0, float(want[finite].abs().max())) if finite.any() else 1.0
    return float((got - want)[finite].abs().max()) / scale if finite.any() else 0.0


def whole(made: Emitted) -> Emitted:
    """The same, its runtime dims frozen."""
    return replace(made, runtime=())
