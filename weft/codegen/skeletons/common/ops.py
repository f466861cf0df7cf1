"""The kernels as torch ops, in a namespace of this package's contents, and when they run instead of the torch path.

Nothing here needs triton: the region files, which do, are imported when a kernel is first wanted. A namespace is made
of the hash of all files of the folder and of the configurations, so packages in one process never meet, and equal ones
share their ops. WEFT_KERNELS (read once): unset, kernels run for tensors on a GPU; `torch`, never; `interpret`, on a
CPU too, in Triton's interpreter, which is slow and exact.
"""

import hashlib
import importlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1]
CONFIGS = FOLDER.parent / "configs.json"
MODE = os.environ.get("WEFT_KERNELS", "")
if MODE not in ("", "torch", "interpret"):
    raise ValueError(f"WEFT_KERNELS is torch or interpret, not {MODE!r}")
if MODE == "interpret":
    os.environ["TRITON_INTERPRET"] = "1"  # read by triton when it is imported
FOUND = importlib.util.find_spec("triton") is not None


def digest() -> str:
    """SHA-256 of the kernels and their configurations."""
    files = [*sorted(FOLDER.rglob("*.py")), *([CONFIGS] if CONFIGS.exists() else [])]
    named = ((os.path.relpath(p, FOLDER.parent).encode(), p.read_bytes()) for p in files)
    return hashlib.sha256(b"\0".join(name + b"\0" + data for name, data in named)).hexdigest()


NAMESPACE = f"weft_{digest()[:16]}"
OPS = getattr(torch.ops, NAMESPACE)
_loaded: set[str] = set()


def wanted(x: Tensor) -> bool:
    """Do kernels run for this tensor? Products of float64 have no fast kernel; torch has."""
    if MODE == "torch" or not FOUND:
        return False
    if x.is_cuda:
        found = x.dtype != torch.float64
    else:
        found = not torch.compiler.is_compiling() and os.environ.get("TRITON_INTERPRET") == "1"
    if found and not torch.compiler.is_compiling():
        load()
    return found


def load() -> None:
    """Import every region file; each registers its op."""
    package = (__package__ or "").rpartition(".")[0]
    for path in sorted(FOLDER.glob("k[0-9]*.py")):
        if path.stem not in _loaded:
            importlib.import_module(f"{package}.{path.stem}")
            _loaded.add(path.stem)


def register(name: str, schema: str, run: Callable[..., object], fake: Callable[..., object]) -> None:
    """Define OPS.name once: forward only, `run` on CPU and GPU, `fake` for shapes alone."""
    if hasattr(OPS, name):
        return

    def launched(*args: object) -> object:
        with torch.cuda.device_of(next(a for a in args if isinstance(a, Tensor))):
            return run(*args)

    qualified = f"{NAMESPACE}::{name}"
    torch.library.define(qualified, schema)
    torch.library.impl(qualified, ("cpu", "cuda"), launched)
    torch.library.register_fake(qualified, fake)


if torch.cuda.is_available() and MODE != "torch" and FOUND:
    load()
