"""What may be tuned of the cross-entropy kernels, and where it starts: data, read by the autotuner and by emission.

BM x BN: a program's tile; a program walks its rows BN columns at a time.
"""

LONG = 16384
"""Longest row that the rowwise kernel holds in one tile by default, and so reads once."""
DEFAULT = {"BM": 1, "BN": 4096, "num_warps": 8}
SPACES = {
    "cross_entropy": {
        "kernels": ("forward", "backward"),
        "knobs": {
            "BM": (1, 2, 4),
            "BN": (512, 1024, 2048, 4096, 8192, 16384, 32768),
            "num_warps": (2, 4, 8, 16, 32),
        },
        "constraints": {
            "threads without an element": "BM*BN >= 32*num_warps",
            "more than 64 elements a thread": "BM*BN <= 64*32*num_warps",
        },
    }
}
