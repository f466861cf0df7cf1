"""Shipped specs as emitted packages on this machine, and each of their regions as something that can be run."""

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from benchmarks.gpu.programs import program
from weft.autotune.space.problems import checks, workload
from weft.autotune.workers.cases import RegionCase
from weft.autotune.workers.launches import KernelFolder
from weft.codegen.build import files_of, temporary
from weft.codegen.plan.planner import Planned, plan
from weft.codegen.skeletons.common.writer.regions import RegionFile
from weft.ir.types import FLOATS
from weft.passes.fusion.price import Prices
from weft.targets import find

TARGET = "sm_90"  # whose prices choose what is fused; configurations are those of the GPU that is there


@dataclass(frozen=True, eq=False)
class Package:
    """A shipped spec, planned and emitted. folder: of the package."""

    name: str
    planned: Planned
    folder: Path

    @property
    def regions(self) -> tuple[RegionFile, ...]:
        return self.planned.kernels.regions

    @cached_property
    def kernels(self) -> KernelFolder:
        return KernelFolder(self.folder / "kernels")

    def case(self, region: RegionFile) -> RegionCase:
        """The wrapper of a region's kernels, with operands and truth."""
        return RegionCase(self.kernels, workload(region, self.folder / "kernels").params)

    def half(self, region: RegionFile) -> str:
        """ "forward" or "backward", where the region stands first."""
        row = next(r for r in self.planned.kernels.rows if region.kernel in r.kernel.split(" + "))
        return row.half.split(",")[0]

    def checks(self, region: RegionFile) -> tuple[dict[str, int], ...]:
        """Odd sizes at which results are compared."""
        return checks(self.planned.program, region.graph, self.planned.sizes)

    def sizes(self, **runtime: int) -> dict[str, int]:
        """Of every dim, run-time ones as near to those given as the spec allows."""
        limits = self.planned.program.runtime
        return self.planned.program.resolve(**{d: limits[d].near(n) for d, n in runtime.items() if d in limits})

    def prices(self, sizes: dict[str, int]) -> Prices:
        return Prices(sizes, find(TARGET), sizes)


@cache
def package(name: str, size: str = "published", longest: int = 0) -> Package:
    """Plan and emit a shipped spec. longest: of its sequence, for which layouts are chosen."""
    made = program(name, size, longest)
    runtime = {d: r.max if d != "batch" else r.near(1) for d, r in made.runtime.items()}
    planned = plan(made, made.resolve(**runtime), find(TARGET))
    return Package(name, planned, temporary(files_of(planned)))


def traffic(region: RegionFile, prices: Prices) -> int:
    """Bytes of a region's operands and results: what it must at least move."""
    return sum(map(prices.size, {*region.graph.inputs, *region.graph.outputs}))


def work(region: RegionFile, prices: Prices) -> int:
    """Floating-point operations of a region; of an attention, those its layout touches."""
    return sum(prices.flops(n) for n in region.graph.nodes)


def narrow(region: RegionFile) -> bool:
    """Are the region's floats all of one dtype, so that it runs in any?"""
    return len({v.dtype for v in region.graph.inputs if v.dtype in FLOATS}) <= 1


def description(region: RegionFile) -> list[str]:
    """Names of the ops in a region."""
    return [type(n.op).__name__ for n in region.graph.nodes]


Row = dict[str, Any]
