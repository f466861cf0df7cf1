"""Degrees of formulas in some of their symbols: 0 free of them, 1 affine, NONLINEAR anything else."""

from collections.abc import Mapping, Sequence
from typing import Any

import sympy as sp

from weft.ir.formula import local, operand
from weft.ir.formula.functions import where

NONLINEAR = 2


def degrees(lets: Sequence[sp.Expr], exprs: Sequence[sp.Expr], operands: Sequence[int]) -> list[int]:
    """The degree of each of a map's formulas, from those of its operands. One whose form leaves it open is multiplied
    out. Functions with a kink or a jump are not linear, though their second derivative is zero."""
    env: dict[sp.Basic, int] = {operand(i): d for i, d in enumerate(operands)}
    for i, e in enumerate(lets):
        env[local(i)] = _degree(e, env)
    out = [_degree(e, env) for e in exprs]
    return [_expanded(lets, e, env) if d == NONLINEAR else d for d, e in zip(out, exprs)]


def _degree(e: sp.Basic, env: Mapping[sp.Basic, int]) -> int:
    """An upper bound read off the form: sums, products, choices by conditions free of the states."""
    if not e.args:
        return env.get(e, 0)
    if isinstance(e, where):
        cond, a, b = (_degree(x, env) for x in e.args)
        return max(a, b) if cond == 0 else NONLINEAR
    below = [_degree(a, env) for a in e.args]
    if not any(below):
        return 0
    if isinstance(e, sp.Add):
        return max(below)
    return min(sum(below), NONLINEAR) if isinstance(e, sp.Mul) else NONLINEAR


def _expanded(lets: Sequence[sp.Expr], e: Any, env: Mapping[sp.Basic, int], limit: int = 300) -> int:
    """The degree once lets are substituted and products multiplied out; past `limit` operations it stays nonlinear."""
    for i in reversed(range(len(lets))):
        e = e.xreplace({local(i): lets[i]})
        if int(sp.count_ops(e)) > limit:
            return NONLINEAR
    return _degree(sp.expand(e), env)
