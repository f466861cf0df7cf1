"""Symbols and the normal form of formulas: what the `reader` here builds, and `weft.ir.formula` reads and shows."""

from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

import sympy as sp
from sympy.logic.boolalg import BooleanAtom

from weft.ir.formula.functions import FUNCTIONS, absolute, logaddexp, piecewise, sigmoid, softplus

CONSTANTS: dict[str, Any] = {"pi": sp.pi, "oo": sp.oo, "inf": sp.oo, "True": sp.true, "False": sp.false}
MAX_NODES = 200


@cache
def symbol(name: str) -> sp.Symbol:
    """The symbol of a name: coordinates `i_` and sizes `n_` are nonnegative integers, all others are real."""
    if name[:2] in ("i_", "n_"):
        return sp.Symbol(name, integer=True, nonnegative=True)
    return sp.Symbol(name, real=True)


@lru_cache(maxsize=1 << 14)
def names_in(e: sp.Basic) -> frozenset[str]:
    """The names that a formula reads. Kept, as every pass asks for those of every map, and SymPy walks the formula."""
    found: Any = e.free_symbols
    return frozenset(map(str, found))


@lru_cache(maxsize=1 << 15, typed=True)
def normal(e: Any) -> Any:
    """The normal form of an expression, a Python number or a bool.

    Rebuilt bottom up; floats become the rationals they print as; Piecewise, Max, Min, Abs and ceiling become ours; what
    would overflow or cancel becomes the function that does not: 1 - sigmoid(x) is sigmoid(-x), 1/(1 + exp(-x)) is
    sigmoid(x), log(1 + exp(x)) is softplus(x), log(exp(a) + exp(b)) is logaddexp(a, b)."""
    if not isinstance(e, sp.Basic):
        return _number(e)
    if isinstance(e, sp.Float):
        return _number(float(e))
    if not e.args or isinstance(e, BooleanAtom):
        return e
    for _ in range(4):  # a rewrite can open another; in practice the second round changes nothing
        last, e = e, _rebuilt(e)
        if e == last or not e.args:
            break
    return e


def _rebuilt(e: Any) -> Any:
    args: Any = tuple(normal(a) for a in e.args)
    if isinstance(e, sp.Piecewise):
        return piecewise(*(a.args for a in args))
    return _stable(e.func(*args) if args != e.args or isinstance(e, sp.Mul | sp.Add) else e)


def _number(v: Any) -> Any:
    if isinstance(v, bool):
        return sp.true if v else sp.false
    if isinstance(v, int):
        return sp.Integer(v)
    if not isinstance(v, float):
        raise TypeError(f"a formula is text, a number or a SymPy expression, not {type(v).__name__}")
    if v - v != 0:
        return sp.nan if v != v else sp.oo if v > 0 else -sp.oo
    exact = Fraction(repr(v))  # the decimal that was written, not its nearest binary fraction
    return sp.Rational(exact.numerator, exact.denominator)


def _stable(e: Any) -> Any:
    if isinstance(e, sp.Max | sp.Min):
        return FUNCTIONS["max" if isinstance(e, sp.Max) else "min"][0](*e.args)
    if isinstance(e, sp.Abs):
        return absolute(e.args[0])
    if isinstance(e, sp.ceiling):
        return -sp.floor(-e.args[0])
    if e.is_Add:
        return _complement(e)
    if e.is_Mul:
        return _quotient(e)
    if e.is_Pow and e.exp == -1 and (a := _one_plus_exp(e.base)) is not None:
        return sigmoid(-a)
    if isinstance(e, sp.floor):
        return e.args[0] if _whole(e.args[0]) else e
    if isinstance(e, sp.log) and e.args[0].is_Add and len(e.args[0].args) == 2:
        if (a := _one_plus_exp(e.args[0])) is not None:
            return softplus(a)
        if all(isinstance(t, sp.exp) for t in e.args[0].args):
            return logaddexp(*(t.args[0] for t in e.args[0].args))
    return e


def _whole(e: Any) -> bool:
    """A whole number by its form; SymPy would also ask whether it is finite, and then cannot tell."""
    if isinstance(e, sp.Add | sp.Mul):
        return all(_whole(a) for a in e.args)
    return isinstance(e, sp.floor) or e.is_integer is True


def _one_plus_exp(e: Any) -> Any:
    """a, when e is 1 + exp(a)."""
    if e.is_Add and len(e.args) == 2 and e.args[0] == 1 and isinstance(e.args[1], sp.exp):
        return e.args[1].args[0]
    return None


def _complement(e: Any) -> Any:
    """u - u sigmoid(x) -> u sigmoid(-x), until nothing is left to rewrite."""
    have = list(e.args)
    for t in e.args:
        for f in sp.Mul.make_args(t):
            if isinstance(f, sigmoid) and (rest := -t / f) in have:
                left = [x for x in have if x not in (t, rest)]
                return normal(sp.Add(*left, normal(rest * sigmoid(_minus(f)))))
    return e


def _minus(f: Any) -> Any:
    """-x, of f(x)."""
    return -f.args[0]


def _quotient(e: Any) -> Any:
    """exp(x) sigmoid(-x) -> sigmoid(x)."""
    exps: dict[Any, Any] = {f.args[0]: f for f in e.args if isinstance(f, sp.exp)}
    for f in e.args:
        if isinstance(f, sigmoid) and (x := _minus(f)) in exps:
            return normal(sp.Mul(sigmoid(x), *(y for y in e.args if y not in (f, exps[x]))))
    return e
