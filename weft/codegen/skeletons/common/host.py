"""What the launch wrappers of region files share: configurations, and operands as kernels take them."""

import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .ops import CONFIGS

NAMES = {torch.bfloat16: "bf16", torch.float16: "f16"}  # of any other dtype: f32
Given = tuple[Any, ...]
"""A tensor and, for each group of dims that a kernel walks as one, its axes there."""


@functools.cache
def table() -> dict[str, Any]:
    """configs.json: kernel -> arch -> dtype -> configuration."""
    return json.loads(CONFIGS.read_text())["kernels"]


@functools.cache
def arch(device: torch.device) -> str:
    """The GPU's architecture; interpreted on a CPU, kernels run as on sm_90."""
    if device.type != "cuda":
        return "sm_90"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@functools.cache
def _config(name: str, on: str, dtype: torch.dtype) -> dict[str, Any]:
    known = table()[name]
    older = [a for a in known if int(a[3:]) <= int(on[3:])] or sorted(known)[:1]
    return known[max(older, key=lambda a: int(a[3:]))][NAMES.get(dtype, "f32")]


def config(name: str, like: Tensor) -> dict[str, Any]:
    """The configuration of a kernel for the GPU and dtype of a tensor: that of its arch, or of the next older one."""
    return _config(name, arch(like.device), like.dtype)


def options(found: dict[str, Any], **defaults: int) -> dict[str, Any]:
    """What a launch takes besides a kernel's own arguments. FP fusion is said, not left to Triton's default."""
    return {k: found.get(k, v) for k, v in {"num_warps": 4, "num_stages": 2, **defaults}.items()} | {
        "enable_fp_fusion": True
    }


def acc(*x: Tensor) -> tl.dtype:
    """What a kernel computes in."""
    return tl.float64 if any(t.dtype == torch.float64 for t in x) else tl.float32


def index(sizes: Sequence[int], *read: Any) -> tl.dtype:
    """int64 where a place or an offset can pass 2^31, else int32. read: all that a launch reads or writes, X too:
    tensors, in tuples of any depth."""
    most = functools.reduce(lambda a, b: a * b, sizes, 1)
    for x in _tensors(read):
        most = max(most, sum((n - 1) * abs(s) for n, s in zip(x.shape, x.stride()) if n) + 1)
    return tl.int64 if most + (1 << 20) >= 1 << 31 else tl.int32


def _tensors(items: Any) -> Iterator[Tensor]:
    if isinstance(items, Tensor):
        yield items
    elif isinstance(items, tuple | list):
        for item in items:
            yield from _tensors(item)


class Operands(NamedTuple):
    """Operands as kernels take them: pointers; of each the stride along each group of dims, and whether it has it."""

    tensors: tuple[Tensor, ...] = ()
    strides: tuple[tuple[int, ...], ...] = ()
    dims: tuple[tuple[int, ...], ...] = ()


def laid(given: Sequence[Given]) -> Operands:
    """Each of (tensor, its axes in the first group of dims, in the second, ...): neighbouring ones; None has none."""
    if not given:
        return Operands()
    tensors, strides = zip(*(strided(*one) for one in given))
    return Operands(tensors, strides, tuple(tuple(int(g is not None) for g in groups) for _, *groups in given))


def strided(x: Tensor, *groups: tuple[int, ...] | None) -> tuple[Tensor, tuple[int, ...]]:
    """A tensor and its stride along each group of neighbouring axes; 0 for None, which it does not have.

    Axes of a group that no one stride walks are copied into order first."""
    walked = [tuple(a for a in g if x.shape[a] > 1) or g[-1:] for g in (g or () for g in groups)]
    if not all(x.stride(a) == x.stride(b) * x.shape[b] for w in walked for a, b in itertools.pairwise(w)):
        x = x.contiguous()  # an axis of one may have any stride
    return x, tuple(x.stride(w[-1]) if w else 0 for w in walked)


def tile(rows: int, columns: int, block: int, most: int = 1 << 30) -> tuple[int, int]:
    """Rows and columns of a tile of about `block` elements: whole rows of up to `most` where they fit."""
    n = min(max(triton.next_power_of_2(columns), 4), block, most)
    return min(triton.next_power_of_2(rows), block // n), n


def row_tile(rows: int, columns: int, config: dict[str, Any]) -> tuple[bool, int, int]:
    """(does a row fit one tile, rows of a tile, columns of a tile)."""
    single = columns <= config["LONGEST"]
    n = triton.next_power_of_2(columns) if single else config["CHUNK"]
    return single, min(triton.next_power_of_2(rows), max(1, config["BLOCK"] // n)), n


def wide(like: Tensor) -> torch.dtype:
    """The dtype of statistics and partial results: that of the accumulator."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def partial(like: Tensor, count: int, slabs: int, sizes: tuple[int, ...]) -> Operands:
    """Buffers for partial results, [slab, columns ...]."""
    made = (like.new_empty((slabs, *sizes), dtype=wide(like)) for _ in range(count))
    return laid([(x, *((d,) for d in range(x.dim()))) for x in made])


def slab(results: Operands) -> Operands:
    """Results over columns as one slab, each stored in all columns."""
    strides = tuple((0, *s) for s in results.strides)
    return Operands(results.tensors, strides, tuple((1,) * len(s) for s in strides))
