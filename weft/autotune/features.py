"""What the compiler knows of a configuration, as numbers: for the sampler's model, for the first guesses, for people.

    facts(launches, builts, "sm_90") -> {"shared": 65536, "regs": 168, "occupancy": 2, "waves": 1.94, ...}
    estimate(facts, roofline_us) -> microseconds, by a cost model nobody has fitted: only good for an order

Numbers of the parts are the vendor's; see `Part`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weft.autotune.compile_pool import Built
from weft.autotune.launches import Launch


@dataclass(frozen=True)
class Part:
    """One multiprocessor, and how many there are: bytes of shared memory, 1 KiB of a block's is the system's; warps;
    blocks; registers of 32 bits."""

    sms: int
    shared: int
    warps: int
    blocks: int
    registers: int = 65_536


PARTS: Mapping[str, Part] = {
    "sm_80": Part(108, 167_936, 64, 32),
    "sm_86": Part(84, 102_400, 48, 16),
    "sm_89": Part(128, 102_400, 48, 24),
    "sm_90": Part(132, 233_472, 64, 32),
    "sm_100": Part(148, 233_472, 64, 32),
    "sm_120": Part(170, 102_400, 48, 24),
}
"""CUDA C++ Programming Guide, table of technical specifications; sms of the parts in `weft.passes.targets`."""
_RESERVED = 1024
_SHARED_AT_ONCE = 128  # bytes
_REGISTERS_AT_ONCE = 256  # a warp's registers are handed out in such units, from those of its quarter
_QUARTERS = 4

Facts = dict[str, float]


def occupancy(regs: int, shared: int, warps: int, target: str) -> int:
    """Blocks that a multiprocessor holds at once; 0: a block cannot be launched. As cuda_occupancy.h counts them."""
    part = PARTS[target]
    warp = -(-max(regs, 1) * 32 // _REGISTERS_AT_ONCE) * _REGISTERS_AT_ONCE
    by_registers = _QUARTERS * (part.registers // _QUARTERS // warp) // warps
    by_shared = part.shared // (-(-(shared + _RESERVED) // _SHARED_AT_ONCE) * _SHARED_AT_ONCE)
    return min(by_registers, by_shared, part.warps // warps, part.blocks)


def facts(launches: Sequence[Launch], builts: Sequence[Built], target: str, sms: int = 0) -> Facts:
    """Of all launches of a configuration: the largest use of each resource, programs in all, waves of the slowest.

    What no gate has found out is left out. sms: of the GPU at hand, default the part's."""
    out: Facts = {"launches": len(launches), "programs": sum(math.prod(f.grid) for f in launches)}
    out |= {
        k: _largest(builts, k) for k in ("shared", "regs", "stack") if any(getattr(b, k) is not None for b in builts)
    }
    asked = [int(f.options.get("num_warps", 4)) for f in launches]
    out["warps"] = max([b.warps or w for b, w in zip(builts, asked)] or asked, default=0)
    if any(b.regs is not None for b in builts):
        out |= {"wgmma": sum(b.wgmma for b in builts), "mma": sum(b.mma for b in builts)}
        each = [
            (math.prod(f.grid), occupancy(b.regs or 1, b.shared or 0, b.warps or 4, target))
            for f, b in zip(launches, builts)
        ]
        out["occupancy"] = min((o for _, o in each), default=0)
        width = sms or PARTS[target].sms
        out["waves"] = max((n / (width * o) for n, o in each if o), default=0.0)
    return out


def _largest(builts: Sequence[Built], name: str) -> float:
    return max((getattr(b, name) or 0) for b in builts)


def estimate(found: Mapping[str, float], roofline_us: float = 1.0) -> float:
    """Microseconds, were the roofline reached by full waves of unspilled programs with eight warps to hide latency."""
    waves = found.get("waves") or 1.0
    tail = math.ceil(waves) / waves
    busy = min(1.0, 0.25 + 0.75 * found.get("occupancy", 1.0) * found.get("warps", 4.0) / 8)
    spill = 1.0 + found.get("stack", 0.0) / 512
    return roofline_us * tail * spill / busy


def roofline_us(nbytes: float, flops: float, target: str, dtype: str, matrix: bool) -> float:
    """The least microseconds a kernel can take: bytes over bandwidth or FLOPs over rate, at the vendor's peaks."""
    from weft.passes.targets import find

    machine = find(target)
    rates = machine.matrix if matrix else machine.vector
    return 1e6 * max(nbytes / machine.bandwidth, flops / rates.get(dtype, rates["f32"]))
