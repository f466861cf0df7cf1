"""A package's kernels without triton: their launch wrappers run as they are, and each launch is told, not made.

    kernels = StandIn(files, "sm_90", see)
    kernels.module("fused.layer").forward(*tensors on "meta")     see(cost) for every launch

What a kernel launches, with which tiles, over which buffers, is what its family's `launch.py` does on these operands;
so it is asked for nothing else. A launch moves the tensors that it is given, each once. Imports torch.
"""

import importlib
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from itertools import count
from types import ModuleType, SimpleNamespace
from typing import Any

from weft.codegen import runtime
from weft.codegen.measure.launched import Cost, moved

_NUMBER = count()


class Text(InspectLoader):
    """Imports a module from its text."""

    def __init__(self, source: str) -> None:
        self.source = source

    def get_source(self, fullname: str) -> str:
        return self.source


class StandIn(MetaPathFinder):
    """The package of these files, as far as it is asked for modules. target: whose configurations its kernels take."""

    def __init__(self, files: Mapping[str, str], target: str, see: Callable[[Cost], object]) -> None:
        self.files, self.see, self.root = files, see, f"weft_stand_in_{next(_NUMBER)}"
        self.runs: dict[str, Callable[..., Any]] = {}
        ops = ModuleType(f"{self.root}.kernels.common.ops")
        ops.__dict__.update(
            CONFIGS=SimpleNamespace(read_text=lambda: files["configs.json"]), OPS=_Ops(self), register=self._register
        )
        self.own = {ops.__name__: ops, f"{self.root}.runtime": runtime, self.root: _package(self.root)}
        with self._importing():
            if any(path.startswith("kernels/") for path in files):
                host: Any = importlib.import_module(f"{self.root}.kernels.common.host")
                host.arch = lambda device: target

    def module(self, name: str) -> Any:
        """A module of the package: "fused.layer"."""
        with self._importing():
            return importlib.import_module(f"{self.root}.{name}")

    def run(self, kernel: str) -> Callable[..., Any]:
        """The launch wrapper of a region's file."""
        if kernel not in self.runs:
            self.module(f"kernels.{kernel}")
        return self.runs[kernel]

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if not fullname.startswith(f"{self.root}."):
            return None
        place = fullname.removeprefix(f"{self.root}.").replace(".", "/")
        if f"{place}.py" in self.files:
            return spec_from_loader(fullname, Text(self.files[f"{place}.py"]), is_package=False)
        inside = any(name.startswith(f"{place}/") for name in self.files)
        return spec_from_loader(fullname, Text(""), is_package=True) if inside else None

    def _register(self, name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
        self.runs[name] = run

    @contextmanager
    def _importing(self) -> Generator[None]:
        """Import what there is of the package, and for triton what stands in for it."""
        modules = self.own | _triton(self.see)
        before = {name: sys.modules[name] for name in modules if name in sys.modules}
        sys.modules.update(modules)
        sys.meta_path.insert(0, self)
        try:
            yield
        finally:
            sys.meta_path.remove(self)
            mine = [name for name in sys.modules if name.startswith(f"{self.root}.")]
            self.own |= {name: sys.modules[name] for name in mine}
            for name in [*modules, *mine]:
                sys.modules.pop(name, None)
            sys.modules.update(before)


def _package(name: str) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = []
    return module


class _Ops:
    """The namespace of a package's ops."""

    def __init__(self, owner: StandIn) -> None:
        self.owner = owner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self.owner.run(name)


class _Kernel:
    """A function of Triton's: `kernel[grid](...)` tells what a launch costs."""

    def __init__(self, fn: Any, see: Callable[[Cost], object]) -> None:
        self.fn, self.see = fn, see

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return self._launch

    def _launch(self, *args: Any, **options: Any) -> None:
        self.see(Cost(1, moved([*args, *options.values()])))


class _Language(ModuleType):
    """triton.language as far as kernels' files and launches name it: dtypes, and constants of kernels."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Named(name)


class _Named:
    """A name of triton.language; a call of it gives its argument."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, value: Any = None) -> Any:
        return value


def _triton(see: Callable[[Cost], object]) -> dict[str, ModuleType]:
    """What stands in for triton while a package is imported: of use to those who launch, not to kernels."""
    triton, language = ModuleType("triton"), _Language("triton.language")
    triton.__dict__.update(
        jit=lambda fn: _Kernel(fn, see),
        constexpr_function=lambda fn: fn,
        cdiv=lambda a, b: -(-a // b),
        next_power_of_2=lambda n: 1 << max(n - 1, 0).bit_length(),
        language=language,
    )
    return {"triton": triton, "triton.language": language}
