"""How a formula is spelled in ONNX: one entry per key of `weft.ir.formula.evaluate.KEYS`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weft.codegen.onnx.emitter import Emitter

FLOAT, INT, BOOL = "f32", "i64", "bool"


@dataclass(frozen=True, slots=True)
class Term:
    """A value inside a formula: the ONNX name and the kind of number it holds."""

    name: str
    kind: str


_SIMPLE = {
    "exp": "Exp",
    "log": "Log",
    "tanh": "Tanh",
    "erf": "Erf",
    "sin": "Sin",
    "cos": "Cos",
    "sqrt": "Sqrt",
    "sigmoid": "Sigmoid",
    "relu": "Relu",
    "softplus": "Softplus",
}
_KEEP = {"neg": "Neg", "abs": "Abs", "sign": "Sign"}
_ARITHMETIC = {"add": "Add", "sub": "Sub", "mul": "Mul", "max": "Max", "min": "Min"}
_COMPARE = {"lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual", "eq": "Equal"}
_LOGIC = {"and": "And", "or": "Or"}


def table(e: "Emitter") -> dict[str, Callable[..., Term]]:
    """The `evaluate` table that appends ONNX nodes to `e`. Integers stay i64, so indices and masks are exact."""
    t = _Spelling(e)
    entries: dict[str, Callable[..., Term]] = {
        "const": t.const,
        "div": lambda a, b: t.node("Div", FLOAT, t.real(a), t.real(b)),
        "pow": lambda a, k: t.node("Pow", a.kind, a, t.const(float(k) if a.kind == FLOAT else k)),
        "rsqrt": lambda a: t.node("Reciprocal", FLOAT, t.node("Sqrt", FLOAT, t.real(a))),
        "floor": lambda a: t.node("Floor", FLOAT, a) if a.kind == FLOAT else a,
        "floordiv": t.floordiv,
        "mod": t.mod,
        "where": t.where,
        "not": lambda a: t.node("Not", BOOL, a),
        "ne": lambda a, b: t.node("Not", BOOL, t.node("Equal", BOOL, *t.like(a, b))),
        "silu": lambda a: t.mul(t.real(a), t.node("Sigmoid", FLOAT, t.real(a))),
        "gelu": lambda a: t.node("Gelu", FLOAT, t.real(a)),
        "gelu_tanh": lambda a: t.node("Gelu", FLOAT, t.real(a), approximate="tanh"),
        "logaddexp": t.logaddexp,
    }
    for key, kind in _SIMPLE.items():
        entries[key] = lambda a, kind=kind: t.node(kind, FLOAT, t.real(a))
    for key, kind in _KEEP.items():
        entries[key] = lambda a, kind=kind: t.node(kind, a.kind, a)
    for key, kind in _ARITHMETIC.items():
        entries[key] = lambda a, b, kind=kind: t.arithmetic(kind, a, b)
    for key, kind in _COMPARE.items():
        entries[key] = lambda a, b, kind=kind: t.node(kind, BOOL, *t.like(a, b))
    for key, kind in _LOGIC.items():
        entries[key] = lambda a, b, kind=kind: t.node(kind, BOOL, a, b)
    return entries


class _Spelling:
    def __init__(self, e: "Emitter") -> None:
        self.e = e

    def node(self, op_type: str, kind: str, *terms: Term, **attributes: Any) -> Term:
        return Term(self.e.node(op_type, *(t.name for t in terms), **attributes), kind)

    def const(self, value: bool | int | float) -> Term:
        kind = BOOL if isinstance(value, bool) else INT if isinstance(value, int) else FLOAT
        return Term(self.e.const(value, kind), kind)

    def to(self, kind: str, a: Term) -> Term:
        return a if a.kind == kind else Term(self.e.cast(a.name, kind), kind)

    def real(self, a: Term) -> Term:
        return self.to(FLOAT, a)

    def like(self, *terms: Term, least: str = BOOL) -> tuple[Term, ...]:
        """All of the widest kind among them, `least` or wider."""
        widest = next(k for k in (FLOAT, INT, BOOL) if k == least or any(t.kind == k for t in terms))
        return tuple(self.to(widest, t) for t in terms)

    def arithmetic(self, op_type: str, a: Term, b: Term) -> Term:
        a, b = self.like(a, b, least=INT)
        return self.node(op_type, a.kind, a, b)

    def mul(self, a: Term, b: Term) -> Term:
        return self.node("Mul", a.kind, a, b)

    def mod(self, a: Term, b: Term) -> Term:
        a, b = self.like(a, b)
        if a.kind == INT:
            return self.node("Mod", INT, a, b)
        return self.node("Sub", FLOAT, a, self.mul(b, self.floordiv(a, b)))

    def floordiv(self, a: Term, b: Term) -> Term:
        """floor(a / b): ONNX divides integers towards zero, so the remainder is taken off first."""
        a, b = self.like(a, b)
        if a.kind == INT:
            return self.node("Div", INT, self.node("Sub", INT, a, self.mod(a, b)), b)
        return self.node("Floor", FLOAT, self.node("Div", FLOAT, a, b))

    def where(self, condition: Term, a: Term, b: Term) -> Term:
        a, b = self.like(a, b)
        return self.node("Where", a.kind, condition, a, b)

    def logaddexp(self, a: Term, b: Term) -> Term:
        """max + softplus(-|a - b|): never overflows."""
        a, b = self.real(a), self.real(b)
        gap = self.node("Neg", FLOAT, self.node("Abs", FLOAT, self.node("Sub", FLOAT, a, b)))
        return self.node("Add", FLOAT, self.node("Max", FLOAT, a, b), self.node("Softplus", FLOAT, gap))
