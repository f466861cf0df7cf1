"""Formulas: SymPy expressions over operands `_0 _1 ..`, lets `_t0 ..`, coordinates `i_dim` and sizes `n_dim`.

`parse` is the only way from text to an expression: a walk over Python's syntax tree that knows a closed list of forms
and functions. Nothing is ever evaluated, and SymPy never sees the text. `show` writes what `parse` reads:
parse(show(e)) == e for every normal formula. `normal` is that normal form."""

import ast
import difflib
import re
from collections.abc import Callable, Collection, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy as sp
from sympy.logic.boolalg import Boolean, BooleanAtom

from weft.errors import FormulaError
from weft.ir.functions import FUNCTIONS, NAMES, maximum, minimum, sigmoid

MAX_TEXT, MAX_NODES, MAX_DEPTH, MAX_EXPONENT, MAX_DIGITS, MAX_BITS = 4_000, 200, 60, 64, 40, 1_200
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONSTANTS: dict[str, Any] = {"pi": sp.pi, "oo": sp.oo, "inf": sp.oo, "True": sp.true, "False": sp.false}
_COMPARE: dict[type, Callable[..., Any]] = {
    **{ast.Lt: sp.Lt, ast.LtE: sp.Le, ast.Gt: sp.Gt, ast.GtE: sp.Ge, ast.Eq: sp.Eq, ast.NotEq: sp.Ne}
}


@lru_cache(maxsize=None)
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
    text: str, names: Mapping[str, sp.Basic] | Collection[str] | None = None, *, open: bool | None = None,
    limit: int = MAX_NODES,
) -> Any:
    """Text -> normal expression. Floats become exact rationals.

    names: what an identifier stands for, or just the identifiers allowed; any other one is an error. None, or
    open=True: any other identifier is a symbol of its own. limit: most syntax nodes; text from outside keeps the
    default. Raises FormulaError with the column and a way out."""
    table = tuple(names.items()) if isinstance(names, Mapping) else tuple((n, symbol(n)) for n in names or ())
    return _parse(text, table, names is None if open is None else open, limit)


@lru_cache(maxsize=1 << 12)
def _parse(text: str, names: tuple[tuple[str, Any], ...], open: bool, limit: int) -> Any:
    return normal(_Reader(text, dict(names), open, limit).read())


