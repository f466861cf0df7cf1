"""The closed set of functions a formula may use, and their derivatives.

Each function whose textbook form overflows or cancels is our own class with a declared derivative; the rest is SymPy's.
`diff` is ours too: it is closed over this set, so it never meets a Heaviside, a Subs or an unevaluated Derivative.
All derivatives are finite in fp32 for arguments of modulus up to 1e4 wherever the function itself is differentiable."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import sympy as sp
from sympy.logic.boolalg import Boolean


class Own(sp.Function):
    """Base of our own functions: real for real arguments; derivative from the table below."""

    def __new__(cls, *args: Any, **options: Any) -> Any:
        return super().__new__(cls, *args, **options)

    def _eval_is_extended_real(self) -> bool:
        return True

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return DERIVATIVES[type(self)](*self.args)[argindex - 1]


class sigmoid(Own):
    """1 / (1 + exp(-x)). `1 - sigmoid(x)` is normalised to `sigmoid(-x)`, which does not cancel."""

    nargs = (1,)


class softplus(Own):
    """log(1 + exp(x)), computed as max(x, 0) + log1p(exp(-|x|))."""

    nargs = (1,)


class logaddexp(Own):
    """log(exp(a) + exp(b)), computed as max(a, b) + log1p(exp(-|a - b|))."""

    nargs = (2,)


class relu(Own):
    """max(x, 0); derivative 0 at 0."""

    nargs = (1,)


class silu(Own):
    """x sigmoid(x)."""

    nargs = (1,)


class gelu(Own):
    """x (1 + erf(x / sqrt 2)) / 2 (Hendrycks and Gimpel 2016)."""

    nargs = (1,)


class gelu_tanh(Own):
    """x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2: GPT-2's gelu, Hugging Face's gelu_new."""

    nargs = (1,)


class silu_grad(Own):
    """The derivative of silu: sigmoid(x) (1 + x sigmoid(-x))."""

    nargs = (1,)


class gelu_grad(Own):
    """The derivative of gelu: (1 + erf(x / sqrt 2)) / 2 + x exp(-x^2 / 2) / sqrt(2 pi)."""

    nargs = (1,)


class gelu_tanh_grad(Own):
    """The derivative of gelu_tanh."""

    nargs = (1,)


class absolute(Own):
    """|x|; derivative 0 at 0. SymPy's own asks whether x is real, and answers with conjugates when it cannot tell."""

    nargs = (1,)

    @classmethod
    def eval(cls, *args: Any) -> Any:
        return _folded(sp.Abs, args)


class maximum(Own):
    """The larger of two; where they are equal each gets half of the derivative, as in torch."""

    nargs = (2,)

    @classmethod
    def eval(cls, *args: Any) -> Any:
        return _folded(sp.Max, args)


class minimum(Own):
    """The smaller of two; where they are equal each gets half of the derivative, as in torch."""

    nargs = (2,)

    @classmethod
    def eval(cls, *args: Any) -> Any:
        return _folded(sp.Min, args)


class uniform(Own):
    """uniform(seed, op_id, layer, index): Philox4x32-10, see `weft.ir.formula.philox`. In [0, 1), no derivative."""

    nargs = (4,)


class where(Own):
    """where(cond, a, b): `a` where `cond` holds, else `b`. It never rewrites its condition, as Piecewise does."""

    nargs = (3,)

    @classmethod
    def eval(cls, *args: Any) -> Any:
        cond, a, b = args
        return a if cond == sp.true or a == b else b if cond == sp.false else None


def piecewise(*pairs: Any) -> Any:
    """(value, condition), .., (value, True) as nested `where`."""
    (out, last), *rest = reversed([tuple(p) for p in pairs])
    if last != sp.true:
        raise ValueError("a Piecewise needs a default: end with (value, True)")
    for value, cond in rest:
        out = where(cond, value, out)
    return out


def _folded(f: Any, args: Any) -> Any:
    """f of numbers that SymPy can compare; None for anything else."""
    out = f(*args) if all(a.is_comparable for a in args) else None
    return None if isinstance(out, f) else out


def _larger(a: Any, b: Any) -> Any:
    """1 where a > b, 1/2 where they are equal, else 0."""
    return where(a > b, 1, where(sp.Eq(a, b), sp.S.Half, 0))


def _fold(cls: Any) -> Callable[..., sp.Expr]:
    def build(first: Any, *rest: Any) -> sp.Expr:
        for r in rest:
            first = cls(first, r)
        return first

    return build


def _tanh_arg(x: Any) -> tuple[Any, Any]:
    c = sp.sqrt(2 / sp.pi)
    cubic = sp.Rational(44715, 1000000)
    return c * (x + cubic * x**3), c * (1 + 3 * cubic * x**2)


def _d_gelu_tanh_grad(x: Any) -> Any:
    """With u(x) the argument, t = tanh u and s = 1 - t^2: s u' + x s (u'' / 2 - t u'^2)."""
    u, du = _tanh_arg(x)
    s = 1 - sp.tanh(u) ** 2
    d2u = sp.sqrt(2 / sp.pi) * 6 * sp.Rational(44715, 1000000) * x
    return s * du + x * s * (d2u / 2 - sp.tanh(u) * du**2)


