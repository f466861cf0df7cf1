"""What may be tuned of the matmul kernel, and where it starts: data, read by the autotuner and by emission.

BM x BN: a program's tile; BK: what a step sums; GROUP: blocks of rows that share columns in L2. Shared memory holds a
tile of each factor at least; with aligned operands one for each stage in flight, which the compiler is asked.
See `weft.autotune.space.listed`.
"""

from typing import Any

from weft.targets import ARCHS

VENDOR = 0.92
"""The rate of a tuned Triton product over cuBLAS's, bf16 on an H100: 0.90 to 0.97 was reached (persistent and pipelined
kernels of Triton's tutorials, 8192 x 8192 x 512 to 16384: 540 to 670 of 588 to 665 TFLOP/s). Not measured here."""
NAMES = ("BM", "BN", "BK", "GROUP", "num_warps", "num_stages")

# Defaults for few, some and many tiles of results held at once: see `default`. With Triton 3.9 no registers spill there
# on sm_90 in the products of the shipped specs.
FEW, SOME = 3, 9
Row = tuple[int, ...]
HALF: dict[str, tuple[Row, Row, Row]] = {
    "sm_80": ((128, 128, 32, 8, 8, 3), (128, 64, 32, 8, 8, 3), (64, 64, 32, 8, 8, 3)),
    "sm_90": ((128, 128, 64, 8, 8, 3), (128, 64, 64, 8, 8, 3), (64, 64, 64, 8, 8, 3)),
    "sm_100": ((128, 128, 64, 8, 8, 3), (128, 64, 64, 8, 8, 3), (64, 64, 64, 8, 8, 3)),
    "sm_120": ((128, 128, 32, 8, 8, 3), (64, 64, 32, 8, 8, 3), (64, 64, 32, 8, 8, 3)),
}
SINGLE = (64, 64, 16, 8, 8, 2)
"""f32, whose products run on the ordinary units."""

KNOBS: dict[str, tuple[int, ...]] = {
    "BM": (16, 32, 64, 128, 256),
    "BN": (16, 32, 64, 128, 256),
    "BK": (16, 32, 64, 128),
    "GROUP": (1, 4, 8, 16),
    "num_warps": (2, 4, 8, 16),
    "num_stages": (2, 3, 4, 5),
}
CONSTRAINTS = {
    "threads without an element": "BM*BN >= 32*num_warps",
    "more than 128 results a thread": "BM*BN <= 128*32*num_warps",
    "a step of more than 64 elements a thread": "BK*(BM + BN) <= 2*64*32*num_warps",
}
SHARED = dict.fromkeys(ARCHS, "bytes*BK*(BM + BN)")
SPACES = {
    "matmul": {
        "kernels": ("matmul",),
        "knobs": KNOBS,
        "sizes": ("bytes",),
        "constraints": CONSTRAINTS,
        "shared": SHARED,
    }
}


def default(tiles: int) -> dict[str, dict[str, dict[str, Any]]]:
    """arch -> dtype -> configuration of a program that holds so many tiles of results at once: products, operands of
    their places, what it stores. Many share the registers of a narrower one."""
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for arch in ARCHS:
        half: dict[str, Any] = dict(zip(NAMES, HALF[arch][(tiles > FEW) + (tiles > SOME)], strict=True))
        out[arch] = {"bf16": half, "f16": dict(half), "f32": dict(zip(NAMES, SINGLE, strict=True))}
    return out
