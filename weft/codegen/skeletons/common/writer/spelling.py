"""Triton spellings of formulas: the `weft.ir.formula.evaluate` table whose values are pieces of Triton source.

Floats are in the accumulator's dtype, whose source is `acc`, so that one text computes in float32 and in float64;
literals take the dtype of what they meet. Integer `//` and `%` round down, and say so with a call where the sign of an
operand is not known. No Python bool ever meets a tensor in `&` or `|`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

ATOM, UNARY, PRODUCT, SUM, BIT_AND, BIT_OR, COMPARE = range(7, 0, -1)
LONG = 72  # characters of an operation's operands beyond which one of them gets a name


@dataclass(frozen=True)
class Tri:
    """A piece of source: what it says, how tightly it binds, what it is.

    kind: float | int | bool. value: of a literal, else None. low: a lower bound of an integer, None if none is known.
    """

    text: str
    rank: int = ATOM
    kind: str = "float"
    value: Any = None
    low: int | None = None

    @property
    def number(self) -> bool:
        return self.value is not None

    def at(self, rank: int) -> str:
        """The text, in parentheses if it binds more loosely than `rank`."""
        return self.text if self.rank >= rank else f"({self.text})"

    @property
    def plain(self) -> bool:
        """Nothing is computed by saying it twice."""
        return self.number or self.text.isidentifier()


def literal(value: Any) -> Tri:
    """A number."""
    if isinstance(value, bool):
        return Tri(str(value), ATOM, "bool", value)
    if isinstance(value, int):
        return Tri(str(value), ATOM if value >= 0 else UNARY, "int", value, value)
    if math.isinf(value):
        return Tri('float("inf")' if value > 0 else '-float("inf")', ATOM if value > 0 else UNARY, "float", value)
    return Tri(repr(value), ATOM if value >= 0 else UNARY, "float", value)


class TritonHost(Protocol):
    """What a spelling may ask of the function it is printed into."""

    @property
    def acc(self) -> str: ...

    def bind(self, hint: str, src: Tri) -> Tri: ...


class TritonFormulas:
    """The table for one formula; `hint` names what has to be bound."""

    def __init__(self, host: TritonHost, hint: str) -> None:
        self.host, self.hint = host, hint
        own = ("tanh", "sigmoid", "softplus", "relu", "silu", "gelu", "gelu_tanh", "silu_grad", "gelu_grad")
        compare: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
            "lt": ("<", lambda a, b: a < b),
            "le": ("<=", lambda a, b: a <= b),
            "gt": (">", lambda a, b: a > b),
            "ge": (">=", lambda a, b: a >= b),
            "eq": ("==", lambda a, b: a == b),
            "ne": ("!=", lambda a, b: a != b),
        }
        self.table: dict[str, Callable[..., Any]] = {
            "const": literal,
            "add": self.add,
            "sub": self.sub,
            "mul": self.mul,
            "div": self.div,
            "neg": self.neg,
            "pow": self.pow,
            "floordiv": self.floordiv,
            "mod": self.mod,
            "floor": lambda a: a if a.kind == "int" else self.function("tl.floor({})", a),
            "where": self.where,
            "max": lambda a, b: self.extreme("larger", "<", max, a, b),
            "min": lambda a, b: self.extreme("smaller", ">", min, a, b),
            "and": lambda a, b: self.logic("&", BIT_AND, a, b),
            "or": lambda a, b: self.logic("|", BIT_OR, a, b),
            "not": self.invert,
            "abs": lambda a: Tri(f"tl.abs({a.text})", ATOM, a.kind, None, 0),
            "sign": self.sign,
            "share": lambda v: v if v.plain else host.bind(hint, v),
            "uniform": self.uniform,
            "logaddexp": lambda a, b: self.function("elementwise.logaddexp({}, {})", a, b),
            **{k: (lambda a, k=k: self.function(f"tl.{k}({{}})", a)) for k in _TL},
            **{k: (lambda a, k=k: self.function(f"elementwise.{k}({{}})", a)) for k in (*own, "gelu_tanh_grad")},
            **{k: (lambda a, b, s=s: self.compare(s[0], s[1], a, b)) for k, s in compare.items()},
        }

    # -- kinds -------------------------------------------------------------------------------------------------------

    def floating(self, a: Tri) -> Tri:
        """A float: a literal with a point, an integer or condition converted."""
        if a.kind == "float":
            return a
        if a.number:
            return literal(float(a.value))
        if "X[" in a.text:  # an argument that is 1 is a constant, which has no `to`
            return Tri(f"tl.cast({a.text}, {self.host.acc})")
        return Tri(f"{a.at(ATOM)}.to({self.host.acc})")

    def counting(self, a: Tri) -> Tri:
        """An integer; a condition counts 0 or 1."""
        if a.kind != "bool":
            return a
        return literal(int(a.value)) if a.number else Tri(f"{a.at(ATOM)}.to(tl.int32)", ATOM, "int", None, 0)

    def together(self, a: Tri, b: Tri) -> tuple[Tri, Tri, str]:
        """Operands of one arithmetic operation, both floats or both integers."""
        if "float" in (a.kind, b.kind):
            return self.floating(a), self.floating(b), "float"
        return self.counting(a), self.counting(b), "int"

    def shorter(self, a: Tri, b: Tri) -> tuple[Tri, Tri]:
        """The longer of two operands under a name where both together are long."""
        if len(a.text) + len(b.text) <= LONG:
            return a, b
        return (self.named(a), b) if len(a.text) >= len(b.text) else (a, self.named(b))

    def named(self, a: Tri) -> Tri:
        return a if a.plain else self.host.bind(self.hint, a)

    def tensor(self, a: Tri) -> Tri:
        """A literal as a scalar of the accumulator's dtype, where Triton would read it as a float32."""
        return Tri(f"tl.full([], {a.text}, {self.host.acc})") if a.number else a

    # -- arithmetic --------------------------------------------------------------------------------------------------

    def infix(self, sign: str, rank: int, a: Tri, b: Tri, low: int | None = None) -> Tri:
        a, b, kind = self.together(a, b)
        a, b = self.shorter(a, b)
        return Tri(f"{a.at(rank)} {sign} {b.at(rank + 1)}", rank, kind, None, low if kind == "int" else None)

    def add(self, a: Tri, b: Tri) -> Tri:
        if a.number and b.number:
            return literal(a.value + b.value)
        if 0 in (a.value, b.value):
            return b if a.value == 0 else a
        low = None if a.low is None or b.low is None else a.low + b.low
        return self.infix("+", SUM, a, b, low)

    def sub(self, a: Tri, b: Tri) -> Tri:
        if a.number and b.number:
            return literal(a.value - b.value)
        if b.value == 0:
            return a
        low = a.low - b.value if a.low is not None and b.kind == "int" and b.number else None
        return self.infix("-", SUM, a, b, low)

    def mul(self, a: Tri, b: Tri) -> Tri:
        if a.number and b.number:
            return literal(a.value * b.value)
        for x, y in ((a, b), (b, a)):
            if x.number and x.value == 1:
                return y
            if x.number and x.value == 0:
                return x
        low = a.low * b.low if a.low is not None and b.low is not None and min(a.low, b.low) >= 0 else None
        return self.infix("*", PRODUCT, a, b, low)

    def div(self, a: Tri, b: Tri) -> Tri:
        if b.value == 1:
            return a
        if a.number and b.number:
            whole = a.kind == b.kind == "int" and a.value % b.value == 0
            return literal(a.value // b.value if whole else a.value / b.value)
        a, b = self.shorter(self.floating(a), self.floating(b))
        return Tri(f"{a.at(PRODUCT)} / {b.at(UNARY)}", PRODUCT)

    def neg(self, a: Tri) -> Tri:
        if a.number:
            return literal(-a.value)
        return Tri(f"-{a.at(UNARY)}", UNARY, a.kind) if a.kind != "bool" else self.neg(self.counting(a))

    def pow(self, a: Tri, k: int) -> Tri:
        if a.number:
            return literal(a.value**k)
        a = self.named(self.counting(a))
        if k > 4:
            half = self.named(self.pow(a, k // 2))
            square = self.infix("*", PRODUCT, half, half)
            return self.infix("*", PRODUCT, square, a) if k % 2 else square
        return Tri(" * ".join([a.text] * k), PRODUCT, a.kind, None, 0 if k % 2 == 0 or (a.low or -1) >= 0 else None)

    def floordiv(self, a: Tri, b: Tri) -> Tri:
        if a.number and b.number:
            return literal(a.value // b.value)
        a, b, kind = self.together(a, b)
        if kind == "float":
            return self.function("tl.floor({})", self.div(a, b))
        if _positive(b) and a.low is not None and a.low >= 0:
            return self.infix("//", PRODUCT, a, b, 0)
        return Tri(f"elementwise.floordiv({a.text}, {b.text})", ATOM, "int")

    def mod(self, a: Tri, b: Tri) -> Tri:
        if a.number and b.number:
            return literal(a.value % b.value)
        a, b, kind = self.together(a, b)
        if kind == "float":
            return self.function("elementwise.floatmod({}, {})", a, b)
        if _positive(b) and a.low is not None and a.low >= 0:
            return self.infix("%", PRODUCT, a, b, 0)
        return Tri(f"elementwise.mod({a.text}, {b.text})", ATOM, "int", None, 0 if _positive(b) else None)

    def sign(self, a: Tri) -> Tri:
        if a.number:
            return literal((a.value > 0) - (a.value < 0))
        if a.kind == "float":
            return self.function("elementwise.sign({})", a)
        a = self.named(self.counting(a))
        return Tri(f"({a.text} > 0).to(tl.int32) - ({a.text} < 0).to(tl.int32)", SUM, "int", None, -1)

    def function(self, said: str, *args: Tri) -> Tri:
        """A function of floats."""
        args = tuple(self.tensor(self.floating(a)) for a in args)
        if sum(len(a.text) for a in args) > LONG:
            args = tuple(self.named(a) if len(a.text) > LONG // 2 else a for a in args)
        return Tri(said.format(*(a.text for a in args)))

    # -- choices and conditions --------------------------------------------------------------------------------------

    def compare(self, sign: str, fold: Callable[[Any, Any], bool], a: Tri, b: Tri) -> Tri:
        if a.number and b.number:
            return literal(fold(a.value, b.value))
        a, b, _ = self.together(a, b)
        a, b = self.shorter(a, b)
        return Tri(f"{a.at(COMPARE + 1)} {sign} {b.at(COMPARE + 1)}", COMPARE, "bool")

    def where(self, c: Tri, a: Tri, b: Tri) -> Tri:
        if c.number:
            return a if c.value else b
        if a.kind == b.kind == "bool":
            a, b = self.counting(a), self.counting(b)
            return Tri(f"tl.where({c.text}, {a.text}, {b.text}) != 0", COMPARE, "bool")
        a, b, kind = self.together(a, b)
        if a.number and b.number and kind == "float":
            a = self.tensor(a)
        if len(c.text) + len(a.text) + len(b.text) > LONG:
            c, a, b = (self.named(x) if len(x.text) > LONG // 3 else x for x in (c, a, b))
        low = min(a.low, b.low) if a.low is not None and b.low is not None else None
        return Tri(f"tl.where({c.text}, {a.text}, {b.text})", ATOM, kind, None, low)

    def extreme(self, name: str, sign: str, fold: Callable[[Any, Any], Any], a: Tri, b: Tri) -> Tri:
        """The larger or smaller of two; NaN stays NaN."""
        if a.number and b.number:
            return literal(fold(a.value, b.value))
        a, b, kind = self.together(a, b)
        if kind == "int":
            low = fold(*(-math.inf if x.low is None else x.low for x in (a, b)))
            said = "tl.maximum" if name == "larger" else "tl.minimum"
            return Tri(f"{said}({a.text}, {b.text})", ATOM, "int", None, None if low == -math.inf else low)
        if a.number or b.number:
            x, bound = (b, a) if a.number else (a, b)
            x = self.named(x)
            return Tri(f"tl.where({x.text} {sign} {bound.text}, {bound.text}, {x.text})")
        return self.function(f"elementwise.{name}({{}}, {{}})", a, b)

    def logic(self, sign: str, rank: int, a: Tri, b: Tri) -> Tri:
        a, b = (x if x.kind == "bool" else Tri(f"{x.at(COMPARE + 1)} != 0", COMPARE, "bool") for x in (a, b))
        for x, y in ((a, b), (b, a)):
            if x.number:
                return (y if x.value else x) if sign == "&" else (x if x.value else y)
        a, b = self.shorter(a, b)
        return Tri(f"{a.at(rank)} {sign} {b.at(rank + 1)}", rank, "bool")

    def invert(self, a: Tri) -> Tri:
        if a.number:
            return literal(not a.value)
        return Tri(f"~{a.at(UNARY)}", UNARY, "bool") if a.kind == "bool" else self.invert(_true(a))

    def uniform(self, seed: Tri, op_id: Tri, layer: Tri, index: Tri) -> Tri:
        seed = Tri(f"tl.full([], {seed.text}, tl.int64)") if seed.number else seed
        op_id, layer, index = (self.named(x) for x in (op_id, layer, index))
        return Tri(f"elementwise.uniform({seed.text}, {op_id.text}, {layer.text}, {index.text}).to({self.host.acc})")


_TL = ("sqrt", "rsqrt", "exp", "log", "erf", "sin", "cos")


def _positive(b: Tri) -> bool:
    """Is the divisor known to be above 0?"""
    return b.low is not None and b.low > 0


def _true(a: Tri) -> Tri:
    return Tri(f"{a.at(COMPARE + 1)} != 0", COMPARE, "bool")
