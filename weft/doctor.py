"""`weft doctor`: what this machine has, what that means for weft, and how to mend what is missing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Literal

from weft.cache.place import cache_dir
from weft.environment import ENVIRONMENT
from weft.frontends.suggest import nearest

# These change what Triton compiles, or run code of their own.
_TRITON = (
    "TRITON_CACHE_DIR",
    "TRITON_CACHE_MANAGER",
    "TRITON_INTERPRET",
    "TRITON_KERNEL_OVERRIDE",
    "TRITON_PTXAS_PATH",
    "TRITON_REMOTE_CACHE_BACKEND",
)
# Which Triton a torch release was built and tested with.
_PAIRS = {"2.11": "3.6", "2.12": "3.7", "2.14": "3.8"}
_RUNTIME_OPSET = 26


@dataclass(frozen=True)
class Examined:
    """One thing looked at: `state` is ok, warn or fail; `fix` says what to do about it."""

    state: Literal["ok", "warn", "fail"]
    what: str
    found: str
    fix: str = ""

    def as_json(self) -> dict[str, Any]:
        """The row as data."""
        return asdict(self)


def rows() -> list[Examined]:
    """Look at everything, in the order a person would."""
    return [
        _python(),
        *_torch(),
        *_triton(),
        *_packages(),
        *_onnx(),
        _cache(),
        *_environment(),
    ]


def table(found: list[Examined]) -> str:
    """One line per row, and one more with the fix where there is one."""
    width = max(len(row.what) for row in found)
    lines: list[str] = []
    for row in found:
        lines.append(f"{row.state:4}  {row.what:{width}}  {row.found}")
        lines += [f"{'':4}  {'':{width}}  -> {row.fix}"] if row.fix else []
    return "\n".join(lines)


def version(package: str) -> str | None:
    """The installed version, without importing the package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _at_least(found: str, least: str) -> bool:
    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split("+")[0].split(".")[:2] if part.isdigit())

    return numbers(found) >= numbers(least)


def _python() -> Examined:
    return Examined("ok", "python", f"{'.'.join(str(n) for n in sys.version_info[:3])} on {sys.platform}")


def _torch() -> Iterator[Examined]:
    found = version("torch")
    if found is None:
        yield Examined("fail", "torch", "missing", "pip install torch")
        return
    if not _at_least(found, "2.11"):
        yield Examined("fail", "torch", found, "weft needs torch 2.11 or newer")
        return
    try:
        import torch  # torch is imported only where it is needed
    except (ImportError, OSError) as error:
        yield Examined("fail", "torch", f"{found} does not import: {error}", "reinstall torch")
        return
    yield Examined("ok", "torch", found)
    yield Examined("ok", "cpu threads", f"{torch.get_num_threads()} of {os.cpu_count()}")
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        yield Examined("ok", "gpu", f"{torch.cuda.get_device_name()} (sm_{major}{minor})")
    else:
        yield Examined("ok", "gpu", "none: packages run on the CPU; plans for a GPU take --target sm_90")


def _triton() -> Iterator[Examined]:
    torch, triton = version("torch"), version("triton")
    if triton is None:
        if sys.platform == "linux":
            yield Examined("ok", "triton", "missing: needed only where kernels run on a GPU")
        else:
            yield Examined("ok", "triton", f"not available on {sys.platform}: planning, CPU and reference only")
        return
    pair = _PAIRS.get(".".join((torch or "").split(".")[:2]))
    if pair is not None and not triton.startswith(f"{pair}."):
        yield Examined(
            "warn", "triton", f"{triton} with torch {torch}", f"torch {torch} was released with triton {pair}"
        )
    else:
        yield Examined("ok", "triton", triton)


def _packages() -> Iterator[Examined]:
    for package, least in (
        ("numpy", "1.26"),
        ("sympy", "1.12"),
        ("pydantic", "2.0"),
        ("PyYAML", "6.0"),
        ("click", "8.0"),
    ):
        found = version(package)
        if found is None:
            yield Examined("fail", package.lower(), "missing", f"pip install {package}")
        elif not _at_least(found, least):
            yield Examined("fail", package.lower(), found, f"pip install '{package}>={least}'")
        else:
            yield Examined("ok", package.lower(), found)


def _onnx() -> Iterator[Examined]:
    onnx, runtime = version("onnx"), version("onnxruntime")
    if onnx is None:
        yield Examined("fail", "onnx", "missing: no `weft export --format onnx`", "pip install onnx")
    elif not _at_least(onnx, "1.21"):
        yield Examined("fail", "onnx", onnx, "pip install 'onnx>=1.21': older ones read files outside a model's folder")
    else:
        yield Examined("ok", "onnx", f"{onnx}; weft writes opset 23")
    if runtime is None:
        yield Examined("warn", "onnxruntime", "missing: ONNX files are written but not run", "pip install onnxruntime")
    else:
        yield Examined("ok", "onnxruntime", f"{runtime}; runs opsets up to {_RUNTIME_OPSET}")


def _cache() -> Examined:
    path = cache_dir()
    fix = "set WEFT_CACHE_DIR to a folder of your own"
    if path.exists():
        if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
            return Examined("warn", "cache", f"{path} cannot be written", fix)
        status = path.stat()
        if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
            return Examined("warn", "cache", f"{path} can be written by others", f"chmod 700 {path}")
        return Examined("ok", "cache", str(path))
    above = next((parent for parent in path.parents if parent.exists()), None)
    if above is None or not os.access(above, os.W_OK | os.X_OK):
        return Examined("warn", "cache", f"{path} cannot be made", fix)
    return Examined("ok", "cache", f"{path} (made when needed)")


def _environment() -> Iterator[Examined]:
    for name in sorted(os.environ):
        value = os.environ[name][:80]
        if name in ENVIRONMENT:
            yield Examined("ok", name, value)
        elif name.startswith("WEFT_"):
            near = nearest(name, ENVIRONMENT)
            yield Examined("warn", name, "weft reads no such variable", f"did you mean {near}?" if near else "unset it")
        elif name in _TRITON:
            yield Examined("warn", name, value, "changes what Triton compiles; unset it unless you mean it")
