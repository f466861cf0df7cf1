"""A pattern as a SymPy condition, for masks in generated code and in graphs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weft.errors import FormulaError
from weft.ir.pattern import expression as ex
from weft.ir.pattern.formula import Atom, Formula, InTable, Junction, Leaf
from weft.ir.pattern.pattern import Pattern
from weft.ir.pattern.writing import describe


def to_sympy(
    pattern: Pattern,
    q: Any,
    k: Any,
    h: Any = None,
    given: Mapping[Leaf, Any] | None = None,
) -> Any:
    """A condition in q, k, h: comparisons with 0 over + * Mod, And, Or; whole numbers only, no division.

    given: for each of `opaque_atoms(pattern)` the condition that stands for it; for a static table in a multiset
    pattern, its count. All are SymPy expressions. The result is a condition, or for a multiset pattern a count.
    """
    import sympy  # SymPy, which `weft schema` does without

    writer = _FormulaWriter(pattern, q, k, h, given or {}, sympy)
    return writer.count(pattern.formula) if pattern.multiset else writer.condition(pattern.formula)


@dataclass(frozen=True)
class _FormulaWriter:
    pattern: Pattern
    q: Any
    k: Any
    h: Any
    given: Mapping[Leaf, Any]
    sp: Any  # the sympy module, imported only when a pattern is written

    def fraction(self, x: ex.Affine) -> tuple[Any, int]:
        """The value as (numerator, denominator), the numerator free of divisions: x % m = (num % (m den)) / den."""
        total: Any = self.sp.Integer(x.c) + x.q * self.q + x.k * self.k + (x.h * self.h if x.h else 0)
        den = 1
        for (y, m), w in x.mods:
            num, d = self.fraction(y)
            common = math.lcm(den, d)
            total = total * (common // den) + w * (common // d) * self.sp.Mod(num, m * d)
            den = common
        return total, den * x.den

    def leaf(self, f: Leaf) -> Any:
        if isinstance(f, Atom):
            if self.h is None and ex.uses_head(f.x):
                raise FormulaError("this pattern differs by head: say which head", self.pattern.text)
            num = self.fraction(f.x)[0]
            return {"ge": self.sp.Ge, "eq": self.sp.Eq, "ne": self.sp.Ne}[f.op](num, 0)
        known = self.known(f._replace(negated=False))
        if self.pattern.multiset and isinstance(f, InTable):
            return self.sp.Le(known, 0) if f.negated else self.sp.Gt(known, 0)
        return self.sp.Not(known) if f.negated else known

    def known(self, f: Leaf) -> Any:
        if f not in self.given:
            raise FormulaError(f"no expression was given for {describe(f)}", self.pattern.text)
        return self.given[f]

    def condition(self, f: Formula) -> Any:
        if isinstance(f, bool):
            return self.sp.true if f else self.sp.false
        if isinstance(f, Junction):
            return (self.sp.And if f.op == "and" else self.sp.Or)(*map(self.condition, f.parts))
        return self.leaf(f)

    def count(self, f: Formula) -> Any:
        if isinstance(f, Junction):
            return (self.sp.Mul if f.op == "and" else self.sp.Max)(*map(self.count, f.parts))
        if isinstance(f, InTable) and not f.negated:
            return self.known(f)
        return self.sp.Piecewise((1, self.condition(f)), (0, True))
