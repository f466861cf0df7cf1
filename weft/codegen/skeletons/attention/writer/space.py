"""Configurations of the attention kernels: defaults by target, dtype and head dim, and what may be tuned. Data.

BM, BN: queries and keys of a block. LOOPS: 2, full blocks without masks and partial ones with them; 1, all with masks,
which takes fewer registers. SPLIT: dk and dv by a launch each. A head dim over WIDEST has no configuration. See
`weft.autotune.space.listed`; the sizes that formulas name are those of `weft.autotune.space.problems.given`.
"""

from itertools import product
from typing import Any

from weft.targets import ARCHS, KERNEL_DTYPES

WIDEST = 256
SIDES = {"forward": ("forward",), "backward": ("delta", "dkdv", "dq")}
"""Parts of a region's configuration: the kernels that it launches."""
NAMES = ("BM", "BN", "num_warps", "num_stages", "LOOPS", "SPLIT")
KNOBS = {"forward": NAMES[:5], "dkdv": NAMES, "dq": NAMES[:5]}

Rows = dict[int, tuple[Any, ...]]

# Defaults: kernel -> widest head dim -> (BM, BN, num_warps, num_stages[, LOOPS[, SPLIT]]). With Triton 3.9 no registers
# spill there on causal patterns, windows and bands.

SM80: dict[str, Rows] = {
    "forward": {
        64: (128, 128, 8, 3),
        96: (128, 64, 8, 3),
        192: (64, 64, 4, 3),
        256: (64, 64, 8, 2),
    },
    "dkdv": {
        64: (32, 128, 8, 2),
        96: (32, 64, 8, 2, 1),
        128: (32, 64, 8, 2),
        192: (32, 32, 8, 2, 2, True),
        256: (32, 64, 8, 2, 2, True),
    },
    "dq": {64: (128, 64, 8, 3), 96: (128, 32, 8, 2), 128: (64, 64, 8, 2), 192: (32, 64, 4, 2), 256: (64, 32, 8, 2)},
}
SM90: dict[str, Rows] = {
    "forward": {64: (128, 128, 8, 3), 128: (128, 64, 8, 3), 192: (128, 64, 8, 2), 256: (128, 32, 8, 2)},
    "dkdv": {64: (64, 128, 8, 2), 128: (32, 128, 8, 2), 192: (32, 128, 8, 2, 2, True), 256: (32, 128, 8, 2, 1, True)},
    "dq": {64: (128, 64, 8, 3), 128: (128, 64, 8, 2), 192: (64, 32, 8, 2), 256: (128, 32, 8, 2)},
}
SM120: dict[str, Rows] = {
    "forward": {
        64: (128, 64, 8, 3),
        96: (128, 64, 8, 2),
        128: (64, 64, 8, 2),
        192: (32, 32, 4, 2),
        256: (64, 32, 8, 2),
    },
    "dkdv": {
        64: (32, 64, 4, 2),
        96: (32, 64, 8, 2),
        128: (32, 64, 8, 2, 1),
        192: (32, 32, 8, 1, 2, True),
        256: (32, 64, 8, 1, 1, True),
    },
    "dq": {64: (128, 64, 8, 3), 96: (64, 64, 8, 2), 128: (128, 32, 8, 2), 192: (32, 64, 4, 2), 256: (64, 32, 8, 1)},
}
HALF = {"sm_80": SM80, "sm_90": SM90, "sm_100": SM90, "sm_120": SM120}
"""bf16 and f16."""
FLOAT80: dict[str, Rows] = {
    "forward": {128: (32, 32, 8, 2), 256: (16, 16, 4, 2)},
    "dkdv": {64: (32, 32, 4, 2), 96: (32, 32, 8, 2), 128: (16, 32, 8, 2), 192: (16, 32, 4, 2), 256: (16, 32, 8, 2)},
    "dq": {96: (32, 32, 8, 2), 128: (16, 16, 4, 2), 192: (16, 32, 4, 2), 256: (16, 32, 8, 2)},
}
FLOAT90: dict[str, Rows] = {
    "forward": {96: (32, 32, 8, 2), 256: (16, 32, 8, 2)},
    "dkdv": {64: (32, 32, 8, 2), 192: (16, 32, 8, 2), 256: (16, 16, 8, 2)},
    "dq": {96: (32, 32, 8, 2), 256: (16, 32, 8, 2)},
}
SINGLE = {"sm_80": FLOAT80, "sm_90": FLOAT90, "sm_100": FLOAT90, "sm_120": FLOAT90}
"""f32, whose products run on the ordinary units."""
CHAINED = (32, 32, 8, 2)
"""bf16 and f16 on sm_100 where a head dim has several tiles: see `chained-dots-tcgen05` in the table of hazards."""
DRAWN = {"forward": 32, "dq": 32, "dkdv": 16}
"""Scores a thread where weights are dropped: the registers of their bits would spill."""
DELTA = {"BM": 32, "num_warps": 8, "num_stages": 1}