class _Reader:
    """One walk over one formula's syntax tree."""

    def __init__(self, text: str, names: dict[str, Any], open: bool, limit: int) -> None:
        self.text, self.names, self.open, self.limit = text, names, open, limit
        self.count = 0

    def error(self, node: ast.AST | None, message: str, hint: str = "") -> FormulaError:
        column = getattr(node, "col_offset", 0) + 1 - getattr(self, "shift", 0)
        return FormulaError(message, self.text[:200], max(1, min(column, len(self.text) + 1)), hint)

    def read(self) -> Any:
        if len(self.text) > MAX_TEXT * max(1, self.limit // MAX_NODES):
            raise self.error(None, f"a formula of {len(self.text)} characters is too long", "split it with `let`")
        if not self.text.isascii() or not self.text.isprintable():
            at = next(i for i, c in enumerate(self.text) if not (c.isascii() and c.isprintable()))
            raise FormulaError(f"character {self.text[at]!a} is not allowed", self.text[:200], at + 1, "use plain ASCII")
        stripped = self.text.lstrip()
        self.shift = len(stripped) - len(self.text)
        try:
            tree = ast.parse(stripped, mode="eval")
        except SyntaxError as e:
            column = (e.offset or 1) - self.shift
            raise FormulaError(f"not a formula: {e.msg}", self.text[:200], column, "write it like `a*x + b`") from None
        except (ValueError, MemoryError, RecursionError):
            raise self.error(None, "the formula is nested too deeply", "split it with `let`") from None
        return self.go(tree.body, 0)

    def go(self, n: ast.expr, depth: int) -> Any:
        self.count += 1
        if self.count > self.limit:
            raise self.error(n, f"a formula of more than {self.limit} parts is too long", "split it with `let`")
        if depth > MAX_DEPTH * max(1, self.limit // MAX_NODES):
            raise self.error(n, "the formula is nested too deeply", "split it with `let`")
        try:
            out = self.form(n, depth + 1)
        except FormulaError:
            raise
        except (TypeError, ValueError, ArithmeticError, AttributeError, RecursionError) as e:
            raise self.error(n, f"this does not make sense: {str(e)[:80]}", "numbers and conditions do not mix") from None
        if isinstance(out, sp.Basic) and out.has(sp.zoo, sp.nan):
            raise self.error(n, "divides by zero", "guard the divisor")
        return out

    def number(self, n: ast.expr, depth: int) -> Any:
        out = self.go(n, depth)
        if isinstance(out, Boolean) and not isinstance(out, sp.Symbol) or isinstance(out, sp.Tuple):
            raise self.error(n, "expected a number, found a condition", "write where(condition, a, b)")
        return out

    def condition(self, n: ast.expr, depth: int) -> Any:
        out = self.go(n, depth)
        if not isinstance(out, Boolean):
            raise self.error(n, "expected a condition, found a number", "compare it, as in `x > 0`")
        return out

    def form(self, n: ast.expr, d: int) -> Any:
        match n:
            case ast.Constant(value=bool() as v):
                return sp.true if v else sp.false
            case ast.Constant(value=int() as v):
                if v >= 10**MAX_DIGITS:
                    raise self.error(n, "the number is too long", f"at most {MAX_DIGITS} digits")
                return sp.Integer(v)
            case ast.Constant(value=float() as v) if v - v == 0:
                exact = Fraction(repr(v))  # the decimal that was written, not its nearest binary fraction
                return sp.Rational(exact.numerator, exact.denominator)
            case ast.Name(id=name):
                return self.name(n, name)
            case ast.UnaryOp(op=ast.USub(), operand=x):
                return -self.number(x, d)
            case ast.UnaryOp(op=ast.UAdd(), operand=x):
                return self.number(x, d)
            case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=x):
                return sp.Not(self.condition(x, d))
            case ast.BinOp():
                return self.binary(n, d)
            case ast.BoolOp(op=o, values=v):
                return (sp.And if isinstance(o, ast.And) else sp.Or)(*(self.condition(x, d) for x in v))
            case ast.Compare(left=left, ops=ops, comparators=right) if all(type(o) in _COMPARE for o in ops):
                v = [self.number(x, d) for x in (left, *right)]
                return sp.And(*(_COMPARE[type(o)](a, b) for o, a, b in zip(ops, v, v[1:])))
            case ast.Call(func=ast.Name(id=f), args=args, keywords=[]):
                return self.call(n, f, args, d)
            case _:
                raise self.error(n, "this form is not allowed in a formula", "numbers, names, + - * / ** // %, comparisons, functions")

    def name(self, n: ast.expr, name: str) -> Any:
        if name in self.names:
            return self.names[name]
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        if self.open and not name.startswith("__") and name not in FUNCTIONS:
            return symbol(name)
        near = difflib.get_close_matches(name, self.names, 1)
        known = ", ".join(sorted(self.names)[:12]) or "none"
        raise self.error(n, f"unknown name {name[:40]!r}", f"did you mean {near[0]!r}?" if near else f"known names: {known}")

    def call(self, n: ast.expr, f: str, args: list[ast.expr], d: int) -> Any:
        if f not in FUNCTIONS:
            near = difflib.get_close_matches(f, FUNCTIONS, 1)
            raise self.error(n, f"unknown function {f[:40]!r}", f"did you mean {near[0]!r}?" if near else "see docs/spec.md")
        build, least, most = FUNCTIONS[f]
        if not least <= len(args) <= most:
            want = str(least) if least == most else f"{least} to {most}"
            raise self.error(n, f"{f} takes {want} arguments, found {len(args)}", "add or remove some")
        if f == "where":
            return build(self.condition(args[0], d), *(self.number(a, d) for a in args[1:]))
        if f == "Piecewise":
            return self.piecewise(n, args, d)
        return build(*(self.number(a, d) for a in args))

    def piecewise(self, n: ast.expr, args: list[ast.expr], d: int) -> Any:
        pairs: list[Any] = []
        for a in args:
            if not isinstance(a, ast.Tuple) or len(a.elts) != 2:
                raise self.error(a, "Piecewise takes (value, condition) pairs", "write where(condition, a, b)")
            pairs.append((self.number(a.elts[0], d), self.condition(a.elts[1], d)))
        if pairs[-1][1] != sp.true:
            raise self.error(n, "Piecewise has no default", "end with (value, True)")
        return sp.Piecewise(*pairs)

    def binary(self, n: ast.BinOp, d: int) -> Any:
        match n.op:
            case ast.Add() | ast.Sub():
                return sp.Add(*self.terms(n, 1, d))
            case ast.Mult() | ast.Div():
                return sp.Mul(*self.factors(n, 1, d))
            case ast.FloorDiv():
                return sp.floor(self.number(n.left, d) / self.number(n.right, d))
            case ast.Mod():
                return sp.Mod(self.number(n.left, d), self.number(n.right, d))
            case ast.BitAnd():
                return sp.And(self.condition(n.left, d), self.condition(n.right, d))
            case ast.BitOr():
                return sp.Or(self.condition(n.left, d), self.condition(n.right, d))
            case ast.Pow():
                return self.power(n, d)
            case _:
                raise self.error(n, "this operator is not allowed in a formula", "use + - * / ** // %")

    def terms(self, n: ast.expr, sign: int, d: int) -> list[Any]:
        """The summands of a chain, all at once: building pair by pair would reassociate what `show` wrote."""
        if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Add | ast.Sub):
            left, right = self.terms(n.left, sign, d), n.right
            return [*left, *self.terms(right, -sign if isinstance(n.op, ast.Sub) else sign, d)]
        return [sign * self.number(n, d)]

    def factors(self, n: ast.expr, power: int, d: int) -> list[Any]:
        if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Mult | ast.Div):
            left, right = self.factors(n.left, power, d), n.right
            return [*left, *self.factors(right, -power if isinstance(n.op, ast.Div) else power, d)]
        if isinstance(n, ast.UnaryOp) and isinstance(n.op, ast.USub):
            return [sp.S.NegativeOne, *self.factors(n.operand, power, d)]
        out = self.number(n, d)
        return [out if power == 1 else 1 / out]

    def power(self, n: ast.BinOp, d: int) -> Any:
        base, exp = self.number(n.left, d), self.number(n.right, d)
        if not exp.is_Rational or exp.q > 2 or abs(exp.p) > MAX_EXPONENT:
            raise self.error(n.right, "an exponent must be a small whole number, 1/2 or -1/2", "write exp(y*log(x))")
        if base.is_Rational and max(base.p.bit_length(), base.q.bit_length()) * abs(exp.p) > MAX_BITS:
            raise self.error(n, "the power is too large", "write the number itself")
        out = base**exp
        if out.is_Pow and abs(out.exp.p) > MAX_EXPONENT:
            raise self.error(n.right, "the exponent is too large", f"at most {MAX_EXPONENT}")
        return out


