"""What is launched while tuning: the wrapper of a region's kernel, operands for it, and the truth. Imports torch.

A case is named by data (`Workload`), so that any worker can make it:

    case = open_case(workload)
    args = case.inputs(sizes, "cuda", "bf16", seed)
    with case.configured({"BM": 128, ...}): outputs = case.run(args)
    case.truth(args, sizes)                 the reference interpreter in float64
"""

from __future__ import annotations

import importlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import triton
from torch import Tensor

from weft.autotune.space.workload import Workload
from weft.autotune.workers.launches import KernelFolder
from weft.ir.indices import index_range
from weft.ir.reference import run
from weft.ir.text import parse
from weft.ir.types import FLOATS, Graph, Val, torch_dtype

Args = tuple[Any, ...]


class Case(Protocol):
    """A wrapper with operands and a truth."""

    kernels: KernelFolder

    def inputs(self, sizes: Mapping[str, int], device: str, dtype: str, seed: int) -> Args:
        """Random operands; the same for the same seed on any device but "meta", where they have no values."""
        ...

    def configured(self, config: Mapping[str, Any], target: str) -> Any:
        """A context in which `run` launches with that configuration."""
        ...

    def run(self, args: Args) -> tuple[Tensor, ...]:
        """The results, as the emitted package computes them."""
        ...

    def truth(self, args: Args, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
        """The results in float64."""
        ...


def open_case(workload: Workload) -> Case:
    """The case of a workload; its provider is a function of weft, or of the caller's own code."""
    module, _, name = workload.provider.partition(":")
    return getattr(importlib.import_module(module), name)(KernelFolder(workload.folder), workload.params)


class RegionCase:
    """A region file of an emitted package.

    params: {"kernel": the file's name, "graph": the region in IR text, "part": of the configuration that is tuned,
    "wide": names of inputs that are float32 at least, "statistics": see `weft.autotune.space.problems`}.
    """

    def __init__(self, kernels: KernelFolder, params: Mapping[str, Any]) -> None:
        self.kernels = kernels
        self.graph: Graph = parse(params["graph"])
        self.part, self.wide = params.get("part", ""), frozenset(params.get("wide", ()))
        following = params.get("statistics") or {}
        self.statistics = parse(following["graph"]) if following else None
        self.derived: Sequence[str] = following.get("names", ())
        self.launch = kernels.module(".common.host")
        self.module = kernels.module(f".{params['kernel']}")
        vars(self.module).setdefault("tl", triton.language)  # the interpreter wants to see it beside every function
        self.floats = {v.dtype for v in self.graph.inputs if v.dtype in FLOATS}

    def inputs(self, sizes: Mapping[str, int], device: str, dtype: str, seed: int) -> Args:
        draw = torch.Generator().manual_seed(seed)
        found = {
            v.name: self._input(v, [sizes[d] for d in v.dims], sizes, device, dtype, draw) for v in self.graph.inputs
        }
        if self.statistics and device != "meta":
            made = run(self.statistics, sizes, {n: torch.as_tensor(x) for n, x in found.items()}, torch, torch.float64)
            found |= {n: x.to(found[n].dtype) for n, x in zip(self.derived, made, strict=True)}
        return tuple(found.values())

    def _input(
        self, v: Val, shape: Sequence[int], sizes: Mapping[str, int], device: str, dtype: str, draw: torch.Generator
    ) -> Any:
        """Floats are N(0, 1), in `dtype` where the region's are all of one, else in their own."""
        if any(n.ins[i] == v for n in self.graph.nodes for i, what in n.op.scalars.items() if what == "layer"):
            return 0
        kind = torch_dtype(torch, self._dtype(v, dtype))
        if device == "meta":
            return torch.empty(shape, dtype=kind, device="meta")
        if v.dtype in FLOATS:
            return torch.randn(shape, generator=draw, dtype=torch.float32).to(kind).to(device)
        if v.dtype == "bool":
            return (torch.rand(shape, generator=draw) > 0.2).to(device)
        most = index_range(self.graph, v, sizes) if v.dims else 2**31
        return torch.randint(0, max(1, most), shape, generator=draw).to(device)

    def _dtype(self, v: Val, dtype: str) -> str:
        """What a value is held in where the package runs in `dtype`."""
        if v.dtype not in FLOATS or (len(self.floats) > 1 and dtype != "f64"):
            return v.dtype
        return "f32" if v.name in self.wide and dtype in ("f16", "bf16") else dtype

    @contextmanager
    def configured(self, config: Mapping[str, Any], target: str) -> Generator[None]:
        """The package's own configurations with `config`, or its part, in the place of this kernel's."""
        launch, known = self.launch, self.launch.config
        arch = launch.arch

        def chosen(name: str, like: Tensor) -> dict[str, Any]:
            own = known(name, like)
            return merged(own, config, self.part) if name == self.module.NAME else own

        launch.config, launch.arch = chosen, lambda device: target
        try:
            yield
        finally:
            launch.config, launch.arch = known, arch

    def run(self, args: Args) -> tuple[Tensor, ...]:
        out = self.module.run(*args)
        return out if isinstance(out, tuple) else (out,)

    def truth(self, args: Args, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
        tensors = [torch.as_tensor(a) for a in args]
        return run(self.graph, sizes, tensors, torch, torch.float64)


def merged(own: Mapping[str, Any], config: Mapping[str, Any], part: str) -> dict[str, Any]:
    """A region's configuration with the knobs of one of its parts ("" for the whole) replaced."""
    if not part:
        return {**own, **config}
    return {**own, part: {**own[part], **config}}


def wrong(got: Sequence[Tensor], want: Sequence[Tensor], tolerance: float) -> tuple[str, float, str]:
    """("ok" | "wrong" | "non_finite", the largest error relative to its tensor's size, what is wrong)."""
    worst, status, why = 0.0, "ok", ""
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        if a.shape != b.shape:
            return "wrong", 1.0, f"result {k} has the shape {tuple(a.shape)}, not {tuple(b.shape)}"
        if not b.numel():
            continue
        a, b = a.double(), b.double()
        strange = (a.isfinite() != b.isfinite()) | (a.isnan() != b.isnan()) | (a.isinf() & b.isinf() & (a != b))
        if strange.any():
            return "non_finite", 1.0, f"{int(strange.sum())} of {a.numel()} values of result {k} are not finite"
        there = b.isfinite()
        scale = b[there].abs().max().item() if there.any() else 0.0
        error = ((a - b)[there].abs().max().item() if there.any() else 0.0) / max(scale, 1e-30)
        worst = max(worst, error)
        if error > tolerance:
            status, why = "wrong", f"result {k} is off by {error:.2g} of its largest value"
    return status, worst, why
