"""Formulas as Triton functions: every function of the language in fp64 and fp32, interpreted; and compiled."""

import importlib.util
import itertools
import re
import warnings
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from tests.campaign import count
from tests.ir.generate import random_formula
from tests.kernels.aot import build, source
from tests.kernels.dual import interp
from weft.codegen.skeletons.common.writer.holes import Hole
from weft.codegen.skeletons.common.writer.spelling import ATOM, Tri
from weft.ir.formula import parse, symbol
from weft.ir.formula.evaluate import evaluate
from weft.ir.formula.functions import NAMES
from weft.ir.reference import functions

HEAD = """import triton
import triton.language as tl

from weft.codegen.skeletons.common import elementwise  # noqa: F401


"""
_serial = itertools.count()

FORMULAS = (
    "tanh(x)*y",
    "softplus(x) + logaddexp(x, y)",
    "gelu(x) - gelu_tanh(y)",
    "silu(x)*0.3",
    "where(x > y, 0.1, 0.7)*x",
    "max(x, 0.1) + min(y, -0.2) + max(x, y)",
    "abs(x) + sign(y) + x**7/1000",
    "(n % 5)*x + floor(n/3)",
    "where(not (x > 0) and n >= -2, x, 3)",
    "where(n//2 == -1 or y < 0, 1, 0)",
    "x % 3 + floor(y)",
    "(n - 7) % 4 + (n - 7)//3",
    "n // i_a + n % (i_a + 1)",
    "silu_grad(x) + gelu_grad(x) + gelu_tanh_grad(x)",
    "uniform(123456789, 3, 2, i_a*7) + x/(1 + exp(y))",
    "sqrt(abs(x)) + rsqrt(abs(y) + 1) + erf(x) + sin(x) + cos(y) + log(1 + x*x)",
    "max(n, 3) + min(n, i_a)",
    "relu(x) + 1/3",
    "where(x > 0, 1, 0)*0.1",
    "sign(n) + abs(n)",
    "where((x > 0) and not (y > 0 or n == 3), sigmoid(-x), 1 - sigmoid(y))",
)


def module(text: str, folder: Path) -> Any:
    name = f"weft_hole_{next(_serial)}"
    path = folder / f"{name}.py"
    path.write_text(HEAD + text + "\n")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def hole(formula: Any) -> Hole:
    """hole(i, ok, X, ACC): the formula in x, y (floats), n (an integer), i_a (the place)."""
    h = Hole("hole", ("i", "ok", "X", "ACC: tl.constexpr"), "ACC")
    for k, name in enumerate("xyn"):
        h.add(f"{name} = tl.load(X[{k}] + i, mask=ok, other=0){'' if name == 'n' else '.to(ACC)'}")
    h.taken |= {"x", "y", "n"}
    env = {symbol(c): Tri(c) for c in "xy"}
    env |= {symbol("n"): Tri("n", ATOM, "int"), symbol("i_a"): Tri("(i + 1)", ATOM, "int", None, 1)}
    (out,) = h.formula([formula], env)
    h.add(f"return {out.text}" if out.kind == "float" and not out.number else f"return x * 0 + ({out.text})")
    return h


@triton.jit
def apply(X, OUT, N, hole: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(OUT + i, hole(i, i < N, X, ACC), mask=i < N)


def values(seed: int, n: int, size: float = 3.0) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, generator=draw) * size for _ in "xy")
    return x, y, torch.randint(-9, 9, (n,), generator=draw)


