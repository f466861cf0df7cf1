"""Which dtype sums are kept in: the one place that says "statistics are fp32"."""

from weft.ir.types import Val


def accumulate(*values: Val) -> str:
    """f64 if any value is, else f32: a half-precision operand never makes a half-precision sum."""
    return "f64" if any(v.type.dtype == "f64" for v in values) else "f32"
