"""Configurations of the attention kernels of a region, from the skeleton's defaults."""

from typing import Any

ARCHS = ("sm_80", "sm_90", "sm_100", "sm_120")
DTYPES = ("bf16", "f16", "f32")


def configurations(side: str, dk: int, dv: int, block: int = 0) -> dict[str, dict[str, dict[str, Any]]]:
    """arch -> dtype -> configuration of the kernels that a forward or backward launches.

    block: of a static block set, which the kernels' blocks must divide; 0: there is none."""
    return {a: {d: _one(side, max(dk, dv), a, d, block) for d in DTYPES} for a in ARCHS}


def _one(side: str, width: int, arch: str, dtype: str, block: int) -> dict[str, Any]:
    wide = width > 64 or dtype == "f32"
    kernels = {"forward": (64, 64)} if side == "forward" else {"delta": (64, 64), "dkdv": (32, 32), "dq": (32, 32)}
    found: dict[str, Any] = {}
    for k, (bm, bn) in kernels.items():
        bm, bn = (max(16, x // 2) if wide else x for x in (bm, bn))
        bm, bn = (min(x, block & -block) if block else x for x in (bm, bn))
        found[k] = {"BM": bm, "BN": bn, "num_warps": 4, "num_stages": 2}
    return found
