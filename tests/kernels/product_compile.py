"""Emitted regions compiled ahead of time: the launches that a region's wrapper makes, as recorded for a target.

for launch, built in compiled(made, "sm_90", sizes): built.stack, built.wgmma
"""

import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any
from unittest.mock import patch

import torch

from tests.kernels.aot import Built, build
from tests.kernels.emitted import Emitted
from weft.autotune.workers.capture import recording
from weft.autotune.workers.launches import KernelFolder, KernelLaunch, source
from weft.ir.types import Val

TORCH = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32, "i64": torch.int64, "bool": torch.bool}

OWN = ("num_warps", "num_stages", "enable_fp_fusion")


def launches(made: Emitted, arch: str, dtype: str, skeleton: str, config: Any = None) -> Iterator[KernelLaunch]:
    """What the wrappers of a block's kernels of a skeleton launch, its floats of this dtype; nothing runs.

    config: instead of the kernels' own."""
    ops = made.ops
    package = ops.__name__.removesuffix(".common.ops")
    device: Any = importlib.import_module(f"{package}.common.host")
    for region in made.kernels[2].files.values():
        if region.skeleton == skeleton:
            run = importlib.import_module(f"{package}.{region.kernel}").run
            own = config or region.configs[arch][dtype]
            with recording(arch, package) as found, patch.object(device, "config", lambda *_, own=own: own):
                run(*arguments(run, region.graph, made.sizes, dtype))
            yield from found


def arguments(run: Any, graph: Any, sizes: Mapping[str, int], dtype: str) -> list[Any]:
    """Tensors without memory for a wrapper's arguments, which are the region's inputs in order; None for a seed."""
    layers = {v for n in graph.nodes if type(n.op).__name__ == "Dropout" for v in n.ins[2:]}
    assert len(inspect.signature(run).parameters) == len(graph.inputs)

    def one(v: Val) -> Any:
        if v in layers:
            return 0
        wanted = dtype if v.type.floating else v.dtype
        return torch.empty([sizes[d] for d in v.dims], dtype=TORCH[wanted], device="meta")

    return [one(v) for v in graph.inputs]


def compiled(
    made: Emitted, arch: str, dtype: str = "bf16", skeleton: str = "matmul", config: Any = None
) -> list[Built]:
    """Each product among them, compiled."""
    kernels = KernelFolder(made.ops.FOLDER)
    out: list[Built] = []
    for launch in launches(made, arch, dtype, skeleton, config):
        if launch.function != "slots":
            given = {k: v for k, v in launch.options.items() if k not in OWN}
            warps, stages = launch.options["num_warps"], launch.options["num_stages"]
            out.append(build(source(launch, kernels), arch, warps, stages, **given))
    return out
