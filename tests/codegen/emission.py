"""Printing graphs and packages in tests: a graph as a callable, a spec as a package."""

import importlib
import math
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from tests.campaign import SHIPPED
from weft import api
from weft.codegen.build import files_of
from weft.codegen.torch.body import File, floats
from weft.codegen.torch.composites import known
from weft.codegen.torch.function import print_function
from weft.codegen.torch.sizes import Sizes
from weft.ir.program import Runtime
from weft.ir.types import Graph
from weft.passes.opened import prepare

ROOT = Path(__file__).resolve().parents[2]
SPECS = SHIPPED
RUNTIME = (
    *("attention", "chunked", "convolutions", "decode", "distances", "drop", "entropy", "experts", "fourier", "norms"),
    *("philox", "rotary", "rows", "steps", "tables"),
)


def source_of(graph: Graph, sizes: dict[str, int], runtime: tuple[str, ...] = ()) -> str:
    """A file with one function `fn` that computes the graph; dims in `runtime` are read off shapes."""
    table = {d: n for d, n in sizes.items() if d not in runtime}
    ready = prepare(graph, known)
    file = File(Sizes(table, {d: Runtime(max(8, sizes[d])) for d in runtime}))
    file.floats = frozenset(floats(ready)) or frozenset({"f32"})
    printed = print_function(file, "fn", ready)
    return "\n".join([*file.header(), "", "", *printed.lines, ""])


def callable_of(source: str) -> Callable[..., tuple[torch.Tensor, ...]]:
    """The function `fn` of a file."""
    names: dict[str, Any] = {m: importlib.import_module(f"weft.codegen.runtime.{m}") for m in RUNTIME}
    names |= {"torch": torch, "F": F, "math": math}
    exec(compile(source, "<emitted>", "exec"), names)

    def run(*args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = names["fn"](*args)
        return out if isinstance(out, tuple) else (out,)

    return run


def spec_path(name: str) -> str:
    return str(ROOT / f"examples/specs/{name}.yaml")


@cache
def planned(name: str, train: bool = True, memory: int | None = None, *sets: str) -> Any:
    """A shipped spec at its small dims, planned."""
    return api.planned(api.open_spec(spec_path(name), sets, small=True), train, "cpu", memory)


@cache
def package(name: str, train: bool = True, memory: int | None = None, *sets: str) -> dict[str, str]:
    """The files of a shipped spec at its small dims."""
    return files_of(planned(name, train, memory, *sets))


def ruff(*arguments: str | Path) -> str:
    """What ruff has to say; empty when it is content."""
    command = [sys.executable, "-m", "ruff", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr
