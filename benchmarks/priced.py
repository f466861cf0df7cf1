"""What the plan says that a training step moves and launches, beside what the emitted package does.

    python -m benchmarks.priced [SPEC ...] [--route torch|kernels]

At the small dims of every shipped spec. The torch path runs on a CPU under a dispatch mode; the kernel path on meta
tensors, each launch of a Triton kernel counted where it would be made, torch's operators between as above."""

import argparse
import importlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from benchmarks.specs import EVERY as NAMES
from benchmarks.specs import SPECS
from weft import api
from weft.codegen.build import files_of, temporary
from weft.codegen.check.calling import call
from weft.codegen.check.verify import case
from weft.codegen.measure.launched import Cost, Launches, size
from weft.codegen.package.disk import load
from weft.codegen.plan.as_json import totals
from weft.codegen.plan.planner import Planned

ROUTES = {"torch": "cpu", "kernels": "sm_90"}
"""The target that each is planned for."""


@dataclass
class Step:
    """A training step as planned and as it ran."""

    spec: str
    route: str
    planned: Cost
    emitted: Cost

    def text(self) -> str:
        a, b = self.planned, self.emitted
        shares = f"{a.launches / b.launches:6.2f} {a.bytes / b.bytes:6.2f}"
        return f"{self.spec:<32} {self.route:<8} {a.launches:8,} {b.launches:8,} {a.bytes:14,} {b.bytes:14,} {shares}"


HEAD = f"{'spec':<32} {'route':<8} {'launches':>8} {'emitted':>8} {'bytes':>14} {'emitted':>14} {'ratio of each':>13}"


def step(name: str, route: str, watch: Counter[str] | None = None) -> Step:
    """One spec on one route. watch: counts launches by operator."""
    spec = api.open_spec(SPECS / f"{name}.yaml", (), True)
    found = api.planned(spec, target=ROUTES[route])
    said = totals(found)
    parts = [(t["launches"], t["bytes"]) for t in said.values()] + [(found.checks.launches, found.checks.bytes)]
    planned = Cost(*map(sum, zip(*parts, strict=True)))
    return Step(name, route, planned, emitted(found, route, watch))


def emitted(found: Planned, route: str, watch: Counter[str] | None = None) -> Cost:
    """What a forward and a backward of the package launch and move, at the sizes of the plan."""
    kernels = route == "kernels"
    device = "meta" if kernels else "cpu"
    folder = temporary(files_of(found))
    with setting(WEFT_KERNELS=None if kernels else "torch", TRITON_INTERPRET=None):
        package = load(folder)
        module: nn.Module = package.Model(device=device)
        runs = regions(folder, package.__name__) if kernels else {}
    sizes = {d: found.sizes[d] for d in found.program.runtime}
    inputs = case(found.program, 0, None, **sizes)[2]
    inputs = {k: x.to(device, torch.float32 if x.is_floating_point() else x.dtype) for k, x in inputs.items()}
    with (
        setting(TRITON_INTERPRET="1" if kernels else None),  # then kernels are wanted off a GPU, though none will run
        Counted(runs, watch) as counted,
        launching(counted),
    ):
        first: Tensor = call(found.program, module, inputs)[found.program.outputs[0]]
        first.backward(torch.ones_like(first))
    return counted.total


class Counted(Launches):
    """The sum of what runs. runs: what stands behind the ops of a package, which count as what they launch."""

    def __init__(self, runs: Mapping[str, Callable[..., Any]], watch: Counter[str] | None) -> None:
        super().__init__(self.add)
        self.total, self.runs, self.watch = Cost(), runs, watch

    def add(self, found: Cost) -> None:
        self.total = self.total + found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if name in self.runs:
            with self:
                return self.runs[name](*args)
        before = self.total
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.watched(name, before)
        return out

    def watched(self, name: str, before: Cost) -> None:
        if self.watch is not None and self.total.launches > before.launches:
            self.watch[name] += 1
            self.watch[f"{name} bytes"] += self.total.bytes - before.bytes


@contextmanager
def setting(**values: str | None) -> Generator[None]:
    """Environment variables as given, None not set."""
    before = {name: os.environ.get(name) for name in values}
    try:
        _set(values)
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def regions(folder: Path, package: str) -> dict[str, Callable[..., Any]]:
    """Region file -> its launch wrapper."""
    names = [path.stem for path in sorted((folder / "kernels").glob("k[0-9]*.py"))]
    return {name: importlib.import_module(f"{package}.kernels.{name}").run for name in names}


@contextmanager
def launching(counted: Counted) -> Generator[None]:
    """Launches of Triton kernels are counted, not made: each moves the tensors that it is given."""
    try:
        from triton.runtime.jit import JITFunction  # a GPU's compiler, which not every machine has
    except ModuleNotFoundError:
        yield
        return

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        before = counted.total
        given = {id(x): x for x in tree_leaves([args, kwargs]) if isinstance(x, Tensor)}
        counted.add(Cost(1, sum(map(size, given.values()))))
        counted.watched(self.fn.__qualname__, before)

    plain, JITFunction.run = JITFunction.run, run
    try:
        yield
    finally:
        JITFunction.run = plain


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("spec", nargs="*", help=f"default all: {', '.join(NAMES)}")
    parser.add_argument("--route", choices=ROUTES, action="append")
    parser.add_argument("--operators", action="store_true", help="what is launched, by operator")
    options = parser.parse_args(arguments)
    print(HEAD)
    for name in options.spec or NAMES:
        for route in options.route or ROUTES:
            watch = Counter[str]() if options.operators else None
            print(step(name, route, watch).text(), flush=True)
            for operator, count in watch.most_common() if watch else ():
                print(f"    {operator:<40} {count:12,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