# class -> the partial derivatives by argument.
DERIVATIVES: dict[type, Callable[..., tuple[Any, ...]]] = {
    sigmoid: lambda x: (sigmoid(x) * sigmoid(-x),),
    softplus: lambda x: (sigmoid(x),),
    logaddexp: lambda a, b: (sigmoid(a - b), sigmoid(b - a)),
    relu: lambda x: (where(x > 0, 1, 0),),
    silu: lambda x: (silu_grad(x),),
    gelu: lambda x: (gelu_grad(x),),
    gelu_tanh: lambda x: (gelu_tanh_grad(x),),
    silu_grad: lambda x: (sigmoid(x) * sigmoid(-x) * (2 + x * (sigmoid(-x) - sigmoid(x))),),
    gelu_grad: lambda x: ((2 - x**2) * sp.exp(-(x**2) / 2) / sp.sqrt(2 * sp.pi),),
    gelu_tanh_grad: lambda x: (_d_gelu_tanh_grad(x),),
    maximum: lambda a, b: (_larger(a, b), _larger(b, a)),
    minimum: lambda a, b: (_larger(b, a), _larger(a, b)),
    uniform: lambda *a: (sp.S.Zero,) * 4,
    sp.exp: lambda x: (sp.exp(x),),
    sp.log: lambda x: (1 / x,),
    sp.tanh: lambda x: (1 - sp.tanh(x) ** 2,),
    sp.erf: lambda x: (2 * sp.exp(-(x**2)) / sp.sqrt(sp.pi),),
    sp.sin: lambda x: (sp.cos(x),),
    sp.cos: lambda x: (-sp.sin(x),),
    absolute: lambda x: (sp.sign(x),),
    sp.sign: lambda x: (sp.S.Zero,),
    sp.floor: lambda x: (sp.S.Zero,),
    sp.Mod: lambda a, b: (sp.S.One, -sp.floor(a / b)),
}

# name in a formula -> (constructor, least number of arguments, most). Aliases are SymPy's own spellings.
FUNCTIONS: dict[str, tuple[Callable[..., Any], int, int]] = {
    "sigmoid": (sigmoid, 1, 1),
    "softplus": (softplus, 1, 1),
    "logsigmoid": (lambda x: -softplus(-x), 1, 1),
    "logaddexp": (logaddexp, 2, 2),
    "relu": (relu, 1, 1),
    "relu2": (lambda x: relu(x) ** 2, 1, 1),
    "silu": (silu, 1, 1),
    "gelu": (gelu, 1, 1),
    "gelu_tanh": (gelu_tanh, 1, 1),
    "gelu_sigmoid": (lambda x: x * sigmoid(sp.Rational(1702, 1000) * x), 1, 1),
    "silu_grad": (silu_grad, 1, 1),
    "gelu_grad": (gelu_grad, 1, 1),
    "gelu_tanh_grad": (gelu_tanh_grad, 1, 1),
    "tanh": (sp.tanh, 1, 1),
    "exp": (sp.exp, 1, 1),
    "log": (sp.log, 1, 1),
    "erf": (sp.erf, 1, 1),
    "sqrt": (sp.sqrt, 1, 1),
    "rsqrt": (lambda x: 1 / sp.sqrt(x), 1, 1),
    "sin": (sp.sin, 1, 1),
    "cos": (sp.cos, 1, 1),
    "abs": (absolute, 1, 1),
    "sign": (sp.sign, 1, 1),
    "floor": (sp.floor, 1, 1),
    "ceil": (lambda x: -sp.floor(-x), 1, 1),
    "mod": (sp.Mod, 2, 2),
    "max": (_fold(maximum), 2, 8),
    "min": (_fold(minimum), 2, 8),
    "where": (where, 3, 3),
    "Piecewise": (piecewise, 1, 64),
    "uniform": (uniform, 4, 4),
    "Eq": (sp.Eq, 2, 2),
    "Ne": (sp.Ne, 2, 2),
}
FUNCTIONS.update(
    {sympy: FUNCTIONS[ours] for sympy, ours in (("Abs", "abs"), ("Max", "max"), ("Min", "min"), ("Mod", "mod"))}
)

# class -> its name in a formula and its key in an `evaluate` table.
NAMES: dict[type, str] = {
    **{c: c.__name__ for c in (sigmoid, softplus, logaddexp, relu, silu, gelu, gelu_tanh)},
    **{c: c.__name__ for c in (silu_grad, gelu_grad, gelu_tanh_grad, uniform)},
    sp.exp: "exp",
    sp.log: "log",
    sp.tanh: "tanh",
    sp.erf: "erf",
    sp.sin: "sin",
    sp.cos: "cos",
    absolute: "abs",
    sp.sign: "sign",
    sp.floor: "floor",
    sp.Mod: "mod",
    maximum: "max",
    minimum: "min",
    where: "where",
}


@lru_cache(maxsize=1 << 14)
def diff(e: Any, s: sp.Symbol) -> Any:
    """The derivative of a formula by a symbol. Conditions, floor, sign and uniform count as constant."""
    if s not in e.free_symbols or (isinstance(e, Boolean) and e != s):
        return sp.S.Zero
    if e == s:
        return sp.S.One
    args: tuple[Any, ...] = e.args
    slopes = [diff(a, s) for a in args]
    if isinstance(e, where):
        return where(args[0], *slopes[1:])
    if all(d == 0 for d in slopes):  # what SymPy multiplies by zero it asks if it is finite: that can take seconds
        return sp.S.Zero
    if e.is_Add:
        return sp.Add(*slopes)
    if e.is_Mul:
        return sp.Add(*(sp.Mul(*args[:i], d, *args[i + 1 :]) for i, d in enumerate(slopes) if d != 0))
    if e.is_Pow:
        base, k = args
        out = [k * base ** (k - 1) * slopes[0]] if slopes[0] != 0 else []
        return sp.Add(*out, *(e * sp.log(base) * d for d in slopes[1:] if d != 0))
    rules = DERIVATIVES[type(e)](*args)
    return sp.Add(*(rule * d for rule, d in zip(rules, slopes) if d != 0))
