"""Formula text -> SymPy expression: a walk over Python's syntax tree that knows a closed list of forms and functions.

Nothing is evaluated, and SymPy never sees the text. The caps keep a hostile formula small, and fast to refuse."""

import ast
import difflib
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import sympy as sp
from sympy.logic.boolalg import Boolean

from weft.errors import FormulaError
from weft.ir.formula.functions import FUNCTIONS, NAMES, where
from weft.ir.formula.normal import CONSTANTS, MAX_NODES, normal, symbol

MAX_TEXT = 20  # characters for each syntax node allowed
MAX_DEPTH, MAX_EXPONENT, MAX_DIGITS, MAX_BITS = 60, 64, 40, 1_200
ALONG = ("sum", "softmax", "cumsum")
"""Functions of a dim, and of what they go along it with."""


@dataclass(frozen=True)
class AlongDim:
    """A term that reads its expression at more points than one: `form(dim, of)`, or a matrix `form` times it."""

    form: str
    dim: str
    of: Any


Terms = dict[sp.Symbol, AlongDim]
"""What a symbol stands for; those inside one stand before it."""
_SPACES = {ord(c): " " for c in "\n\r\t"}
_COMPARE: dict[type, Callable[..., Any]] = {
    ast.Lt: sp.Lt,
    ast.LtE: sp.Le,
    ast.Gt: sp.Gt,
    ast.GtE: sp.Ge,
    ast.Eq: sp.Eq,
    ast.NotEq: sp.Ne,
}


