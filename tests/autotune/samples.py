"""A problem to tune in tests: the product of two matrices, with flaws to plant."""

from contextlib import contextmanager
from pathlib import Path

import torch

from weft.autotune.space.listed import Space
from weft.autotune.space.workload import TuningProblem, Workload
from weft.ir.types import torch_dtype

FOLDER = Path(__file__).parent / "kernels"
BIG = {"m": 4096, "n": 4096, "k": 4096}
TINY = {"m": 64, "n": 64, "k": 32}
ODD = ({"m": 1, "n": 1, "k": 1}, {"m": 37, "n": 19, "k": 33})
CONFIG = {"BM": 32, "BN": 32, "BK": 32, "FLAW": "", "num_warps": 4, "num_stages": 2}

# Tensor cores of Hopper read both operands from shared memory, so every stage is held; older ones hold one less. Of an
# operand with less than four bytes a thread, which no asynchronous copy can take, one stage is held.
_OLDER = "num_stages - 1"
_HOPPER = "where(BM >= 64 and num_warps >= 4, num_stages, num_stages - 1)"


def _shared(stages):
    few = f"where({stages} >= 1, 1, 0)"
    return " + ".join(f"{n}*BK*bytes*where({n}*BK*bytes >= 128*num_warps, {stages}, {few})" for n in ("BM", "BN"))


SHARED = {"sm_80": _shared(_OLDER), "sm_90": _shared(_HOPPER), "sm_120": _shared(_OLDER)}


class MatmulCase:
    """a [m k] @ b [k n]."""

    def __init__(self, kernels, params):
        self.kernels, self.wrapper = kernels, kernels.module(".wrapper")

    def inputs(self, sizes, device, dtype, seed):
        draw, shapes = torch.Generator().manual_seed(seed), (("m", "k"), ("k", "n"))
        if device == "meta":
            return tuple(
                torch.empty([sizes[d] for d in s], dtype=torch_dtype(torch, dtype), device="meta") for s in shapes
            )
        made = (torch.randn([sizes[d] for d in s], generator=draw) for s in shapes)
        return tuple(x.to(torch_dtype(torch, dtype)).to(device) for x in made)

    @contextmanager
    def configured(self, config, target):
        before, self.wrapper.CONFIG = self.wrapper.CONFIG, dict(config)
        try:
            yield
        finally:
            self.wrapper.CONFIG = before

    def run(self, args):
        return (self.wrapper.run(*args),)

    def truth(self, args, sizes):
        a, b = args
        return (a.double() @ b.double(),)


def space(flaws=("",), stages=(1, 2, 3, 4), **more):
    knobs = {"BM": (16, 32, 64, 128, 256), "BN": (16, 32, 64, 128, 256), "BK": (16, 32, 64, 128)}
    knobs |= {"FLAW": flaws, "num_warps": (1, 2, 4, 8), "num_stages": stages} | more
    constraints = {
        "accumulator": "BM*BN <= 32*num_warps*256",
        "threads": "32*num_warps <= threads_limit",
        "idle warps": "BM*BN >= 32*num_warps*2",
    }
    return Space("matmul", knobs, constraints, SHARED, ("bytes",), ("matmul",))


def problem(of=None, target="sm_90", sizes=BIG, dtype="bf16", default=CONFIG):
    workload = Workload(str(FOLDER), "tests.autotune.samples:MatmulCase")
    given = {"bytes": 2 if dtype in ("bf16", "f16") else 4}
    return TuningProblem("matmul", of or space(), workload, target, sizes, ODD, given, dtype, dict(default))
