"""Formulas: SymPy expressions over operands `_0 _1 ..`, lets `_t0 ..`, coordinates `i_dim` and sizes `n_dim`.

`parse` is the only way from text to an expression (see `weft.ir.reader`), `show` the way back: parse(show(e)) == e for
every formula in normal form, which is what `normal` gives."""

from collections.abc import Callable, Collection, Mapping
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

import sympy as sp
from sympy.logic.boolalg import BooleanAtom

from weft.errors import FormulaError
from weft.ir.functions import FUNCTIONS, NAMES, absolute, logaddexp, piecewise, sigmoid, softplus

CONSTANTS: dict[str, Any] = {"pi": sp.pi, "oo": sp.oo, "inf": sp.oo, "True": sp.true, "False": sp.false}
MAX_NODES = 200
Table = tuple[tuple[str, Any], ...]


@cache
def symbol(name: str) -> sp.Symbol:
    """The symbol of a name: coordinates `i_` and sizes `n_` are nonnegative integers, all others are real."""
    if name[:2] in ("i_", "n_"):
        return sp.Symbol(name, integer=True, nonnegative=True)
    return sp.Symbol(name, real=True)


def operand(i: int) -> sp.Symbol:
    """The i-th operand of a map."""
    return symbol(f"_{i}")


def local(i: int) -> sp.Symbol:
    """The i-th let of a map."""
    return symbol(f"_t{i}")


def parse(
    text: str,
    names: Mapping[str, sp.Basic] | Collection[str] | None = None,
    *,
    open: bool | None = None,
    limit: int = MAX_NODES,
    forms: Mapping[str, Mapping[str, sp.Basic]] | None = None,
) -> Any:
    """Text -> normal expression. Floats become exact rationals.

    names: what an identifier stands for, or just the identifiers allowed; any other one is an error. None, or
    open=True: any other identifier is a symbol of its own. limit: most syntax nodes; text from outside keeps the
    default. forms: what `form(name)` stands for, by form and name. Raises FormulaError with column and way out."""
    table = tuple(names.items()) if isinstance(names, Mapping) else tuple((n, symbol(n)) for n in names or ())
    more = tuple((form, tuple(of.items())) for form, of in (forms or {}).items())
    return _parse(text, table, names is None if open is None else open, limit, more)


@lru_cache(maxsize=1 << 12)
def _parse(text: str, names: Table, open: bool, limit: int, forms: tuple[tuple[str, Table], ...]) -> Any:
    from weft.ir.reader import Reader

    return normal(Reader(text, dict(names), open, limit, {form: dict(of) for form, of in forms}).read())


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


_ATOM, _POWER, _PRODUCT, _SUM, _RELATION, _NOT, _AND, _OR = range(8)
_SIGN = {sp.Lt: "<", sp.Le: "<=", sp.Gt: ">", sp.Ge: ">=", sp.Eq: "==", sp.Ne: "!="}


def show(e: Any, names: Mapping[sp.Symbol, str] | None = None) -> str:
    """The text of a formula, with other names for some symbols. Raises FormulaError on what `parse` could not read."""
    return _show(e, names or {})[0]


def _show(e: Any, names: Mapping[Any, str]) -> tuple[str, int]:
    def inner(x: Any, level: int) -> str:
        text, at = _show(x, names)
        return text if at <= level else f"({text})"

    if isinstance(e, sp.Symbol):
        return names.get(e, e.name), _ATOM
    if e.is_Number and e.is_finite:
        return str(e), _ATOM if e.is_Integer and e >= 0 else _PRODUCT
    for name, constant in CONSTANTS.items():
        if e == constant and type(e) is type(constant):
            return name, _ATOM
    if e == -sp.oo:
        return "-oo", _PRODUCT
    if e == sp.E:
        return "exp(1)", _ATOM
    if e.is_Add:
        terms = [inner(a, _PRODUCT) for a in e.args]
        return "".join([terms[0], *(f" - {t[1:]}" if t[0] == "-" else f" + {t}" for t in terms[1:])]), _SUM
    if e.is_Mul:
        return _product(e, inner), _PRODUCT
    if e.is_Pow:
        return _pow(e, inner)
    if type(e) in _SIGN:
        return f"{inner(e.lhs, _SUM)} {_SIGN[type(e)]} {inner(e.rhs, _SUM)}", _RELATION
    if isinstance(e, sp.Not):
        return f"not {inner(e.args[0], _ATOM)}", _NOT
    if isinstance(e, sp.And | sp.Or):
        word, level = (" and ", _AND) if isinstance(e, sp.And) else (" or ", _OR)
        return word.join(inner(a, level - 1) for a in e.args), level
    if type(e) in NAMES:
        return f"{NAMES[type(e)]}({', '.join(inner(a, _OR) for a in e.args)})", _ATOM
    hint = "use the functions of weft.ir.functions"
    raise FormulaError(f"{type(e).__name__} is not part of the formula language", hint=hint)


def _pow(e: Any, inner: Callable[[Any, int], str]) -> tuple[str, int]:
    if e.exp == sp.S.Half or e.exp == -sp.S.Half:
        return f"{'sqrt' if e.exp.p > 0 else 'rsqrt'}({inner(e.base, _OR)})", _ATOM
    if e.exp == -1:
        return f"1/{inner(e.base, _POWER)}", _PRODUCT
    if not e.exp.is_Rational or e.exp.q > 2:  # SymPy's own form of exp(y*log(x))
        return f"exp({inner(e.exp, _POWER)}*log({inner(e.base, _OR)}))", _ATOM
    return f"{inner(e.base, _ATOM)}**{e.exp if e.exp.is_Integer else f'({e.exp})'}", _POWER


def _product(e: Any, inner: Callable[[Any, int], str]) -> str:
    """Numerator first, then one division for each denominator: `a*b/c/d`."""
    coefficient, factors = e.as_coeff_mul()
    if not coefficient.is_Rational:
        coefficient, factors = sp.S.One, e.args
    top = [] if abs(coefficient.p) == 1 else [str(abs(coefficient.p))]
    below = [str(coefficient.q)] if coefficient.q != 1 else []
    for f in factors:
        if f.is_Pow and f.exp.is_Rational and f.exp < 0 and f.exp.is_Integer:
            below.append(inner(1 / f, _POWER))
        else:
            top.append(inner(f, _POWER))
    return ("-" if coefficient < 0 else "") + "/".join(["*".join(top) or "1", *below])
