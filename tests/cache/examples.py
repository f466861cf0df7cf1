"""Keys and rows to test with."""

import random
from dataclasses import replace

from weft.cache.files import Ops
from weft.cache.key import Device, Key, Soft
from weft.cache.row import Row, Status

H200 = Device("sm_90", "NVIDIA H200", 132, 232448)
H100 = Device("sm_90", "NVIDIA H100 PCIe", 114, 232448)
A100 = Device("sm_80", "NVIDIA A100-SXM4-80GB", 108, 166912)
SOFT = Soft("550.54", "2.13.0", 700, 141 * 10**9)
OTHER_SOFT = replace(SOFT, driver="560.10")
KEY = Key(
    skeleton="attention_forward",
    kernel="0123456789abcdef" * 2,
    device=H200,
    bucket=(("head", 64), ("seq", 4096)),
    dtypes="bf16,bf16,f32",
    layout="bhsd",
    alignment="16",
    codegen="1",
    triton="3.9.0",
    ptxas="13.4",
    policy="eager,cold,randn",
    fp_fusion=True,
)
SPACE = {"BLOCK_M": [16, 32, 64, 128], "BLOCK_N": [16, 32, 64, 128], "num_warps": [4, 8], "num_stages": [2, 3, 4]}
DEFAULT = {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 4, "num_stages": 2}
CONFIGS = [
    {"BLOCK_M": m, "BLOCK_N": n, "num_warps": w, "num_stages": s}
    for m in SPACE["BLOCK_M"]
    for n in SPACE["BLOCK_N"]
    for w in SPACE["num_warps"]
    for s in SPACE["num_stages"]
]


def without_sync() -> Ops:
    """The system's calls, for tests that write much more at once than anybody does."""
    ops = Ops()
    ops.fsync = lambda fd: None
    return ops


def good(config: dict, us: float = 10.0, **more) -> Row:
    return Row.of(config, "ok", times_us=[us, us * 1.01, us * 0.99], **more)


def sample(rng: random.Random) -> Row:
    """A row of any kind."""
    config, status = rng.choice(CONFIGS), rng.choice(list(Status))
    if status is Status.OK:
        return good(config, 1 + rng.random() * 100, regs=rng.randrange(256), shared=rng.randrange(200_000))
    return Row.of(config, status, reason=f"{status.value} for a reason", compile_s=rng.random())