def difference(made: Any, formula: Any, dtype: torch.dtype, seed: int = 0, n: int = 61, size: float = 3.0) -> float:
    """The largest error against the reference in fp64, relative to the largest value."""
    x, y, k = values(seed, n, size)
    out = torch.full((n,), float("nan"), dtype=dtype)
    acc = tl.float64 if dtype == torch.float64 else tl.float32
    interp(apply)[(1,)]((x.to(dtype), y.to(dtype), k), out, n, made.hole, 64, acc)
    env = {symbol("x"): x.double(), symbol("y"): y.double(), symbol("n"): k, symbol("i_a"): torch.arange(n) + 1}
    (want,) = evaluate([formula], env, functions(torch, torch.float64, "cpu"))
    want = torch.as_tensor(want, dtype=torch.float64).expand(n)
    assert torch.isfinite(out).all()
    return float((out.double() - want).abs().max() / max(1.0, float(want.abs().max())))


@pytest.mark.parametrize("text", FORMULAS)
def test_functions(text, tmp_path):
    formula = parse(text)
    made = module("\n".join(hole(formula).text()), tmp_path)

    assert difference(made, formula, torch.float64) < 1e-14
    assert difference(made, formula, torch.float32) < 2e-6


def test_every_function_of_the_language_is_spelled():
    said = " ".join(FORMULAS)
    missing = [n for n in set(NAMES.values()) if not re.search(rf"\b{n}\b", said) and n not in ("mod", "where")]
    assert missing == []


@pytest.mark.parametrize("size", [1e2, 1e4])
@pytest.mark.parametrize("name", ["sigmoid", "tanh", "softplus", "silu", "gelu", "gelu_tanh", "relu", "logaddexp"])
def test_large_arguments_stay_finite(name, size, tmp_path):
    formula = parse(f"{name}(x)" if name != "logaddexp" else "logaddexp(x, y)")
    made = module("\n".join(hole(formula).text()), tmp_path)

    for dtype in (torch.float32, torch.float64):
        assert difference(made, formula, dtype, size=size) < (1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("size", [1e-1, 1e-3, 1e-5])
def test_tanh_keeps_the_digits_of_small_arguments(size, tmp_path):
    """As a soft cap of logits needs: cap*tanh(x/cap) is x near 0."""
    made, formula = module("\n".join(hole(parse(f"tanh(x)*{1 / size}")).text()), tmp_path), parse(f"tanh(x)*{1 / size}")

    assert difference(made, formula, torch.float64, size=size) < 1e-13
    assert difference(made, formula, torch.float32, size=size) < 1e-6


@pytest.mark.parametrize("seed", range(count(20, 300)))
def test_generated_formulas(seed, tmp_path):
    formula = parse(random_formula(Random(seed), ["x", "y"]))
    made = module("\n".join(hole(formula).text()), tmp_path)

    assert difference(made, formula, torch.float64, seed, size=1.5) < 1e-10
    assert difference(made, formula, torch.float32, seed, size=1.5) < 1e-5


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_120"])
def test_they_compile(arch, tmp_path):
    """All formulas in one kernel: what the interpreter lets pass, the compiler refuses."""
    formulas = [parse(t) for t in FORMULAS]
    holes = [hole(f) for f in formulas]
    for k, h in enumerate(holes):
        h.name = f"hole{k}"
    sums = " + ".join(f"hole{k}(i, ok, X, ACC)" for k in range(len(holes)))
    text = "\n\n\n".join("\n".join(h.text()) for h in holes)
    text += f"\n\n\n@triton.jit\ndef hole(i, ok, X, ACC: tl.constexpr):\n    return {sums}"
    made = module(text, tmp_path)
    types = {"X": ("*fp32", "*fp32", "*i64"), "OUT": "*fp32", "N": "i32"}

    for acc in (tl.float32, tl.float64):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built = build(source(apply, types, {"hole": made.hole, "BLOCK": 256, "ACC": acc}), arch)
        assert built.stack == 0 or acc == tl.float64


def test_literals_are_exact_in_fp64(tmp_path):
    formula = parse("where(x > 0, 0.1, 0.3) + max(x, 0.7)*0.1")
    made = module("\n".join(hole(formula).text()), tmp_path)

    assert difference(made, formula, torch.float64) < 1e-16
