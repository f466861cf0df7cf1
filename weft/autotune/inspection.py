"""What the compiler says of every kernel of a planned package, with no GPU: registers, stack, shared memory, occupancy.

    found = inspect(planned, folder, "sm_90")
    found[0].regs, found[0].stack, found[0].shared, found[0].occupancy, found[0].fits

A region's wrapper is run at the plan's sizes on operands without values; the launches that it makes are compiled in
processes that may be killed, equal ones once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.autotune.gates.features import occupancy
from weft.autotune.space.problems import region_dims
from weft.autotune.space.workload import Workload
from weft.autotune.types import Status
from weft.autotune.workers.compile_pool import Built, CompilePool
from weft.autotune.workers.launches import KernelLaunch
from weft.autotune.workers.process import Worker
from weft.ir.text import show
from weft.progress import doing
from weft.targets import CHIPS, LIMITS

if TYPE_CHECKING:
    from weft.codegen.plan.planner import Planned
    from weft.codegen.skeletons.common.writer.regions import RegionFile

HOST = "weft.autotune.workers.host"
Watch = Callable[[int, int], object]
"""Told how many launches are compiled, of how many; about once a second."""
_RECORD_SECONDS, _BEAT_SECONDS = 60.0, 1.0


@dataclass(frozen=True)
class Recorded:
    """A launch of a region's wrapper; None with the reason where the wrapper could not be run."""

    kernel: str
    skeleton: str
    launch: KernelLaunch | None
    reason: str = ""


@dataclass(frozen=True)
class Inspected:
    """One launch as it is compiled for a target.

    kernel: the region's file; function: "rowwise.rowwise". reason: why it did not compile, "" where it did. grid:
    programs along each axis. warps: a program's, after specialisation; regs, stack: registers and bytes a thread;
    shared: bytes a program. occupancy: programs that a multiprocessor holds. dots: matrix products in the kernel;
    wgmma, mma: the instructions that they became, of Hopper's kind and of the others.
    """

    kernel: str
    skeleton: str
    function: str
    target: str
    dtype: str
    reason: str = ""
    grid: tuple[int, ...] = ()
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    warps: int = 0
    regs: int = 0
    stack: int = 0
    shared: int = 0
    occupancy: int = 0
    dots: int = 0
    wgmma: int = 0
    mma: int = 0
    cpu_s: float = 0.0

    @property
    def fits(self) -> bool:
        """Whether the target can launch it."""
        return not self.reason and self.shared <= LIMITS[self.target]["shared_limit"] and self.occupancy > 0

    def data(self) -> dict[str, Any]:
        """As JSON data. busy: the share of a multiprocessor's warps that its programs are."""
        shown = ("kernel", "skeleton", "function", "target", "dtype", "reason")
        out: dict[str, Any] = {n: getattr(self, n) for n in shown} | {"fits": self.fits}
        if not self.reason:
            numbers = ("grid", "warps", "regs", "stack", "shared", "occupancy", "dots", "wgmma", "mma")
            out |= {n: getattr(self, n) for n in numbers} | {"threads": 32 * self.warps, "grid": list(self.grid)}
            out["busy"] = round(self.occupancy * self.warps / CHIPS[self.target].warps, 4)
        return out


def inspect(
    planned: Planned, folder: str | Path, target: str, dtype: str = "bf16", workers: int = 0, watch: Watch | None = None
) -> list[Inspected]:
    """Every distinct launch of the package in `folder`, compiled for a target of `weft.targets.LIMITS`.

    dtype: of floats, where the package's are all f32. workers: compilers at once, default one a processor. Nothing is
    raised for a kernel that does not compile: `reason` says why."""
    found = record(planned, folder, target, dtype)
    with CompilePool(Path(folder) / "kernels", workers or os.cpu_count()) as compilers:
        return compiled(found, compilers, target, dtype, watch)


def record(planned: Planned, folder: str | Path, target: str, dtype: str = "bf16") -> list[Recorded]:
    """The launches of every region's kernels at the plan's sizes, equal ones of a kernel once."""
    out: list[Recorded] = []
    with Worker(HOST, nice=5) as host:
        for region in planned.kernels.regions:
            out += _region(host, planned, region, Path(folder) / "kernels", target, dtype)
    return out


def _region(
    host: Worker, planned: Planned, region: RegionFile, kernels: Path, target: str, dtype: str
) -> list[Recorded]:
    params = {"kernel": region.kernel, "graph": show(region.graph), "wide": sorted(region.wide)}
    workload = Workload(str(kernels), params=params)
    sizes = {d: planned.sizes[d] for d in region_dims(region.graph)}
    job = {"op": "launches", "workload": workload.data(), "target": target, "sizes": sizes, "dtype": dtype}
    answer = host.ask(job | {"configs": [{}]}, _RECORD_SECONDS)
    data = answer.data or {}
    found = data if answer.data is None or answer.raised else data["found"][0]
    if "launches" not in found:
        reason = answer.reason or f"{found.get('raised')}: {found.get('message', '')}"
        return [Recorded(region.kernel, region.skeleton, None, f"the wrapper cannot be run: {reason}")]
    launches = {launch.key(): launch for launch in map(KernelLaunch.parse, found["launches"])}
    return [Recorded(region.kernel, region.skeleton, launch) for launch in launches.values()]


def compiled(
    found: Sequence[Recorded], compilers: CompilePool, target: str, dtype: str = "bf16", watch: Watch | None = None
) -> list[Inspected]:
    """The launches through the compilers, in order. watch: see `Watch`."""
    futures = [compilers.compile(r.launch, target) if r.launch else None for r in found]
    waiting: set[Future[Built]] = {f for f in futures if f}
    total = len(waiting)
    while waiting:
        if watch:
            watch(total - len(waiting), total)
        _, waiting = wait(waiting, _BEAT_SECONDS)
    if watch:
        watch(total, total)
    return [_inspected(r, f.result() if f else None, target, dtype) for r, f in zip(found, futures, strict=True)]


def _inspected(one: Recorded, built: Built | None, target: str, dtype: str) -> Inspected:
    launch = one.launch
    if launch is None or built is None:
        return Inspected(one.kernel, one.skeleton, "", target, dtype, one.reason)
    about = (one.kernel, one.skeleton, launch.name, target, dtype)
    if built.status is not Status.OK:
        reason = f"{built.reason}: {built.detail}" if built.detail else built.reason
        return Inspected(*about, reason, launch.grid, launch.options, cpu_s=built.cpu_s)
    warps, regs, shared = built.warps or 4, built.regs or 0, built.shared or 0
    return Inspected(
        *about, "", launch.grid, launch.options, warps, regs, built.stack or 0, shared,
        occupancy(regs, shared, warps, target), built.dots, built.wgmma, built.mma, built.cpu_s,
    )  # fmt: skip


def beat(done: int, total: int) -> None:
    """Tell the person who waits how far the compilers are."""
    doing("compiling kernels", done, total)
