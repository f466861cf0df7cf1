"""Kernels of the shipped specs against torch.compile of what they compute, and against libraries where installed.

The heaviest kernels of every skeleton but attention, forward and backward. torch.compile gets the region's reference
as one graph of torch ops, traced in bf16, dropout as torch's own; libraries get the same sizes. Rows hold bytes and
operations, so that the share of the measured ceilings can be read off.
"""

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.gpu.libraries import library
from benchmarks.gpu.packages import Package, description, package, traffic, work
from benchmarks.gpu.programs import names
from benchmarks.gpu.race import Run, race
from benchmarks.gpu.stage import Stage
from weft.codegen.skeletons.common.writer.regions import RegionFile
from weft.ir.library import Dropout
from weft.ir.reference import run as interpret

TOKENS = 16384  # of a batch
SECONDS = 1.0
EACH = 1  # kernels of a skeleton, half and spec
FIRST = ("gpt2_345m", "mistral_7b", "sru_pp_enwik8", "switch_base")  # of one kind each
SLOW_TO_TRACE = ("scan",)


def run(stage: Stage) -> None:
    units = [(name, name) for name in sorted(names(), key=lambda n: (n not in FIRST, n))]
    for name in stage.cases(units):
        with stage.guarded(name):
            made = package(name, "small" if stage.rehearsal else "published")
            seq = made.planned.sizes.get("seq", 1)
            sizes = made.sizes(batch=2 if stage.rehearsal else max(1, TOKENS // seq), seq=seq)
            for region in heaviest(made, sizes):
                if stage.left <= 0:
                    stage.row(f"{name}.{region.kernel}", skipped="no time was left")
                    continue
                with stage.guarded(f"{name}.{region.kernel}"):
                    _case(stage, made, region, sizes)


def heaviest(made: Package, sizes: dict[str, int]) -> Iterator[RegionFile]:
    """Of each skeleton and half the kernels that move and compute most."""
    prices, groups = made.prices(sizes), dict[tuple[str, str], list[RegionFile]]()
    for region in made.regions:
        if region.skeleton != "attention":
            groups.setdefault((region.skeleton, made.half(region)), []).append(region)
    for group in groups.values():
        yield from sorted(group, key=lambda r: -(traffic(r, prices) + work(r, prices) / 200))[:EACH]


def _case(stage: Stage, made: Package, region: RegionFile, sizes: dict[str, int]) -> None:
    case, dtype = made.case(region), "f32" if stage.rehearsal else "bf16"
    args = case.inputs(sizes, stage.device, dtype, 0)
    runs: dict[str, Run] = {"weft": lambda: case.run(args)}
    whys: dict[str, str] = {}
    if region.skeleton not in SLOW_TO_TRACE:
        try:
            runs["torch.compile"] = _compiled(region, sizes, args, stage)
        except Exception as error:
            whys["torch.compile"] = f"{type(error).__name__}: {error}"[:200]
    runs |= library(region, sizes, stage.device, whys)
    times = race(runs, stage.device, SECONDS)
    prices = made.prices(sizes)
    own = times["weft"].us
    ratios = {k: t.us / own for k, t in times.items() if k != "weft" and t.us and own}
    stage.row(
        f"{made.name}.{region.kernel}", half=made.half(region), skeleton=region.skeleton, ops=description(region),
        bytes=_bytes(args, case.run(args)), flops=work(region, prices), times={k: t.data() for k, t in times.items()},
        ratios=ratios, whys=whys,
    )  # fmt: skip


def _bytes(*groups: Any) -> int:
    """What operands and results hold."""
    return sum(x.numel() * x.element_size() for group in groups for x in group if isinstance(x, torch.Tensor))


def _compiled(region: RegionFile, sizes: dict[str, int], args: tuple[Any, ...], stage: Stage) -> Run:
    """torch.compile of the region's reference, in the dtype of its operands."""
    # it takes seconds, and one side of the comparison alone needs it
    from torch.fx.experimental.proxy_tensor import make_fx

    real = next(a.dtype for a in args if isinstance(a, torch.Tensor) and a.is_floating_point())
    tensors = [torch.as_tensor(a, device=stage.device) for a in args]

    def native(op: Dropout, s: Any, torch_: Any, x: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.nn.functional.dropout(x, float(op.rate))

    with patch.object(Dropout, "torch", native):
        graph = make_fx(lambda *xs: interpret(region.graph, sizes, xs, torch, real))(*tensors)
    torch.compiler.reset()
    compiled = torch.compile(graph, dynamic=False)
    with torch.no_grad():
        compiled(*tensors)
    return lambda: compiled(*tensors)
