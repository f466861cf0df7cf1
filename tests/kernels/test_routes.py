"""The routes themselves: what they let pass is right, and what they should find they find."""

import os
import random

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

from tests.kernels.aot import build, source
from tests.kernels.dual import interp, interpreting
from tests.kernels.sanitize import checked, strided

N = 50


@triton.jit
def helper(x):
    return tl.max(x, 0) + tl.sum(tl.softmax(x), 0)


@triton.jit
def calls_helpers(X, Y, n, B: tl.constexpr):
    t = tl.program_id(0) * B + tl.arange(0, B)
    x = tl.load(X + t, mask=t < n, other=0.0)
    tl.store(Y + t, x * 2 + helper(x), mask=t < n)


def expected(x: torch.Tensor, block: int) -> torch.Tensor:
    """What calls_helpers writes."""
    padded = torch.nn.functional.pad(x, (0, -len(x) % block)).reshape(-1, block)
    return (padded * 2 + padded.max(1, keepdim=True).values + 1).reshape(-1)[: len(x)]


def compiled(arch="sm_90"):
    return build(source(calls_helpers, {"X": "*fp32", "Y": "*fp32", "n": "i32"}, {"B": 16}), arch)


def test_one_process_interprets_and_compiles():
    before, language = compiled().ptx, dict(vars(tl))
    x, y = torch.randn(N), torch.full((N,), float("nan"))
    interp(calls_helpers)[(4,)](x, y, N, B=16)

    assert torch.allclose(y, expected(x, 16), atol=1e-5)  # the terms may cancel
    assert compiled().ptx == before
    assert dict(vars(tl)) == language


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_120"])
def test_resources_of_a_compiled_kernel(arch):
    built = compiled(arch)

    assert built.fits
    assert 0 < built.registers < 255
    assert (built.stack, built.wgmma, built.mma) == (0, 0, 0)


def test_launches_are_redirected_only_inside_the_block():
    x, y = torch.randn(N), torch.empty(N)
    with interpreting():
        calls_helpers[(4,)](x, y, N, B=16)
        assert os.environ["TRITON_INTERPRET"] == "1"
        assert isinstance(triton.jit(helper.fn), triton.JITFunction)

    assert torch.allclose(y, expected(x, 16), atol=1e-5)  # the terms may cancel
    assert os.environ.get("TRITON_INTERPRET") != "1"


# ---- the checks


@triton.jit
def copy(X, Y, n, gap, B: tl.constexpr, READ: tl.constexpr, WRITE: tl.constexpr):
    t = tl.program_id(0) * B + tl.arange(0, B)
    x = tl.load(X + t * gap, mask=t < n + READ, other=0.0)
    tl.store(Y + t, x, mask=t < n + WRITE)


def run_copy(gap=1, read=0, write=0):
    x, y = torch.arange(N * gap, dtype=torch.float32)[::gap], torch.full((N,), float("nan"))
    with checked():
        interp(copy)[(4,)](x, y, N, gap, B=16, READ=read, WRITE=write)
    assert torch.equal(x, y)


def test_a_clean_kernel_passes():
    run_copy()
    run_copy(gap=3)


@pytest.mark.parametrize("fault", [{"read": 1}, {"write": 1}])
def test_one_element_too_far_is_found(fault):
    with pytest.raises(InterpreterError, match="out of bounds: 1 of"):
        run_copy(**fault)


def test_reading_between_the_elements_of_a_view_is_found():
    x, y = torch.zeros(2 * N)[::2], torch.zeros(N)
    with checked(), pytest.raises(InterpreterError, match="out of bounds"):
        interp(copy)[(4,)](x, y, N, 1, B=16, READ=0, WRITE=0)