def _cancel(terms: tuple[Any, ...]) -> Any:
    """u - u sigmoid(x) -> u sigmoid(-x), until nothing is left to rewrite."""
    have = list(terms)
    for t in terms:
        for f in sp.Mul.make_args(t):
            if isinstance(f, sigmoid) and (rest := -t / f) in have and t in have:
                have.remove(t)
                have.remove(rest)
                have.append(normal(rest * sigmoid(-f.args[0])))
                return normal(sp.Add(*have))
    return sp.Add(*terms)


@lru_cache(maxsize=1 << 15)
def normal(e: Any) -> Any:
    """The normal form: rebuilt bottom up, SymPy's Max, Min and ceiling replaced by ours, 1 - sigmoid(x) by sigmoid(-x)."""
    e = sp.sympify(e, strict=True)
    if not e.args or isinstance(e, BooleanAtom):
        return e
    args = tuple(normal(a) for a in e.args)
    if isinstance(e, sp.Max | sp.Min):
        build, _, _ = FUNCTIONS["max" if isinstance(e, sp.Max) else "min"]
        return build(*args)
    if isinstance(e, sp.ceiling):
        return -sp.floor(-args[0])
    if e.is_Add:
        return _cancel(sp.Add.make_args(sp.Add(*args)))
    return e if args == e.args and not e.is_Mul else e.func(*args)


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
    for name, constant in _CONSTANTS.items():
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
    if isinstance(e, sp.Piecewise):
        if len(e.args) == 2 and e.args[1].cond == sp.true:
            return f"where({inner(e.args[0].cond, _OR)}, {inner(e.args[0].expr, _OR)}, {inner(e.args[1].expr, _OR)})", _ATOM
        return f"Piecewise({', '.join(f'({inner(v, _OR)}, {inner(c, _OR)})' for v, c in e.args)})", _ATOM
    if type(e) in NAMES:
        return f"{NAMES[type(e)]}({', '.join(inner(a, _OR) for a in e.args)})", _ATOM
    raise FormulaError(f"{type(e).__name__} is not part of the formula language", hint="use the functions of weft.ir.functions")


def _pow(e: Any, inner: Callable[[Any, int], str]) -> tuple[str, int]:
    if e.exp == sp.S.Half or e.exp == -sp.S.Half:
        return f"{'sqrt' if e.exp.p > 0 else 'rsqrt'}({inner(e.base, _OR)})", _ATOM
    if e.exp == -1:
        return f"1/{inner(e.base, _POWER)}", _PRODUCT
    if not e.exp.is_Rational:
        raise FormulaError("a power with a symbolic exponent is not part of the formula language", hint="use exp and log")
    return f"{inner(e.base, _ATOM)}**{e.exp if e.exp.is_Integer else f'({e.exp})'}", _POWER


def _product(e: Any, inner: Callable[[Any, int], str]) -> str:
    """Numerator first, then one division for each denominator: `a*b/c/d`."""
    coefficient, factors = e.as_coeff_mul()
    top = [] if abs(coefficient.p) == 1 else [str(abs(coefficient.p))]
    below = [str(coefficient.q)] if coefficient.q != 1 else []
    for f in factors:
        if f.is_Pow and f.exp.is_Rational and f.exp < 0 and f.exp != -sp.S.Half:
            below.append(inner(1 / f, _POWER))
        else:
            top.append(inner(f, _POWER))
    return ("-" if coefficient < 0 else "") + "/".join(["*".join(top) or "1", *below])


def constant(e: Any) -> Any:
    """The Python number of a formula without symbols."""
    return int(e) if e.is_Integer else float(e)


__all__ = ["IDENTIFIER", "FormulaError", "constant", "local", "maximum", "minimum", "normal", "operand", "parse", "show", "symbol"]
