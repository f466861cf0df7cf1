"""The program of a compile worker: Triton without torch and without a GPU, one launch at a time.

Jobs: {"op": "version"}, {"op": "shared" | "compile", "folder", "launch", "target"}. "compile" with "keep" also writes
what Triton needs to run the kernel later into the worker's folder, and says where.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from weft.autotune.workers import serve
from weft.autotune.workers.capture import gpu
from weft.autotune.workers.kept import Kept, pack
from weft.autotune.workers.launches import KernelFolder, KernelLaunch, source
from weft.autotune.workers.serve import Job
from weft.autotune.workers.staging import shared
from weft.targets import ARCHS

_DOT = re.compile(r"= tt\.dot(?:_scaled)? ")
MEMORY = 16 << 30  # bytes of addresses; ptxas alone has been seen at 1.2 GB


@cache
def kernels(folder: str) -> KernelFolder:
    return KernelFolder(folder, without_torch=True)


def handle(job: Job) -> dict[str, Any]:
    """The answer to a job: what Triton says of the launch, and the CPU-seconds it took to say so."""
    if job["op"] == "version":
        return versions()
    launch = KernelLaunch.parse(job["launch"])
    began, wall = serve.cpu_seconds(), time.monotonic()
    found = OPS[job["op"]](source(launch, kernels(job["folder"])), launch, job)
    return {**found, "cpu_s": serve.cpu_seconds() - began, "seconds": time.monotonic() - wall}


def versions() -> dict[str, Any]:
    """Triton's version, and that of the assembler it uses for each target, "" where it does not say."""
    import triton  # a GPU's compiler, which not every machine has

    return {"triton": triton.__version__, "ptxas": {target: _ptxas(target) for target in ARCHS}}


def _ptxas(target: str) -> str:
    try:
        from triton.backends.nvidia.compiler import get_ptxas  # a GPU's compiler, which not every machine has

        return str(get_ptxas(int(target.removeprefix("sm_"))).version)
    except Exception:
        return ""


def staged(made: Any, launch: KernelLaunch, job: Job) -> dict[str, Any]:
    return {"shared": shared(made, job["target"], launch.options)}


def compiled(made: Any, launch: KernelLaunch, job: Job) -> dict[str, Any]:
    """Shared memory, registers, stack (bytes a thread; spills), matrix products, tensor-core instructions, warps,
    whether they are specialised."""
    import triton  # a GPU's compiler, which not every machine has

    folder = tempfile.mkdtemp(prefix="triton-")
    os.environ["TRITON_CACHE_DIR"] = folder
    try:
        built = triton.compile(made, target=gpu(job["target"]), options=dict(launch.options))
        ptx = built.asm["ptx"]
        found = {
            "shared": built.metadata.shared,
            "warps": built.metadata.num_warps,
            "dots": len(_DOT.findall(built.asm["ttir"])),
            "wgmma": ptx.count("wgmma.mma_async"),
            "mma": ptx.count("mma.sync") + ptx.count("tcgen05.mma"),
            "specialised": "setmaxnreg" in ptx,
            **resources(built.asm["cubin"]),
        }
        return found | ({"kept": kept(built)} if job.get("keep") else {})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


OPS = {"shared": staged, "compile": compiled}


def resources(cubin: bytes) -> dict[str, int]:
    """Registers and bytes of stack a thread, as cuobjdump of Triton's wheel reads them from a cubin."""
    import triton  # a GPU's compiler, which not every machine has

    tool = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as f:
        f.write(cubin)
        f.flush()
        said = subprocess.run([tool, "-res-usage", f.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    return {"regs": int(found[1]), "stack": int(found[2])} if found else {}


def kept(built: Any) -> str:
    """One file with a kernel as Triton's cache holds it: see `weft.autotune.workers.kept`."""
    name = next(Path(p).name for p in built.metadata_group if p.endswith(".json"))
    metadata = Path(built.metadata_group[name]).read_text()
    key = Path(built.metadata_group[name]).parent.name
    fd, path = tempfile.mkstemp(prefix="kept-")
    with os.fdopen(fd, "wb") as f:
        f.write(pack([Kept(key, name.removesuffix(".json"), metadata, built.asm["cubin"])]))
    return path


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    versions()  # imports Triton before the first deadline starts
    serve.serve(handle, memory=MEMORY)
