"""Compile kernels ahead of time, without a GPU, and read what the GPU would say of them.

    types = {"X": "*bf16", "N": "i32", "strides": ("i32",) * 3}
    built = build(source(kernel, types, {"BM": 128}), "sm_90", warps=8, stages=2)
    built.shared, built.registers, built.stack, built.wgmma

Works on Triton 3.6 and 3.9. Compilations are not cached.
"""

import functools
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SHARED = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "sm_120": 101_376}
"""Bytes of shared memory one program can have."""
CUOBJDUMP = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")


@dataclass(frozen=True)
class Built:
    """What a compiled kernel needs and uses.

    shared: bytes a program. registers: a thread. stack: bytes a thread; above 0 registers spill. wgmma, mma: how many
    tensor-core instructions stand in the PTX, of Hopper's kind and of the older one.
    """

    arch: str
    shared: int
    registers: int
    stack: int
    wgmma: int
    mma: int
    ptx: str
    ttgir: str

    @property
    def fits(self) -> bool:
        return self.shared <= SHARED[self.arch]

    def __str__(self) -> str:
        used = f"{self.registers} registers, {self.stack} bytes of stack, {self.shared} bytes shared"
        return f"{self.arch}: {used}, {self.wgmma} wgmma, {self.mma} mma"


def source(kernel: Any, types: Mapping[str, Any], constants: Mapping[str, Any], loose: Iterable[str] = ()) -> ASTSource:
    """A kernel with the types of its arguments: "*bf16", "i32", "fp32", tuples of them; and its constants.

    Pointers, and integers of tuples that start with a lower case letter (strides), count as divisible by 16, as
    launches specialise them; `loose` names those that do not. An argument with neither type nor constant is an error.
    """
    constants, divisible = dict(constants), {}
    signature = {n: "constexpr" if n in constants else types[n] for n in kernel.arg_names}

    def visit(type_: Any, path: tuple[int, ...], strides: bool) -> None:
        if isinstance(type_, tuple):
            for z, inner in enumerate(type_):
                visit(inner, (*path, z), strides)
        elif type_[0] == "*" or (strides and type_[0] == "i"):
            divisible[path] = [["tt.divisibility", 16]]

    for z, (name, type_) in enumerate(signature.items()):
        if type_ != "constexpr" and name not in loose:
            visit(type_, (z,), isinstance(type_, tuple) and name[0].islower())
    return ASTSource(kernel, signature, constexprs=constants, attrs=divisible)


def build(source: ASTSource, arch: str, warps: int = 4, stages: int = 2, **options: Any) -> Built:
    """Compile for "sm_80", "sm_90" or "sm_120". Raises what Triton raises."""
    target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True} | options
    with tempfile.TemporaryDirectory() as cache, _environment(TRITON_CACHE_DIR=cache, TRITON_ALWAYS_COMPILE="1"):
        kernel = triton.compile(source, target=target, options=options)
        cubin = os.path.join(cache, "kernel.cubin")
        with open(cubin, "wb") as f:
            f.write(kernel.asm["cubin"])
        used = subprocess.run([CUOBJDUMP, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    found, ptx = re.search(r"REG:(\d+) STACK:(\d+)", used), kernel.asm["ptx"]
    assert found, used
    counts = ptx.count("wgmma.mma_async"), ptx.count("mma.sync")
    return Built(arch, kernel.metadata.shared, int(found[1]), int(found[2]), *counts, ptx, kernel.asm["ttgir"])


class _environment:
    """Environment variables for a block, as Triton reads them when it compiles."""

    def __init__(self, **values: str):
        self.values = values

    def __enter__(self) -> None:
        self.before = {k: os.environ.get(k) for k in self.values}
        os.environ.update(self.values)

    def __exit__(self, *_: object) -> None:
        for key, value in self.before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


@functools.cache
def version() -> tuple[int, ...]:
    """Triton's version, (3, 9) or (3, 6)."""
    return tuple(map(int, triton.__version__.split(".")[:2]))
