"""What may be tuned of the matmul kernel, and where it starts: data, read by the autotuner and by emission.

BM x BN: a program's tile; BK: columns of the left factor a step; GROUP: blocks of rows that share columns in L2. Shared
memory holds the factors' tiles of each stage in flight, which a formula over knobs alone bounds from below.
"""

from typing import Any

ARCHS = ("sm_80", "sm_90", "sm_100", "sm_120")
_HALF: dict[str, tuple[int, ...]] = {
    "sm_80": (128, 128, 32, 8, 8, 3),
    "sm_90": (128, 128, 64, 8, 8, 3),
    "sm_100": (128, 128, 64, 8, 8, 3),
    "sm_120": (128, 128, 32, 8, 8, 3),
}
_SINGLE: dict[str, tuple[int, ...]] = dict.fromkeys(ARCHS, (64, 64, 16, 8, 8, 2))
_NAMES = ("BM", "BN", "BK", "GROUP", "num_warps", "num_stages")


def default(cores: int) -> dict[str, dict[str, dict[str, Any]]]:
    """arch -> dtype -> configuration; several products have narrower tiles, as their accumulators share registers."""
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for arch in ARCHS:
        half, single = (dict(zip(_NAMES, table[arch], strict=True)) for table in (_HALF, _SINGLE))
        half["BN"] //= 1 if cores == 1 else 2
        out[arch] = {"bf16": half, "f16": dict(half), "f32": single}
    return out
