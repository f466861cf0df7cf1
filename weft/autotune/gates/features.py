"""What the compiler knows of a configuration, as numbers: for the sampler's model, for the first guesses, for people.

    facts(launches, builts, "sm_90") -> {"shared": 65536, "regs": 168, "occupancy": 2, "waves": 1.94, ...}
    estimate(facts, roofline_us) -> microseconds, by a cost model nobody has fitted: only good for an order

Numbers of the chips are the vendor's; see `weft.targets`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from weft.autotune.workers.compile_pool import Built
from weft.autotune.workers.launches import KernelLaunch
from weft.targets import CHIPS, RESERVED, find

_SHARED_AT_ONCE = 128  # bytes
_REGISTERS_AT_ONCE = 256  # a warp's registers are handed out in such units, from those of its quarter
_QUARTERS = 4

Facts = dict[str, float]


def occupancy(regs: int, shared: int, warps: int, target: str) -> int:
    """Blocks that a multiprocessor holds at once; 0: a block cannot be launched. As cuda_occupancy.h counts them."""
    part = CHIPS[target]
    warp = -(-max(regs, 1) * 32 // _REGISTERS_AT_ONCE) * _REGISTERS_AT_ONCE
    by_registers = _QUARTERS * (part.registers // _QUARTERS // warp) // warps
    by_shared = part.shared // (-(-(shared + RESERVED) // _SHARED_AT_ONCE) * _SHARED_AT_ONCE)
    return min(by_registers, by_shared, part.warps // warps, part.blocks)


def facts(launches: Sequence[KernelLaunch], builts: Sequence[Built], target: str, sms: int = 0) -> Facts:
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
        width = sms or CHIPS[target].sms
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
    machine = find(target)
    rates = machine.matrix if matrix else machine.vector
    return 1e6 * max(nbytes / machine.bandwidth, flops / rates.get(dtype, rates["f32"]))
