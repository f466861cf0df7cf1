"""What a result must carry to be read later: versions, machine, command."""

import os
import platform
import sys
from importlib import metadata

PACKAGES = ("torch", "numpy", "sympy", "onnx", "onnxruntime", "pydantic", "weft")


def environment() -> dict[str, object]:
    """Versions, processor count and the command line that reproduces this result."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "packages": {name: version(name) for name in PACKAGES},
        "command": "python -m " + " ".join([module_name(), *sys.argv[1:]]),
    }


def version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def module_name() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else "benchmarks"
