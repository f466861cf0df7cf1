"""Global indices of elements, and formulas with constants."""

import sympy as sp

from weft.ir.formula import parse, symbol
from weft.ir.types import Dims


def row_major(dims: Dims) -> sp.Expr:
    """The global logical index over some dims: i_a * n_b * n_c + i_b * n_c + i_c; 0 over none."""
    index: sp.Expr = sp.Integer(0)
    for d in dims:
        index = index * symbol(f"n_{d}") + symbol(f"i_{d}")
    return index


def constants(formula: str, **values: sp.Expr) -> sp.Expr:
    """A formula with some of its names replaced by expressions."""
    return parse(formula).xreplace({symbol(k): v for k, v in values.items()})
