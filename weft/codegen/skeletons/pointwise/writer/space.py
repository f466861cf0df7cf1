"""What may be tuned of the pointwise kernels: data, read by the autotuner. See `weft.autotune.space.listed`.

BLOCK, or BM x BN: elements of a program's tile. SLABS: programs along the rows of a sum.
"""

MAPS = {"BLOCK": 1024, "num_warps": 4}
SUMS = {"BM": 32, "BN": 64, "SLABS": 128, "num_warps": 4}
SPACES = {
    "pointwise": {
        "kernels": ("pointwise",),
        "knobs": {"BLOCK": (256, 512, 1024, 2048, 4096, 8192, 16384), "num_warps": (1, 2, 4, 8, 16)},
        "constraints": {
            "threads without an element": "BLOCK >= 32*num_warps",
            "more than 64 elements a thread": "BLOCK <= 64*32*num_warps",
        },
    },
    "reduce_rows": {
        "kernels": ("reduce_rows",),
        "knobs": {
            "BM": (4, 8, 16, 32, 64, 128),
            "BN": (16, 32, 64, 128, 256),
            "SLABS": (32, 64, 128, 256, 512),
            "num_warps": (1, 2, 4, 8, 16),
        },
        "constraints": {
            "threads without an element": "BM*BN >= 32*num_warps",
            "more than 64 elements a thread": "BM*BN <= 64*32*num_warps",
        },
    },
}
