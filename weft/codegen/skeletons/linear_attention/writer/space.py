"""What may be tuned of the linear attention kernels: data, read by the autotuner. See `weft.autotune.space.listed`.

BK: keys of a tile. places: of a chunk, up to a power of 2. tiles: how many [places, BK] a program holds at once, in
registers: of the backward two for each level of doubling.
"""

from collections.abc import Mapping
from typing import Any

from weft.codegen.skeletons.common.writer.configs import everywhere

MOST = 128
"""Places of the longest chunk that a program holds: its matrix between places is 128 registers of 128 threads."""
FORWARD, BACKWARD = 8, 12
"""Tiles of a program, of the backward besides those of its levels."""

SPACES = {
    "decayed_product": {
        "kernels": ("decayed_product", "decayed_product_backward"),
        "knobs": {"BK": (16, 32, 64, 128), "num_warps": (1, 2, 4, 8, 16)},
        "sizes": ("places", "tiles"),
        "constraints": {
            "threads without an element": "places*BK >= 32*num_warps",
            "more than 64 pairs of places a thread": "places*places <= 64*32*num_warps",
            "more than 224 elements of tiles a thread": "places*BK*tiles <= 224*32*num_warps",
        },
    },
    "unit_inverse": {
        "kernels": ("unit_inverse",),
        "knobs": {"num_warps": (1, 2, 4, 8, 16)},
        "sizes": ("places",),
        "constraints": {
            "threads without an element": "places*places >= 32*num_warps",
            "more than 64 pairs of places a thread": "places*places <= 64*32*num_warps",
        },
    },
}


def held(levels: int, backward: bool) -> int:
    """How many tiles a program holds at once."""
    return BACKWARD + 2 * levels if backward else FORWARD


def default(keyed: bool) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """arch -> dtype -> configuration. keyed: does it walk keys? With Triton 3.9 nothing spills on sm_90 in chunks of 64
    places, in bf16 or f32."""
    return everywhere({"BK": 16, "num_warps": 8} if keyed else {"num_warps": 8})
