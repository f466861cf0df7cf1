"""Formulas: SymPy expressions over operands `_0 _1 ..`, lets `_t0 ..`, coordinates `i_dim` and sizes `n_dim`.

`parse` is the only way from text to an expression (see `weft.ir.formula.reader`), `show` the way back:
parse(show(e)) == e for every formula in normal form, which is what `normal` gives."""

from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any

import sympy as sp

from weft.errors import FormulaError
from weft.ir.formula.functions import NAMES
from weft.ir.formula.normal import CONSTANTS, MAX_NODES
from weft.ir.formula.normal import names_in as names_in
from weft.ir.formula.normal import normal as normal
from weft.ir.formula.normal import symbol as symbol
from weft.ir.formula.reader import ALONG as ALONG
from weft.ir.formula.reader import AlongDim as AlongDim
from weft.ir.formula.reader import Reader, Terms

Table = tuple[tuple[str, Any], ...]


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


def parse_terms(
    text: str,
    names: Mapping[str, sp.Basic],
    over: Collection[str],
    terms: Terms,
    forms: Mapping[str, Mapping[str, sp.Basic]] | None = None,
    matrices: Collection[str] = (),
) -> Any:
    """`parse` of a formula in which `sum(dim, e)` and its like may stand for the dims `over`, and `m(e)` for the
    matrices: a symbol of the result each, said in `terms`."""
    more = {form: dict(of) for form, of in (forms or {}).items()}
    return normal(Reader(text, dict(names), False, MAX_NODES, more, over, terms, matrices).read())


@lru_cache(maxsize=1 << 12)
def _parse(text: str, names: Table, open: bool, limit: int, forms: tuple[tuple[str, Table], ...]) -> Any:
    return normal(Reader(text, dict(names), open, limit, {form: dict(of) for form, of in forms}).read())


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
    hint = "use the functions of weft.ir.formula.functions"
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
