"""The `evaluate` table whose values are Python numbers: what folds the parts of a formula that have no symbols."""

import math
import operator
from collections.abc import Callable
from typing import Any

from weft.ir.formula import philox

_ROOT_2_PI = math.sqrt(2 / math.pi)


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf


def _sigmoid(x: float) -> float:
    return 1 / (1 + _exp(-x))


def _logaddexp(a: float, b: float) -> float:
    return max(a, b) + math.log1p(math.exp(-abs(a - b)))


def _gelu_grad(x: float) -> float:
    return (1 + math.erf(x / math.sqrt(2))) / 2 + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh_grad(x: float) -> float:
    t = math.tanh(_ROOT_2_PI * (x + 0.044715 * x**3))
    return (1 + t) / 2 + x * (1 - t * t) * _ROOT_2_PI * (1 + 3 * 0.044715 * x * x) / 2


SCALAR: dict[str, Callable[..., Any]] = {
    "const": lambda v: v,
    **{k: getattr(operator, k) for k in ("add", "sub", "mul", "neg", "pow", "floordiv", "mod", "abs")},
    **{k: getattr(operator, k) for k in ("lt", "le", "gt", "ge", "eq", "ne")},
    **{k: getattr(math, k) for k in ("sqrt", "floor", "log", "tanh", "erf", "sin", "cos")},
    "div": operator.truediv,
    "exp": _exp,
    "rsqrt": lambda a: 1 / math.sqrt(a),
    "where": lambda c, a, b: a if c else b,
    "max": max,
    "min": min,
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "not": operator.not_,
    "sign": lambda a: (a > 0) - (a < 0),
    "sigmoid": _sigmoid,
    "softplus": lambda a: _logaddexp(a, 0.0),
    "logaddexp": _logaddexp,
    "relu": lambda a: max(a, 0),
    "silu": lambda a: a * _sigmoid(a),
    "silu_grad": lambda a: _sigmoid(a) * (1 + a * _sigmoid(-a)),
    "gelu": lambda a: a * (1 + math.erf(a / math.sqrt(2))) / 2,
    "gelu_grad": _gelu_grad,
    "gelu_tanh": lambda a: a * (1 + math.tanh(_ROOT_2_PI * (a + 0.044715 * a**3))) / 2,
    "gelu_tanh_grad": _gelu_tanh_grad,
    "uniform": lambda *a: philox.uniform(*a) / 2**24,
}
