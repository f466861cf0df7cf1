"""An attention pattern as the mask function that FlexAttention compiles: closures over plain integers."""

from collections.abc import Callable
from typing import Any

from weft.ir.pattern import Pattern
from weft.ir.pattern.expression import Affine
from weft.ir.pattern.formula import Atom, Formula, Junction

Term = Callable[[Any, Any, Any], Any]


def mask(pattern: Pattern) -> Callable[..., Any]:
    """mask(b, h, q, k) -> may q see k. ValueError: the pattern is no formula of the indices alone."""
    if pattern.multiset:
        raise ValueError("a mask cannot count a key twice")
    see = _formula(pattern.formula)
    return lambda b, h, q, k: see(q, k, h)


def _formula(f: Formula) -> Term:
    if isinstance(f, bool):
        return lambda q, k, h: (q >= 0) == f
    if isinstance(f, Junction):
        return _joined(f.op, [_formula(p) for p in f.parts])
    if isinstance(f, Atom):
        x = _affine(f.x)
        if f.op == "ge":
            return lambda q, k, h: x(q, k, h) >= 0
        return (lambda q, k, h: x(q, k, h) == 0) if f.op == "eq" else (lambda q, k, h: x(q, k, h) != 0)
    raise ValueError("the pattern reads a table or metadata")


def _joined(op: str, parts: list[Term]) -> Term:
    def both(q: Any, k: Any, h: Any) -> Any:
        out = parts[0](q, k, h)
        for part in parts[1:]:
            out = out & part(q, k, h) if op == "and" else out | part(q, k, h)
        return out

    return both


def _affine(x: Affine) -> Term:
    """`weft.ir.pattern.expression.evaluate`, its structure walked once."""
    mods = [(_affine(inner), m, w) for (inner, m), w in x.mods]

    def value(q: Any, k: Any, h: Any) -> Any:
        out = x.q * q + x.k * k + x.h * h + x.c
        for inner, m, w in mods:
            out = out + w * (inner(q, k, h) % m)
        return out // x.den if x.den > 1 else out

    return value
