"""Libraries that compute what a region computes, where they are installed; each on operands of the region's sizes.

A library's op may do less than the region (a norm without the residual before it): the row names the region's ops.
"""

import importlib.util
from math import prod
from typing import Any

import torch

from benchmarks.gpu.race import Run
from weft.codegen.skeletons.common.writer.regions import RegionFile


def library(region: RegionFile, sizes: dict[str, int], device: str, whys: dict[str, str]) -> dict[str, Run]:
    """name -> what to time; `whys` gets the reason for each that there is not."""
    kinds = {"rowwise": ("liger", "liger_kernel", _norm), "scan": ("fla hgrn", "fla", _hgrn)}
    out: dict[str, Run] = {}
    if region.skeleton == "grouped_matmul":
        out |= _grouped(region, sizes, device)
    if region.skeleton in kinds:
        name, module, make = kinds[region.skeleton]
        if importlib.util.find_spec(module) is None:
            whys[name] = "not installed"
        elif (made := make(region, sizes, device)) is not None:
            out[name] = made
    return out


def _norm(region: RegionFile, sizes: dict[str, int], device: str) -> Run | None:
    """Liger's LayerNorm on rows as long as the region's; forward regions with one norm in them."""
    norms = [n for n in region.graph.nodes if type(n.op).__name__ == "WithStatistics"]
    if len(norms) != 1:
        return None
    # a library that need not be there
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction  # pyright: ignore

    dims = norms[0].ins[0].dims
    rows, columns = prod(sizes[d] for d in dims[:-1]), sizes[dims[-1]]
    x = torch.randn(rows, columns, device=device, dtype=torch.bfloat16)
    w, b = (torch.randn(columns, device=device, dtype=torch.bfloat16) for _ in range(2))
    return lambda: LigerLayerNormFunction.apply(x, w, b, 1e-5)


def _hgrn(region: RegionFile, sizes: dict[str, int], device: str) -> Run | None:
    """flash-linear-attention's gated recurrence over as many steps and channels; forward regions."""
    if any("d_" in v.name for v in region.graph.inputs):
        return None
    # a library that need not be there
    from fla.ops.hgrn import fused_recurrent_hgrn  # pyright: ignore

    widest = max((v for v in region.graph.outputs if "seq" in v.dims), key=lambda v: prod(sizes[d] for d in v.dims))
    width = prod(sizes[d] for d in widest.dims if d not in ("batch", "seq"))
    x, g = (torch.randn(sizes["batch"], sizes["seq"], width, device=device, dtype=torch.bfloat16) for _ in range(2))
    g = torch.nn.functional.logsigmoid(g)
    return lambda: fused_recurrent_hgrn(x, g)


def _grouped(region: RegionFile, sizes: dict[str, int], device: str) -> dict[str, Run]:
    """torch._grouped_mm of tokens that are sorted by expert already, experts equally loaded: the product alone."""
    weights = [v for v in region.graph.inputs if len(v.dims) == 3 and not {"batch", "seq"} & set(v.dims)]
    if not weights or device == "cpu":
        return {}
    experts, inner, outer = (sizes[d] for d in weights[0].dims)
    tokens = sizes["batch"] * sizes["seq"] // experts * experts
    if not tokens:
        return {}
    x: Any = torch.randn(tokens, inner, device=device, dtype=torch.bfloat16)
    w = torch.randn(experts, inner, outer, device=device, dtype=torch.bfloat16)
    ends = torch.arange(1, experts + 1, device=device, dtype=torch.int32) * (tokens // experts)
    return {"torch._grouped_mm": lambda: torch._grouped_mm(x, w, offs=ends)}
