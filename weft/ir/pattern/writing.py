"""Formulas as text: in the grammar, for patterns that were computed; and short, for messages."""

from weft.ir.pattern.expression import Affine
from weft.ir.pattern.formula import BatchCondition, Formula, InTable, Junction, Leaf

_SIGNS = {"ge": ">=", "eq": "==", "ne": "!="}


def written(f: Formula) -> str:
    """A formula in the grammar: it reads back as a formula of the same meaning."""
    if isinstance(f, bool):
        return "true" if f else "false"
    if isinstance(f, Junction):
        inner = [f"({written(p)})" if isinstance(p, Junction) and f.op == "and" else written(p) for p in f.parts]
        return f" {f.op} ".join(inner)
    if isinstance(f, BatchCondition):
        return f"not {f.name}" if f.negated else f.name
    if isinstance(f, InTable):
        return f"not {f.table.text()}" if f.negated else f.table.text()
    left, right = _sides(f.x)
    return f"{left} {_SIGNS[f.op]} {right}"


def describe(leaf: Leaf) -> str:
    """An atom, cut short for messages."""
    text = written(leaf)
    return text if len(text) <= 80 else text[:76] + " ..."


def _sides(x: Affine) -> tuple[str, str]:
    """den * x as a difference of two sums without minus signs."""
    terms = [(w, name) for w, name in ((x.q, "q"), (x.k, "k"), (x.h, "h")) if w]
    terms += [(w, f"{_value(y)} % {m}") for (y, m), w in x.mods]
    terms += [(x.c, "")] if x.c else []
    left, right = ([_term(abs(w), t) for w, t in terms if (w > 0) is side] for side in (True, False))
    return " + ".join(left) or "0", " + ".join(right) or "0"


def _term(weight: int, text: str) -> str:
    if not text or weight == 1:
        return text or str(weight)
    return f"{weight} * ({text})" if "%" in text else f"{weight} * {text}"


def _value(x: Affine) -> str:
    """An expression as an operand of %."""
    left, right = _sides(x)
    text = left if right == "0" else f"{left} - ({right})" if "+" in right else f"{left} - {right}"
    text = f"({text}) // {x.den}" if x.den > 1 else text
    return text if text.isalnum() else f"({text})"
