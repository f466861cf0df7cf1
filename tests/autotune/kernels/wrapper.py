"""The launch of `gemm`. `config` is what a package would read from its configs.json."""

import torch
import triton
import triton.language as tl

from . import gemm

CONFIG: dict = {}


def run(a, b):
    """a [m k], b [k n] -> c [m n]"""
    config = CONFIG
    if config["BM"] == 256 and config["BN"] == 16:
        raise ValueError("no such tile")
    (m, k), n = a.shape, b.shape[1]
    c = a.new_empty((m, n))
    grid = (triton.cdiv(m, config["BM"]), triton.cdiv(n, config["BN"]))
    gemm.matmul[grid](
        a, b, c, m, n, k, *a.stride(), *b.stride(), *c.stride(), BM=config["BM"], BN=config["BN"], BK=config["BK"],
        ACC=tl.float64 if a.dtype == torch.float64 else tl.float32, FLAW=config.get("FLAW", ""),
        num_warps=config["num_warps"], num_stages=config["num_stages"], enable_fp_fusion=True,
    )  # fmt: skip
    return c
