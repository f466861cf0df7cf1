"""The names that a person may give the tuner, and the others that they go by. Imports nothing large."""

from __future__ import annotations

from importlib.util import find_spec

from weft.errors import UsageError
from weft.targets import ARCHS, KERNEL_DTYPES, find

_ALSO = {
    "bfloat16": "bf16", "float16": "f16", "fp16": "f16", "half": "f16", "float32": "f32", "fp32": "f32", "float": "f32",
    "single": "f32",
}  # fmt: skip
SAMPLERS = ("pool", "random", "all", "tpe", "nsga2", "cmaes", "gp")
SEEDLESS = ("random",)
"""Samplers that take no seeds from elsewhere."""
_NEED = {"cmaes": "cmaes", "gp": "torch"}


def dtype(name: str) -> str:
    """One of `KERNEL_DTYPES`, by any of its names. UsageError lists them."""
    plain = name.strip().lower().removeprefix("torch.")
    found = _ALSO.get(plain, plain)
    if found not in KERNEL_DTYPES:
        raise UsageError(f"no configurations are kept for dtype {name[:40]!r}; known: {', '.join(KERNEL_DTYPES)}")
    return found


def sampler(name: str) -> str:
    """One of `SAMPLERS`. UsageError lists them, or says what one needs that is not installed."""
    if name not in SAMPLERS:
        raise UsageError(f"no sampler is called {name[:40]!r}; known: {', '.join(SAMPLERS)}")
    need = _NEED.get(name, "")
    if need and find_spec(need) is None:
        others = ", ".join(s for s in SAMPLERS if s not in _NEED)
        raise UsageError(f"sampler {name} needs the package {need}, which is not installed; these need none: {others}")
    return name


def target(name: str) -> str:
    """One that kernels can be tuned for. UsageError lists them."""
    if find(name).name not in ARCHS:
        raise UsageError(f"nothing can be tuned for {name}; known: {', '.join(ARCHS)}")
    return name
