"""What may be tuned of the scan kernels: data, read by the autotuner. See `weft.autotune.space.listed`.

B: lanes of a program. U: steps to a chunk; AHEAD: whether a chunk is loaded while the one before it is worked on, for
which the registers of two chunks are needed. EVERY: steps between kept states, of a forward and its backward alike: the
backward holds the states of so many steps in registers, and 16 of them spill.
"""

_KNOBS = {"B": (32, 64, 128, 256, 512), "AHEAD": (False, True), "num_warps": (1, 2, 4, 8)}
_CONSTRAINTS = {
    "threads without a lane": "B >= 32*num_warps",
    "more than 4 lanes a thread": "B <= 4*32*num_warps",
}

SPACES = {
    "scan": {
        "kernels": ("scan",),
        "knobs": _KNOBS | {"U": (1, 2, 4, 8, 16, 32)},
        "constraints": _CONSTRAINTS | {"more than 32 steps of lanes a thread": "B*U <= 32*32*num_warps"},
    },
    "scan_backward": {
        "kernels": ("scan_backward",),
        "knobs": _KNOBS | {"EVERY": (1, 2, 4, 8)},
        "constraints": _CONSTRAINTS | {"more than 8 steps of lanes a thread": "B*EVERY <= 8*32*num_warps"},
    },
}

DEFAULTS = {
    "scan": {"B": 64, "U": 4, "AHEAD": True, "num_warps": 2},
    "scan_backward": {"B": 64, "EVERY": 8, "AHEAD": True, "num_warps": 2},
}
"""One lane a thread. Nothing spills there on sm_90: eight steps of a cell with four inputs and five sums fit."""
