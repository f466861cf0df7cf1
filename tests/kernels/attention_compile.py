"""Compiling the attention kernels: types and constants of a launch, from a walk, a configuration and holes."""

from typing import Any

import triton
import triton.language as tl

import weft.codegen.skeletons.attention.backward as backward
import weft.codegen.skeletons.attention.forward as forward
import weft.codegen.skeletons.attention.pieces as pieces
from tests.kernels.aot import Built, build, source
from tests.kernels.attention_holes import keep_causal
from weft.autotune.workers.staging import shared
from weft.codegen.skeletons.attention.tiles import tiles
from weft.codegen.skeletons.attention.writer.plan import PartWalk, walk
from weft.ir.pattern import Pattern

KERNELS = {"forward": forward.forward, "delta": backward.delta, "dkdv": backward.dkdv, "dq": backward.dq}
STRIDES = ("i32",) * 3
NONE = "keep score dscore drop sink epilogue vjp CUQ CUK TAB X OLD OLDK OLDV OLDQ DLSE Y DG"
PLAIN: dict[str, Any] = dict.fromkeys(NONE.split()) | {
    "G": 1, "HEADS": (0, 1, 8), "KEY_HEADS": 8, "CLASSES": 1, "Q_AT": (1, 1, 0), "K_AT": (1, 1, 0), "REVERSE": True,
    "MULTI": False, "SOFTMAX": True, "PACKED": False, "WANT_K": True, "WANT_V": True, "IDX": tl.int32,
    "ACC": tl.float32, "PREC": "tf32",
}  # fmt: skip
NAMES = {"bf16": "*bf16", "f16": "*fp16", "f32": "*fp32"}


@triton.jit
def keep_window(q, k, b, h, X):  # pyright: ignore[reportMissingParameterType]
    return (k <= q) & (q - k < 1000)


PATTERNS = {
    "causal": ("causal", keep_causal), "window": ("window(1000)", keep_window), "dense": ("all", None),
    "band": ("band(500, 500)", keep_window),
}  # fmt: skip


def types(kernel: Any, dtype: str) -> dict[str, Any]:
    """The types of a launch's arguments: int32 strides and lengths, fp32 lse and delta."""
    out: dict[str, Any] = {}
    for name in kernel.arg_names:
        if name in ("NQ", "NK"):
            out[name] = "i32"
        elif name in ("sy", "sdy", "sdg"):
            out[name] = (STRIDES,)
        elif name in ("Y", "DY", "DG"):
            out[name] = (NAMES[dtype],)
        elif name[0] == "s":
            out[name] = STRIDES
        elif name in ("CUQ", "CUK"):
            out[name] = "*i32"
        else:
            out[name] = "*fp32" if name in ("LSE", "DELTA", "DLSE") else NAMES[dtype]
    return out


def walking(name: str, pattern: str, config: dict[str, Any]) -> dict[str, Any]:
    """Constants of a kernel's walk of a named pattern of 65,536 tokens."""
    text, keep = PATTERNS[pattern]
    w: PartWalk = walk(
        Pattern.parse(text), 1 << 16, 1 << 16, config["BM"], config["BN"], name == "dkdv", loops=config.get("LOOPS", 2)
    )
    block = None if w.block is None else getattr(pieces, w.block)
    plan = pieces.flat(*w.plan) if w.pieces == "plan_pieces" else w.plan
    return {"pieces": getattr(pieces, w.pieces), "block": block, "SLOTS": w.slots, "PLAN": plan, "keep": keep}


def sources(
    name: str,
    config: dict[str, Any],
    dim: int,
    dtype: str,
    pattern: str,
    given: dict[str, Any],
    constants: dict[str, Any],
) -> list[Any]:
    """A kernel in one of its configurations, twice where dk and dv are split. `given`: types of more arguments."""
    kernel, constants = KERNELS[name], PLAIN | (walking(name, pattern, config) if name != "delta" else {}) | constants
    constants |= {"scale": dim**-0.5, "DK": tiles(dim), "DV": tiles(dim), "BM": config["BM"], "BN": config.get("BN")}
    constants["HEADS"] = {"dkdv": None, "delta": 8}.get(name, PLAIN["HEADS"])
    out = []
    for want in ((True, False), (False, True)) if config.get("SPLIT") else ((True, True),):
        constants |= {"WANT_K": want[0], "WANT_V": want[1]} if config.get("SPLIT") else {}
        known = {k: v for k, v in constants.items() if k in kernel.arg_names and k not in given}
        out.append(source(kernel, types(kernel, dtype) | given, known))
    return out


def compiled(
    name: str,
    config: dict[str, Any],
    arch: str,
    dim: int,
    dtype: str = "bf16",
    pattern: str = "causal",
    given: dict[str, Any] | None = None,
    **constants: Any,
) -> list[Built]:
    """What `sources` gives, compiled."""
    made = sources(name, config, dim, dtype, pattern, given or {}, constants)
    return [build(text, arch, config["num_warps"], config["num_stages"]) for text in made]


def staged(name: str, config: dict[str, Any], arch: str, dim: int, dtype: str, pattern: str) -> int:
    """Bytes of shared memory, without compiling to the end."""
    options = {"num_warps": config["num_warps"], "num_stages": config["num_stages"], "enable_fp_fusion": True}
    made = sources(name, config, dim, dtype, pattern, {}, {"PREC": "ieee"})
    return max(shared(text, arch, options) or 0 for text in made)
