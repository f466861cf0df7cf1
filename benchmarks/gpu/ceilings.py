"""What this GPU reaches: bytes a second of a copy, operations a second of a large product; random data."""

import torch

from benchmarks.gpu.race import race
from benchmarks.gpu.stage import Stage

BYTES, SIDE = 4 << 30, 8192
REHEARSED = 1 << 20, 64


def run(stage: Stage) -> None:
    nbytes, side = REHEARSED if stage.rehearsal else (BYTES, SIDE)
    x = torch.randn(nbytes // 4, device=stage.device)
    y = torch.empty_like(x)
    us = race({"copy": lambda: y.copy_(x)}, stage.device, 5)["copy"].us
    stage.row("copy", bytes_per_second=2 * nbytes / us * 1e6, us=us, bytes=2 * nbytes)
    for dtype in (torch.bfloat16, torch.float16):
        a, b = (torch.randn(side, side, device=stage.device, dtype=dtype) for _ in range(2))
        us = race({"product": lambda a=a, b=b: a @ b}, stage.device, 5)["product"].us
        stage.row(f"product {str(dtype)[6:]}", flops_per_second=2 * side**3 / us * 1e6, us=us, side=side)
