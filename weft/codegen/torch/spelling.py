"""Torch spellings of formulas: the `weft.ir.formula.evaluate` table whose values are pieces of source."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from weft.codegen.torch.einsum import Product, align
from weft.ir.types import FLOATS, TORCH, Dims, union

ATOM, POWER, UNARY, PRODUCT, SUM, BIT_AND, BIT_OR, COMPARE, CHOICE = range(9, 0, -1)
LONG = 72  # characters of an operation's operands beyond which one of them gets a name
HALF_MAX = 65504.0  # the largest number of f16
TORCH_DTYPE = {dtype: f"torch.{name}" for dtype, name in TORCH.items()}


@dataclass(frozen=True)
class Src:
    """A piece of source: what it says, how tightly it binds, and what it is.

    dims: those along which the tensor varies, in order (it may lack dims of the value it stands for and is then
    broadcast); None for a Python number, whose dtype is "int", "float" or "bool" and whose `value` may be known.
    """

    text: str
    rank: int = ATOM
    dims: Dims | None = ()
    dtype: str = "f32"
    value: Any = None
    product: Product | None = None

    @property
    def number(self) -> bool:
        return self.dims is None

    def at(self, rank: int) -> str:
        """The text, in parentheses if it binds more loosely than `rank`."""
        return self.text if self.rank >= rank else f"({self.text})"

    def aligned(self, to: Dims) -> "Src":
        """Viewed so that it broadcasts against a tensor over `to`."""
        if self.dims is None:
            return self
        if align("x", self.dims, to) == "x":
            return self
        dims = tuple(d for d in to if d in self.dims)
        return replace(self, text=align(self.at(ATOM), self.dims, to), rank=ATOM, product=None, dims=dims)

    def ordered(self, to: Dims) -> "Src":
        """Its own dims in the order of `to`."""
        return self.aligned(tuple(d for d in to if d in (self.dims or ())))


class TorchHost(Protocol):
    """What a spelling may ask of the function it is printed into."""

    def bind(self, hint: str, src: Src) -> Src: ...

    def device(self) -> str: ...

    def dtype(self, name: str) -> str: ...


def literal(value: Any) -> Src:
    """A Python number."""
    if isinstance(value, bool):
        return Src(str(value), ATOM, None, "bool", value)
    if isinstance(value, int):
        return Src(str(value), ATOM if value >= 0 else UNARY, None, "int", value)
    if math.isinf(value):
        return Src("math.inf" if value > 0 else "-math.inf", ATOM if value > 0 else UNARY, None, "float", value)
    return Src(repr(value), ATOM if value >= 0 else UNARY, None, "float", value)


def held(number: Src, dtype: str) -> str:
    """A number as source, no larger than the dtype holds where that is known when the code runs (`x.dtype`)."""
    value = number.value
    if value is None or math.isinf(value) or abs(value) <= HALF_MAX or not dtype.endswith(".dtype"):
        return number.text
    return f"{'min' if value > 0 else 'max'}({number.text}, torch.finfo({dtype}).{'max' if value > 0 else 'min'})"


class TorchFormulas:
    """The table for one map: operands are Src aligned to `to`, `acc` is the dtype it is computed in."""

    def __init__(self, host: TorchHost, to: Dims, acc: str, hint: str) -> None:
        self.host, self.to, self.acc, self.hint = host, to, acc, hint
        infix: dict[str, tuple[str, int, Callable[[Any, Any], Any]]] = {
            "add": ("+", SUM, lambda a, b: a + b),
            "sub": ("-", SUM, lambda a, b: a - b),
            "mul": ("*", PRODUCT, lambda a, b: a * b),
            "floordiv": ("//", PRODUCT, lambda a, b: a // b),
            "mod": ("%", PRODUCT, lambda a, b: a % b),
            "lt": ("<", COMPARE, lambda a, b: a < b),
            "le": ("<=", COMPARE, lambda a, b: a <= b),
            "gt": (">", COMPARE, lambda a, b: a > b),
            "ge": (">=", COMPARE, lambda a, b: a >= b),
            "eq": ("==", COMPARE, lambda a, b: a == b),
            "ne": ("!=", COMPARE, lambda a, b: a != b),
        }
        self.table: dict[str, Callable[..., Any]] = {
            "const": literal,
            "div": self.div,
            "neg": self.neg,
            "pow": self.pow,
            "sqrt": lambda a: self.call("sqrt", a, math.sqrt),
            "rsqrt": self.rsqrt,
            "floor": self.floor,
            "where": self.where,
            "max": lambda a, b: self.extreme("max", a, b),
            "min": lambda a, b: self.extreme("min", a, b),
            "and": lambda a, b: self.logic("&", BIT_AND, a, b),
            "or": lambda a, b: self.logic("|", BIT_OR, a, b),
            "not": self.invert,
            "abs": lambda a: self.call("abs", a, abs),
            "sign": lambda a: self.call("sign", a, lambda v: (v > 0) - (v < 0)),
            "softplus": lambda a: self.function("F.softplus({}, threshold=50.0)", a),
            "silu": lambda a: self.function("F.silu({})", a),
            "gelu": lambda a: self.function("F.gelu({})", a),
            "gelu_tanh": lambda a: self.function('F.gelu({}, approximate="tanh")', a),
            "logaddexp": lambda a, b: self.function("torch.logaddexp({}, {})", a, b),
            "share": lambda v: v if v.rank == ATOM and plain(v.text) else self.host.bind(self.hint, v),
            "uniform": self.uniform,
            **{k: (lambda a, b, s=s: self.infix(s[0], s[1], s[2], a, b)) for k, s in infix.items()},
            **{
                k: (lambda a, k=k: self.call(k, a, getattr(math, k)))
                for k in ("exp", "log", "tanh", "erf", "sin", "cos")
            },
            **{k: (lambda a, k=k: self.function(f"torch.{k}({{}})", a)) for k in ("sigmoid", "relu")},
        }
        for name, said in _BACKWARDS.items():
            self.table[f"mul_{name}"] = lambda dy, a, said=said: self.function(said, dy, a)
            self.table[name] = lambda a, said=said: self.function(said, self.ones(a), a)

    def infix(self, sign: str, rank: int, fold: Callable[[Any, Any], Any], a: Src, b: Src) -> Src:
        if a.value is not None and b.value is not None and a.number and b.number:
            return literal(fold(a.value, b.value))
        short = _identity(sign, a, b) or (_biased(self.to, a, b) if sign == "+" else None)
        if short is not None:
            return short
        if sign in "+-" and b.number and b.value is not None and b.value < 0:
            sign, b = "-+"["+-".index(sign)], literal(-b.value)
        if rank < COMPARE + 1:
            dtype = "bool"
        else:
            a, b, dtype = self.together(a, b)
        if len(a.text) + len(b.text) > LONG:
            a, b = (self.named(a), b) if len(a.text) >= len(b.text) else (a, self.named(b))
        return Src(f"{a.at(rank)} {sign} {b.at(rank + 1)}", rank, _joined(self.to, a, b), dtype)

    def together(self, a: Src, b: Src) -> tuple[Src, Src, str]:
        """Operands of one arithmetic operation: an integer tensor that meets a fraction becomes a float one."""
        if a.number and b.number:
            return a, b, "float" if "float" in (a.dtype, b.dtype) else "int"
        kinds = [x.dtype for x in (a, b) if not x.number]
        if any(k in FLOATS for k in kinds):
            return a, b, self.acc
        if "float" in (a.dtype, b.dtype):
            a, b = self.floating(a), self.floating(b)
            return a, b, self.acc
        return a, b, "i64"

    def floating(self, a: Src) -> Src:
        """An integer or boolean tensor in the dtype the map is computed in."""
        if a.number or a.dtype in FLOATS:
            return a
        return Src(f"{a.at(ATOM)}.to({self.host.dtype(self.acc)})", ATOM, a.dims, self.acc)

    def named(self, a: Src) -> Src:
        return a if a.number or plain(a.text) else self.host.bind(self.hint, a)

    def div(self, a: Src, b: Src) -> Src:
        if b.value == 1:
            return a
        if a.value == 0:
            return literal(0)
        if a.value is not None and b.value is not None:
            return literal(a.value / b.value)
        if not (a.number and b.number) and all(x.number or x.dtype not in FLOATS for x in (a, b)):
            a = self.floating(a) if not a.number else a
            b = self.floating(b) if a.number else b
        dtype = "float" if a.number and b.number else self.acc
        if len(a.text) + len(b.text) > LONG:
            a, b = (self.named(a), b) if len(a.text) >= len(b.text) else (a, self.named(b))
        return Src(f"{a.at(PRODUCT)} / {b.at(UNARY)}", PRODUCT, _joined(self.to, a, b), dtype)

    def neg(self, a: Src) -> Src:
        if a.value is not None:
            return literal(-a.value)
        return Src(f"-{a.at(UNARY)}", UNARY, a.dims, a.dtype)

    def pow(self, a: Src, k: int) -> Src:
        if a.value is not None:
            return literal(a.value**k)
        if a.number:
            return Src(f"{a.at(ATOM)}**{k}", POWER, None, a.dtype)
        text = f"{a.at(ATOM)}.square()" if k == 2 else f"{a.at(ATOM)}.pow({k})"
        return Src(text, ATOM, a.dims, a.dtype)

    def rsqrt(self, a: Src) -> Src:
        if a.value is not None:
            return literal(1 / math.sqrt(a.value))
        if a.number:
            return Src(f"1 / math.sqrt({a.text})", PRODUCT, None, "float")
        return self.function("torch.rsqrt({})", a)

    def call(self, name: str, a: Src, fold: Callable[[Any], Any]) -> Src:
        """An elementwise function that Python's math has too."""
        if a.value is not None:
            return literal(fold(a.value))
        if a.number:
            return Src(f"abs({a.text})" if name == "abs" else f"math.{name}({a.text})", ATOM, None, "float")
        if name in ("abs", "sign") and a.dtype not in FLOATS:
            return Src(f"torch.{name}({a.text})", ATOM, a.dims, a.dtype)
        return self.function(f"torch.{name}({{}})", a)

    def function(self, said: str, *args: Src) -> Src:
        """A torch function of floats; numbers become tensors."""
        args = tuple(self.tensor(self.floating(a)) for a in args)
        if sum(len(a.text) for a in args) > LONG:
            args = tuple(self.named(a) if len(a.text) > LONG // 2 else a for a in args)
        return Src(said.format(*(a.text for a in args)), ATOM, _joined(self.to, *args), self.acc)

    def tensor(self, a: Src) -> Src:
        """A number as a tensor without dims, where torch wants a tensor."""
        if not a.number:
            return a
        text = f"torch.full((), {a.text}, dtype={self.host.dtype(self.acc)}, device={self.host.device()})"
        return Src(text, ATOM, (), self.acc)

    def ones(self, a: Src) -> Src:
        return Src(f"torch.ones_like({a.text})", ATOM, a.dims, self.acc)

    def floor(self, a: Src) -> Src:
        if a.value is not None:
            return literal(math.floor(a.value))
        if a.dtype in ("int", "i64"):
            return a
        return Src(f"math.floor({a.text})", ATOM, None, "int") if a.number else self.function("torch.floor({})", a)

    def where(self, c: Src, a: Src, b: Src) -> Src:
        if c.number:
            return (a if c.value else b) if c.value is not None else self._choice(c, a, b)
        if a.number and b.number:
            if (a.value, b.value) in ((1, 0), (0, 1)):
                text = c.at(ATOM) if a.value == 1 else f"(~{c.at(UNARY)})"
                whole = self.acc not in FLOATS
                return Src(
                    f"{text}.to({self.host.dtype('i64' if whole else self.acc)})",
                    ATOM,
                    c.dims,
                    "i64" if whole else self.acc,
                )
            a = self.tensor(a) if "float" in (a.dtype, b.dtype) or self.acc in FLOATS else a
        a, b, dtype = self.together(a, b)
        if len(c.text) + len(a.text) + len(b.text) > LONG:
            c, a, b = (self.named(x) if len(x.text) > LONG // 3 else x for x in (c, a, b))
        return Src(f"torch.where({c.text}, {a.text}, {b.text})", ATOM, _joined(self.to, c, a, b), dtype)

    def _choice(self, c: Src, a: Src, b: Src) -> Src:
        _, _, dtype = self.together(a, b)
        return Src(
            f"{a.at(CHOICE + 1)} if {c.at(CHOICE + 1)} else {b.at(CHOICE)}", CHOICE, _joined(self.to, a, b), dtype
        )

    def extreme(self, name: str, a: Src, b: Src) -> Src:
        if a.number and b.number:
            if a.value is not None and b.value is not None:
                return literal((max if name == "max" else min)(a.value, b.value))
            return Src(f"{name}({a.text}, {b.text})", ATOM, None, "int" if a.dtype == b.dtype == "int" else "float")
        if a.number or b.number:
            x, bound = (b, a) if a.number else (a, b)
            x, bound, dtype = self.together(x, bound)
            side = "min" if name == "max" else "max"
            text = held(bound, self.host.dtype(self.acc)) if dtype in FLOATS else bound.text
            return Src(f"{x.at(ATOM)}.clamp({side}={text})", ATOM, x.dims, dtype)
        a, b, dtype = self.together(a, b)
        return Src(f"torch.{name}imum({a.text}, {b.text})", ATOM, _joined(self.to, a, b), dtype)

    def logic(self, sign: str, rank: int, a: Src, b: Src) -> Src:
        """Conditions: tensors by `&` and `|`, numbers by `and` and `or`."""
        for x, y in ((a, b), (b, a)):
            if x.number and x.value is not None:
                return (y if x.value else x) if sign == "&" else (x if x.value else y)
        if len(a.text) + len(b.text) > LONG:
            a, b = (self.named(a), b) if len(a.text) >= len(b.text) else (a, self.named(b))
        return Src(f"{a.at(rank)} {sign} {b.at(rank + 1)}", rank, _joined(self.to, a, b), "bool")

    def invert(self, a: Src) -> Src:
        if a.number:
            return literal(not a.value) if a.value is not None else Src(f"not ({a.text})", CHOICE, None, "bool")
        return Src(f"~{a.at(UNARY)}", UNARY, a.dims, "bool")

    def uniform(self, seed: Src, op_id: Src, layer: Src, index: Src) -> Src:
        args = ", ".join(x.text for x in (seed, op_id, layer, index))
        return Src(
            f"philox.uniform({args}).to({self.host.dtype(self.acc)})",
            ATOM,
            _joined(self.to, seed, layer, index),
            self.acc,
        )


_BACKWARDS: Mapping[str, str] = {
    "silu_grad": "torch.ops.aten.silu_backward({}, {})",
    "gelu_grad": "torch.ops.aten.gelu_backward({}, {})",
    "gelu_tanh_grad": 'torch.ops.aten.gelu_backward({}, {}, approximate="tanh")',
}


def _joined(to: Dims, *args: Src) -> Dims | None:
    """The dims of an operation's result, in the order of `to`; None when all operands are numbers."""
    have = [a.dims for a in args if a.dims is not None]
    if not have:
        return None
    every = union(*have)
    return tuple(d for d in to if d in every)


def _biased(to: Dims, a: Src, b: Src) -> Src | None:
    """x @ w + b as one operation."""
    for x, bias in ((a, b), (b, a)):
        p = x.product
        if p is None or not p.leading or bias.dims != p.cols or x.dims != to or not plain(bias.text):
            continue
        flat = f"{bias.text}.flatten()" if len(p.cols) > 1 else bias.text
        return Src(p.said(flat), ATOM, to, x.dtype)
    return None


def _identity(sign: str, a: Src, b: Src) -> Src | None:
    """x + 0, x * 1, x * 0 and their mirror images."""
    if sign in "+-" and b.number and b.value == 0:
        return a
    if sign == "+" and a.number and a.value == 0:
        return b
    if sign == "*":
        for x, y in ((a, b), (b, a)):
            if x.number and x.value == 1:
                return y
            if x.number and x.value == 0:
                return literal(0)
    return None


def plain(text: str) -> bool:
    """A name, possibly with a view of it: nothing is computed by saying it twice."""
    viewed = text.endswith((".mT", "]")) and text.split("[")[0].removesuffix(".mT").isidentifier()
    return text.isidentifier() or viewed
