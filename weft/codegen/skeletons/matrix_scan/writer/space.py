"""What may be tuned of the matrix scan kernel: data, read by the autotuner. See `weft.autotune.space.listed`.

B: rows or columns of a program, where a dim of the states can be divided. side: the longest axis of a tile that is not
divided; area: elements of the largest tile where none is.
"""

from collections.abc import Mapping
from typing import Any

from weft.codegen.skeletons.common.writer.configs import everywhere

MOST = 128
"""The longest axis of a tile that a program holds."""
_MORE = {"num_warps": (1, 2, 4, 8, 16), "num_stages": (1, 2, 3)}
SPACES = {
    "matrix_scan": {
        "kernels": ("matrix_scan",),
        "knobs": {"B": (16, 32, 64, 128), **_MORE},
        "sizes": ("side",),
        "constraints": {
            "threads without an element": "B*side >= 32*num_warps",
            "more than 64 elements of a tile a thread": "B*side <= 64*32*num_warps",
        },
    },
    "matrix_scan_whole": {
        "kernels": ("matrix_scan",),
        "knobs": _MORE,
        "sizes": ("area",),
        "constraints": {
            "threads without an element": "area >= 32*num_warps",
            "more than 64 elements of a tile a thread": "area <= 64*32*num_warps",
        },
    },
}


def default(side: int, area: int) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """arch -> dtype -> configuration; side: 0 where no dim is divided. A small tile a program makes many programs."""
    if side:
        return everywhere({"B": 16, "num_warps": 4 if side >= 64 else 2 if side >= 32 else 1, "num_stages": 1})
    return everywhere({"num_warps": max(1, min(8, area // 256)), "num_stages": 1})