@triton.jit
def touch(X, Y, B: tl.constexpr, HOW: tl.constexpr):
    p = tl.program_id(0)
    t = tl.arange(0, B)
    if HOW == "store twice":
        tl.store(Y + t, 1.0 + 0.0 * t)
    elif HOW == "read a neighbour's":
        tl.store(Y + p * B + t, 1.0 + tl.load(Y + (p * B + t + B) % (2 * B)))
    elif HOW == "atomic":
        tl.atomic_add(Y + t, 1.0 + 0.0 * t)
    elif HOW == "atomic and read":
        tl.atomic_add(Y + t, 1.0 + 0.0 * t)
        tl.store(X + p * B + t, tl.load(Y + t))
    elif HOW == "own":
        tl.store(Y + p * B + t, 1.0 + tl.load(Y + p * B + t))
    elif HOW == "lanes":
        tl.store(Y + p + t // B, 1.0 * t)
    elif HOW == "equal lanes":
        tl.store(Y + p + t // B, 1.0 + 0.0 * t)


RACES = {
    "store twice": "16 addresses stored by more than one program",
    "read a neighbour's": "addresses read by one program and stored by another",
    "atomic and read": "addresses read by one program and updated by another",
    "lanes": "two lanes",
}


@pytest.mark.parametrize("how", [*RACES, "atomic", "own", "equal lanes"])
def test_races(how):
    x, y = torch.zeros(32), torch.zeros(32)
    with checked():
        if how not in RACES:
            interp(touch)[(2,)](x, y, B=16, HOW=how)
            return
        with pytest.raises(Exception, match=RACES[how]):
            interp(touch)[(2,)](x, y, B=16, HOW=how)


@triton.jit
def far(X, Y, row, stride, WIDE: tl.constexpr):
    at = row.to(tl.int64) * stride if WIDE else row * stride
    tl.store(Y, tl.load(X + at))


def test_index_overflow_is_found():
    x, y = torch.empty(1_000_000 * 4096, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8)  # memory never touched
    with checked(), pytest.raises(InterpreterError, match="int32 overflow"):
        interp(far)[(1,)](x, y, 999_999, 4096, WIDE=False)
    with checked():
        interp(far)[(1,)](x, y, 999_999, 4096, WIDE=True)
        with pytest.raises(InterpreterError, match="out of bounds"):
            interp(far)[(1,)](x, y, 1_000_000, 4096, WIDE=True)


@triton.jit
def count_up(Y, B: tl.constexpr):
    p = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.atomic_xchg(Y, p)
    tl.atomic_max(Y + 1 + p, tl.load(Y + 20 + p) + 1)


def test_every_program_runs_once_in_a_shuffled_order():
    last = set()
    for seed in range(8):
        y = torch.zeros(40, dtype=torch.int32)
        with checked(shuffle=seed):
            interp(count_up)[(3, 5)](y, B=1)
        assert y[1:16].eq(1).all()
        last.add(int(y[0]))

    assert len(last) > 2


def test_strided_tensors_hold_their_values_in_any_order():
    rng = random.Random(0)
    for _ in range(20):
        values = torch.randn(2, 3, 5, 4)
        t = strided(rng, (2, 3, 5, 4), torch.float32, values)
        assert torch.equal(t, values)
        assert t.stride(-1) == 1


# ---- bf16


@triton.jit
def arithmetic(X, Y, OUT, D, B: tl.constexpr):
    t = tl.arange(0, B)
    x, y = tl.load(X + t), tl.load(Y + t)
    tl.store(OUT + 0 * B + t, x + y)
    tl.store(OUT + 1 * B + t, x * y)
    tl.store(OUT + 2 * B + t, tl.maximum(x, y))
    tl.store(OUT + 3 * B + t, -x)
    tl.store(OUT + 4 * B + t, tl.where(x < y, x, y))
    tl.store(OUT + 5 * B + t, tl.abs(x))
    tl.store(OUT + 6 * B + t, (x.to(tl.float32) / 3).to(tl.bfloat16))
    tl.store(OUT + 7 * B + t, tl.full([B], 1 / 3, tl.bfloat16))
    tl.store(OUT + 8 * B, tl.sum(x, 0))
    tl.store(OUT + 8 * B + 1, tl.max(x, 0))
    a = tl.load(X + t[:, None] * 0 + t[None, :])
    tl.store(
        D + t[:, None] * B + t[None, :], tl.dot(a, tl.trans(tl.load(D + t[:, None] * B + t[None, :]))).to(tl.bfloat16)
    )


def test_bf16_is_torchs():
    torch.manual_seed(0)
    b = 16
    x, y = torch.randn(b).bfloat16(), torch.randn(b).bfloat16()
    d = torch.randn(b, b).bfloat16()
    out, product = torch.zeros(9 * b).bfloat16(), (x.float().expand(b, b) @ d.float().T).bfloat16()
    interp(arithmetic)[(1,)](x, y, out, d, B=b)
    rows = out.view(9, b)
    third = torch.full((b,), 1 / 3).bfloat16()
    truth = (x + y, x * y, torch.maximum(x, y), -x, torch.minimum(x, y), x.abs(), (x.float() / 3).bfloat16(), third)

    assert all(torch.equal(a, t) for a, t in zip(rows, truth))
    assert torch.equal(rows[8, 0], x.float().sum().bfloat16())
    assert torch.equal(rows[8, 1], x.max())
    assert torch.equal(d, product)


@triton.jit
def cast(X, Y, Z, B: tl.constexpr):
    t = tl.arange(0, B)
    tl.store(Y + t, tl.load(X + t).to(tl.bfloat16))
    tl.store(Z + t, tl.load(Y + t).to(Z.dtype.element_ty))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_casts_to_bf16_round_to_nearest_even(dtype):
    special = torch.tensor(
        [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e30, 3.3e38, 1e-40, 1 + 2**-8, 1 + 3 * 2**-8]
    )
    x = torch.cat([special, torch.randn(246) * 10.0 ** torch.randint(-30, 30, (246,))]).to(dtype)
    y, z = torch.zeros(256).bfloat16(), torch.zeros(256, dtype=dtype)
    interp(cast)[(1,)](x, y, z, B=256)

    def bits(t):
        return np.where(t.isnan(), 0x7FC0, t.view(torch.int16).numpy())

    assert np.array_equal(bits(y), bits(x.bfloat16()))
    assert torch.equal(z.nan_to_num(nan=7.0), x.bfloat16().to(dtype).nan_to_num(nan=7.0))