class Reader:
    """One walk over one formula's syntax tree."""

    def __init__(
        self,
        text: str,
        names: dict[str, Any],
        open: bool,
        limit: int,
        forms: dict[str, dict[str, Any]],
        over: Collection[str] = (),
        terms: Terms | None = None,
        matrices: Collection[str] = (),
    ) -> None:
        self.text, self.names, self.open, self.limit = text.translate(_SPACES), names, open, limit
        self.forms, self.over, self.along_dims = forms, over, terms if terms is not None else {}
        self.matrices = matrices
        self.count, self.digits = 0, MAX_DIGITS * (1 if limit == MAX_NODES else 25)
        self.exponent = MAX_EXPONENT * (1 if limit == MAX_NODES else 25)

    def error(self, node: ast.AST | None, message: str, hint: str = "") -> FormulaError:
        column = getattr(node, "col_offset", 0) + 1 - getattr(self, "shift", 0)
        return FormulaError(message, self.text[:200], max(1, min(column, len(self.text) + 1)), hint)

    def read(self) -> Any:
        if len(self.text) > MAX_TEXT * self.limit:
            raise self.error(None, f"a formula of {len(self.text)} characters is too long", "split it with `let`")
        if not self.text.isascii() or not self.text.isprintable():
            at = next(i for i, c in enumerate(self.text) if not (c.isascii() and c.isprintable()))
            what = f"character {self.text[at]!a} is not allowed"
            raise FormulaError(what, self.text[:200], at + 1, "use plain ASCII")
        for mark in "#\\;@`'\"{}":  # Python's comments and texts are none of a formula's
            if mark in self.text:
                what, column = f"{mark!r} may not stand in a formula", self.text.index(mark) + 1
                raise FormulaError(what, self.text[:200], column, "use numbers, names, operators and functions")
        stripped = self.text.lstrip()
        self.shift = len(stripped) - len(self.text)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python's opinions on the syntax are not for the author of a formula
                tree = ast.parse(stripped, mode="eval")
        except SyntaxError as e:
            column = (e.offset or 1) - self.shift
            raise FormulaError(f"not a formula: {e.msg}", self.text[:200], column, "write it like `a*x + b`") from None
        except (ValueError, MemoryError, RecursionError):
            raise self.error(None, "the formula is nested too deeply", "split it with `let`") from None
        return self.checked(tree.body, self.go(tree.body, 0))

    def checked(self, n: ast.expr, out: Any) -> Any:
        """What a formula came to, if every backend has it."""
        parts: Any = sp.preorder_traversal(out)
        for e in parts:
            if e.is_Rational and max(abs(e.p), e.q) >= 10**self.digits:
                raise self.error(n, "a number in it is too long", f"at most {self.digits} digits")
            if isinstance(e, sp.Function) and type(e) not in NAMES:  # SymPy answered with one outside the closed set
                raise self.error(n, f"it comes to {type(e).__name__}(..), which no backend has", "rewrite it")
        return out

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
            what = f"this does not make sense: {str(e)[:80]}"
            raise self.error(n, what, "numbers and conditions do not mix") from None
        if out.has(sp.zoo, sp.nan):
            raise self.error(n, "divides by zero", "guard the divisor")
        if out.has(sp.I):
            raise self.error(n, "is not a real number", "guard the argument of sqrt or log")
        return out

    def number(self, n: ast.expr, depth: int) -> Any:
        out = self.go(n, depth)
        if (isinstance(out, Boolean) and not isinstance(out, sp.Symbol)) or isinstance(out, sp.Tuple):
            raise self.error(n, "expected a number, found a condition", "write where(condition, a, b)")
        return out

    def condition(self, n: ast.expr, depth: int) -> Any:
        out = self.go(n, depth)
        number = isinstance(out, sp.Symbol) and not self.open  # to SymPy every symbol is a Boolean
        if number or not isinstance(out, Boolean):
            raise self.error(n, "expected a condition, found a number", "compare it, as in `x > 0`")
        return out

    def form(self, n: ast.expr, d: int) -> Any:
        match n:
            case ast.Constant(value=bool() as v):
                return sp.true if v else sp.false
            case ast.Constant(value=int() as v):
                if v >= 10**self.digits:
                    raise self.error(n, "the number is too long", f"at most {self.digits} digits")
                return sp.Integer(v)
            case ast.Constant(value=float() as v) if v - v == 0:
                return normal(v)
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
            case ast.IfExp(test=test, body=a, orelse=b):
                return where(self.condition(test, d), self.number(a, d), self.number(b, d))
            case ast.Call(func=ast.Name(id=f), args=args, keywords=[]):
                return self.call(n, f, args, d)
            case _:
                hint = "use numbers, names, + - * / ** // %, comparisons and functions"
                raise self.error(n, "this form is not allowed in a formula", hint)

    def name(self, n: ast.expr, name: str) -> Any:
        if name in self.names:
            return self.names[name]
        if name in CONSTANTS:
            return CONSTANTS[name]
        if self.open and not name.startswith("__") and name not in FUNCTIONS:
            return symbol(name)
        if name in self.matrices:
            raise self.error(n, f"{name} is a matrix", f"write {name}(..) for its product with a value")
        near = difflib.get_close_matches(name, self.names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known names: {', '.join(sorted(self.names)[:12]) or 'none'}"
        raise self.error(n, f"unknown name {name[:40]!r}", hint)

    def call(self, n: ast.expr, f: str, args: list[ast.expr], d: int) -> Any:
        if f in self.forms:
            return self.of_name(n, f, args)
        if f in self.matrices:
            return self.product(n, f, args, d)
        if f in ALONG and self.over:
            return self.along(n, f, args, d)
        if f not in FUNCTIONS:
            known = [*FUNCTIONS, *self.forms, *self.matrices, *(ALONG if self.over else ())]
            near = difflib.get_close_matches(f, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"the functions are {', '.join(sorted(FUNCTIONS))}"
            raise self.error(n, f"unknown function {f[:40]!r}", hint)
        build, least, most = FUNCTIONS[f]
        if not least <= len(args) <= most:
            want = str(least) if least == most else f"{least} to {most}"
            raise self.error(n, f"{f} takes {want} arguments, found {len(args)}", "add or remove some")
        if f == "where":
            return build(self.condition(args[0], d), *(self.number(a, d) for a in args[1:]))
        if f == "Piecewise":
            return self.piecewise(n, build, args, d)
        return build(*(self.number(a, d) for a in args))

    def of_name(self, n: ast.expr, form: str, args: list[ast.expr]) -> Any:
        """`form(name)`."""
        known = self.forms[form]
        match args:
            case [ast.Name(id=name)] if name in known:
                return known[name]
            case _:
                said = ", ".join(f"{form}({name})" for name in known)
                raise self.error(n, f"{form} takes one name", f"write {said}" if said else f"there is no {form} here")

    def along(self, n: ast.expr, form: str, args: list[ast.expr], d: int) -> Any:
        """`form(dim, e)`: a symbol, and what it stands for among `terms`."""
        match args:
            case [ast.Name(id=dim), e] if dim in self.over:
                return self.term(AlongDim(form, dim, normal(self.checked(e, self.number(e, d)))))
            case _:
                what = "what to sum along it" if form == "sum" else "a value that has it"
                said = ", ".join(f"{form}({dim}, ..)" for dim in self.over)
                raise self.error(n, f"{form} takes a dim and {what}", f"write {said}")

    def product(self, n: ast.expr, matrix: str, args: list[ast.expr], d: int) -> Any:
        """`matrix(e)`, the same."""
        if len(args) != 1:
            what = f"{matrix} is a matrix and takes one value, found {len(args)}"
            raise self.error(n, what, f"write {matrix}(..) for its product with it")
        return self.term(AlongDim(matrix, "", normal(self.checked(args[0], self.number(args[0], d)))))

    def term(self, found: AlongDim) -> Any:
        known = next((s for s, other in self.along_dims.items() if other == found), None)
        if known is None:
            known = symbol(f"term_{len(self.along_dims)}")
            self.along_dims[known] = found
        return known

    def piecewise(self, n: ast.expr, build: Callable[..., Any], args: list[ast.expr], d: int) -> Any:
        pairs: list[Any] = []
        for a in args:
            if not isinstance(a, ast.Tuple) or len(a.elts) != 2:
                raise self.error(a, "Piecewise takes (value, condition) pairs", "write where(condition, a, b)")
            pairs.append((self.number(a.elts[0], d), self.condition(a.elts[1], d)))
        if pairs[-1][1] != sp.true:
            raise self.error(n, "Piecewise has no default", "end with (value, True)")
        return build(*pairs)

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
        if not exp.is_Rational or exp.q > 2 or abs(exp.p) > self.exponent:
            raise self.error(n.right, "an exponent must be a small whole number, 1/2 or -1/2", "write exp(y*log(x))")
        if base.is_Rational and max(base.p.bit_length(), base.q.bit_length()) * abs(exp.p) > MAX_BITS:
            raise self.error(n, "the power is too large", "write the number itself")
        out = base**exp
        if out.is_Pow and out.exp.is_Rational and abs(out.exp.p) > self.exponent:
            raise self.error(n.right, "the exponent is too large", f"at most {self.exponent}")
        return out