def configurations(
    side: str, dk: int, dv: int, block: int = 0, drops: bool = False
) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """target -> dtype -> kernel -> configuration, of the kernels that a forward or backward launches.

    block: of a static block set, which the kernels' blocks must divide; 0: there is none. drops: whether weights are
    dropped. dk, dv: at most WIDEST."""
    return {
        a: {d: {k: default(k, a, d, dk, dv, block, drops) for k in SIDES[side]} for d in KERNEL_DTYPES} for a in ARCHS
    }


def default(
    kernel: str, target: str, dtype: str, dk: int, dv: int, block: int = 0, drops: bool = False
) -> dict[str, Any]:
    """The configuration of one kernel. ValueError for a head dim over WIDEST."""
    if max(dk, dv) > WIDEST:
        raise ValueError(f"no attention kernel holds a head dim of {max(dk, dv)}: at most {WIDEST}")
    if kernel == "delta":
        return dict(DELTA)
    row = _of((SINGLE if dtype == "f32" else HALF)[target][kernel], max(dk, dv))
    if target == "sm_100" and dtype != "f32" and max(tile_count(dk), tile_count(dv)) > 1:
        row = (*CHAINED, *row[4:])
    found = {"LOOPS": 2, "SPLIT": False, **dict(zip(NAMES, row))}
    while drops and found["BM"] * found["BN"] > DRAWN[kernel] * 32 * found["num_warps"]:
        found["BN" if found["BN"] >= found["BM"] else "BM"] //= 2
    if block:
        most = block & -block
        found |= {"BM": min(found["BM"], most), "BN": min(found["BN"], most)}
    return {name: found[name] for name in KNOBS[kernel]}


def _of(rows: dict[int, Any], width: int) -> Any:
    return next(row for widest, row in rows.items() if width <= widest)


def tile_count(d: int) -> int:
    """Tiles of a head dim, see `tiles`."""
    return (-(-d // 16)).bit_count()


def pairs(block: int = 0) -> list[tuple[int, int]]:
    """All (BM, BN) that a configuration can have. block: as in `configurations`."""
    return [(m, n) for m, n in product(_SIZES, _SIZES) if block % m == block % n == 0]


# What may be tuned

_SIZES = (16, 32, 64, 128)
_KNOBS = {"BM": _SIZES, "BN": _SIZES, "num_warps": (4, 8), "num_stages": (1, 2, 3, 4), "LOOPS": (1, 2)}
_CONSTRAINTS = {
    "blocks that do not divide the pattern's": "block % BM == 0 and block % BN == 0",
    "threads without an element": "BM*BN >= 32*num_warps",
    "more than 128 scores a thread": "BM*BN <= 128*32*num_warps",
}
_ASKED = ("bytes", "dk", "dv", "block", "whole", "narrowest")


def _shared(fixed: str, rows: str) -> dict[str, str]:
    """What a program has in shared memory at least: the tiles it keeps, and one pair of streamed tiles less than there
    are stages; a tile of under four bytes a thread is not streamed, nor are rows cut off unaligned. As compiled with
    Triton 3.6 and 3.9; of other targets nothing is known."""
    stream = f"where({rows}*narrowest*bytes >= 128*num_warps, (num_stages - 1)*{rows}*(dk + dv)*bytes, 0)"
    return dict.fromkeys(("sm_80", "sm_90", "sm_120"), f"{fixed}*bytes + whole*{stream}")


SPACES: dict[str, dict[str, Any]] = {
    "attention_forward": {
        "kernels": ("forward",), "part": "forward", "knobs": _KNOBS, "sizes": _ASKED,
        "constraints": _CONSTRAINTS, "shared": _shared("BM*dk", "BN"),
    },
    "attention_dkdv": {
        "kernels": ("dkdv",), "part": "dkdv", "knobs": _KNOBS | {"SPLIT": (False, True)}, "sizes": _ASKED,
        "constraints": _CONSTRAINTS, "shared": _shared("BN*(dk + dv)", "BM"),
    },
    "attention_dq": {
        "kernels": ("dq",), "part": "dq", "knobs": _KNOBS, "sizes": _ASKED,
        "constraints": _CONSTRAINTS, "shared": _shared("BM*(dk + dv)", "BN"),
    },
    "attention_delta": {
        "kernels": ("delta",), "part": "delta", "sizes": _ASKED,
        "knobs": {"BM": (16, 32, 64, 128, 256), "num_warps": (1, 2, 4, 8), "num_stages": (1,)},
        "constraints": {"more than 128 elements a thread": "BM*dv <= 128*32*num_warps"},
    },
}  # fmt: skip
