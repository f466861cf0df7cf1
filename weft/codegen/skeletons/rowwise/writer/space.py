"""What may be tuned of the rowwise kernels: data, read by the autotuner. See `weft.autotune.space.listed`.

A row of up to LONGEST columns is one tile of at least BLOCK elements; a longer one is walked in chunks of CHUNK.
PROGRAMS: how many programs sum over rows; with them a row is always one tile.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

_KNOBS = {
    "BLOCK": (1024, 2048, 4096, 8192, 16384, 32768),
    "CHUNK": (1024, 2048, 4096, 8192, 16384),
    "LONGEST": (4096, 8192, 16384, 32768, 65536),
    "num_warps": (1, 2, 4, 8, 16, 32),
}
_CONSTRAINTS = {
    "threads without an element": "BLOCK >= 32*num_warps and CHUNK >= 32*num_warps",
    "more than 128 elements a thread": "BLOCK <= 128*32*num_warps and CHUNK <= 128*32*num_warps",
}

SPACES = {
    "rowwise": {"kernels": ("rowwise",), "knobs": _KNOBS, "constraints": _CONSTRAINTS},
    "rowwise_sums": {
        "kernels": ("rowwise",),
        "knobs": _KNOBS | {"CHUNK": (4096,), "LONGEST": (1 << 20,), "PROGRAMS": (66, 132, 264, 528, 1056)},
        "constraints": {
            "threads without an element": "BLOCK >= 32*num_warps",
            "more than 128 elements a thread": "BLOCK <= 128*32*num_warps",
        },
    },
}


def default(columns: Sequence[int | None], sums: bool) -> dict[str, Any]:
    """The configuration by the sizes of a row's dims (None: known at run time): a tile of 1024 to 8192 elements, 16 of
    them a thread; 4 where sums over rows are kept beside them, as the derivatives of norms read up to ten operands."""
    tile = 1 << max(10, min(13, (prod(n or 1024 for n in columns) - 1).bit_length()))
    warps = max(4, min(16, tile // (128 if sums else 512)))
    found = {"BLOCK": tile, "CHUNK": 4096, "LONGEST": 16384, "num_warps": warps}
    return found | ({"PROGRAMS": 264, "LONGEST": 1 << 20} if sums else {})
