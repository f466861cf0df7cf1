"""One kernel launch as JSON data: what a compiler must know of it, so that another process can compile the same thing.

A launch is recorded where its arguments are (`weft.autotune.workers.capture`) with Triton's own specialisation, and
made a Triton source again in a worker that has no torch. Kernels and holes are named by module and name; a module name
that starts with a dot is one of the folder of kernels.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import json
import math
import sys
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Place = tuple[int, ...]


@dataclass(frozen=True)
class KernelLaunch:
    """A kernel with its specialised arguments.

    module, function: the kernel. signature: argument -> "*bf16", "i32", "constexpr", or a list of such. constants:
    (place, encoded value) pairs; a place is the argument's index, then the item's in a tuple. attributes: (place, what
    Triton may assume). options: num_warps and the like. grid: programs along each axis. sizes: integer arguments by
    name, for features.
    """

    module: str
    function: str
    signature: dict[str, Any]
    constants: tuple[tuple[Place, Any], ...] = ()
    attributes: tuple[tuple[Place, Any], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    grid: tuple[int, ...] = (1, 1, 1)
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.module.lstrip('.')}.{self.function}"

    def data(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> KernelLaunch:
        """Of what `data` gave, come through JSON."""
        return cls(
            data["module"], data["function"], dict(data["signature"]), _pairs(data["constants"]),
            _pairs(data["attributes"]), dict(data["options"]), tuple(data["grid"]), dict(data["sizes"]),
        )  # fmt: skip

    def key(self, options: bool = True) -> str:
        """A hash of what is compiled; without `options`, of what the kernel means: the same for any warps and stages.

        The grid is no part of either."""
        parts = [self.module, self.function, self.signature, self.constants]
        parts += [self.attributes, self.options] if options else []
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _pairs(items: Any) -> tuple[tuple[Place, Any], ...]:
    return tuple((tuple(place), value) for place, value in items)


# Values of constants


def encode(value: Any, root: str) -> Any:
    """A constant as JSON data. root: name of the package whose modules are written with a dot. TypeError otherwise."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, tuple | list):
        return {"tuple": [encode(v, root) for v in value]}
    kind = type(value).__name__
    if kind == "dtype" and hasattr(value, "name"):
        return {"dtype": value.name}
    if kind == "constexpr":
        return {"constexpr": encode(value.value, root)}
    if hasattr(value, "fn") and hasattr(value, "arg_names"):
        return {"jit": [relative(value.fn.__module__, root), value.fn.__qualname__]}
    raise TypeError(f"a constant of type {kind} cannot be handed to another process")


def relative(module: str, root: str) -> str:
    """A module's name, with a dot for one of the package `root`."""
    return "." + module.removeprefix(f"{root}.") if module.startswith(f"{root}.") else module


def decode(value: Any, kernels: KernelFolder) -> Any:
    """What `encode` was given."""
    if isinstance(value, dict):
        [(kind, inner)] = value.items()
        if kind == "float":
            return float(inner)
        if kind == "tuple":
            return tuple(decode(v, kernels) for v in inner)
        if kind == "jit":
            return kernels.function(*inner)
        import triton.language as tl  # a GPU's compiler, which not every machine has

        return tl.dtype(inner) if kind == "dtype" else tl.constexpr(decode(inner, kernels))
    return value


# Folders of kernels


def digest(folder: Path) -> str:
    """A hash of the Python files of a folder of kernels."""
    files = sorted(folder.rglob("*.py"))
    text = b"\0".join(p.relative_to(folder).as_posix().encode() + b"\0" + p.read_bytes() for p in files)
    return hashlib.sha256(text).hexdigest()[:16]


class KernelFolder:
    """A folder of kernels as an importable package, named by its contents: equal folders have equal names, and so the
    kernels equal hashes, wherever they lie. without_torch: `torch` is replaced by a module that does nothing."""

    def __init__(self, folder: str | Path, without_torch: bool = False) -> None:
        self.folder = Path(folder).resolve()
        self.root = f"weft_kernels_{digest(self.folder)}"
        if without_torch and "torch" not in sys.modules:
            sys.modules["torch"] = _Nothing("torch")
        if self.root not in sys.modules:
            package = types.ModuleType(self.root)
            package.__path__ = [str(self.folder)]
            sys.modules[self.root] = package

    def module(self, name: str) -> Any:
        """ ".attention.forward": of the folder; any other: as it is."""
        return importlib.import_module(self.root + name if name.startswith(".") else name)

    def function(self, module: str, name: str) -> Any:
        found = self.module(module)
        for part in name.split("."):
            found = getattr(found, part)
        return found


class _Nothing(types.ModuleType):
    """Stands for torch where kernels are only compiled: launch wrappers import, and nothing of them runs."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (_Anything,), {})()
        setattr(self, name, made)
        return made


class _Anything:
    """Has every attribute, can be called and subscripted, is false."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()

    def __call__(self, *_: Any, **__: Any) -> Any:
        return _Anything()

    def __getitem__(self, _: Any) -> Any:
        return _Anything()

    def __bool__(self) -> bool:
        return False


def source(launch: KernelLaunch, kernels: KernelFolder) -> Any:
    """The launch as a source that `triton.compile` takes."""
    from triton.compiler import ASTSource  # a GPU's compiler, which not every machine has

    signature = {name: _type(t) for name, t in launch.signature.items()}
    constants = {place: decode(value, kernels) for place, value in launch.constants}
    attributes = dict(launch.attributes)
    return ASTSource(kernels.function(launch.module, launch.function), signature, constants, attributes)


def _type(t: Any) -> Any:
    return tuple(_type(x) for x in t) if isinstance(t, list | tuple) else t
