"""Whole-number expressions over dims, by a parser of our own: `4 * width`, `ceil_div(seq, 128)`, `width // heads`.

    sum    := term (("+" | "-") term)*
    term   := factor (("*" | "//" | "/" | "%") factor)*
    factor := "-" factor | number | name | name "(" sum ("," sum)* ")" | "(" sum ")"

`/` is exact division and an error when it leaves a rest. Values are whole numbers below 2**62. A dim that depends on a
run-time dim (`batch`, `seq`) stays a SymPy expression over `n_batch`, `n_seq`; nothing here ever hands text to SymPy.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from weft.errors import FormulaError
from weft.frontends.suggest import did_you_mean

MAX_CHARS, MAX_NODES, MAX_DEPTH = 500, 200, 32
LIMIT = 1 << 62

_TOKEN = re.compile(r"[ \t]*(?:(?P<number>[0-9]+)|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign>//|[-+*/%(),]))")


@dataclass(frozen=True)
class Expr:
    """`head` is "number", "name", an operator or a function; `column` its place in the text."""

    head: str
    args: tuple[Any, ...]
    column: int


def parse(text: str) -> Expr:
    """Text -> tree; FormulaError says at which column and why."""
    if len(text) > MAX_CHARS:
        raise FormulaError(f"an expression of more than {MAX_CHARS} characters", text)
    return _ExpressionParser(text).whole()


def names(tree: Expr) -> Iterator[Expr]:
    """The dims a tree reads, in order, with repeats."""
    if tree.head == "name":
        yield tree
    elif tree.head != "number":
        for arg in tree.args:
            yield from names(arg)


def evaluate(tree: Expr, sizes: Mapping[str, Any], text: str = "") -> Any:
    """The tree's value; an int unless a size it reads is a SymPy expression."""

    def go(node: Expr) -> Any:
        if node.head == "number":
            return node.args[0]
        if node.head == "name":
            return sizes[node.args[0]]
        args = [go(a) for a in node.args]
        whole = all(isinstance(a, int) for a in args)
        try:
            value = (_WHOLE if whole else _SYMBOLIC)[node.head](*args)
        except _Refused as refused:
            raise FormulaError(str(refused), text, node.column + 1, refused.hint) from None
        if getattr(value, "is_Integer", False):
            value = int(value)
        if isinstance(value, int) and abs(value) >= LIMIT:
            raise FormulaError("a number of 2**62 or more", text, node.column + 1)
        return value

    return go(tree)


class _Refused(Exception):
    def __init__(self, message: str, hint: str = ""):
        self.hint = hint
        super().__init__(message)


def _nonzero(b: int) -> int:
    if b == 0:
        raise _Refused("division by zero", "change a dim")
    return b


def _exact(a: int, b: int) -> int:
    whole, rest = divmod(a, _nonzero(b))
    if rest:
        raise _Refused(f"{a} / {b} leaves a rest", "write // to round down, or change a dim")
    return whole


_WHOLE: dict[str, Callable[..., int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // _nonzero(b),
    "/": _exact,
    "%": lambda a, b: a % _nonzero(b),
    "neg": lambda a: -a,
    "ceil_div": lambda a, b: -(-a // _nonzero(b)),
    "min": min,
    "max": max,
}


def _formula(build: Callable[..., Any]) -> Callable[..., Any]:
    """What `build` makes of SymPy numbers, in the normal form that formulas are saved and printed in."""

    def apply(*args: Any) -> Any:
        from weft.ir.formula import normal  # SymPy, which the language alone does without

        return normal(build(*map(normal, args)))

    return apply


def _quotient(function: str) -> Callable[..., Any]:
    """floor(a / b) or a % b."""

    def build(a: Any, b: Any) -> Any:
        import sympy  # SymPy, which the language alone does without

        if b == 0:
            raise _Refused("division by zero", "change a dim")
        return sympy.floor(a / b) if function == "//" else sympy.Mod(a, b)

    return build


def _extreme(function: str) -> Callable[..., Any]:
    def build(*args: Any) -> Any:
        from weft.ir.formula.functions import FUNCTIONS  # SymPy, which the language alone does without

        return FUNCTIONS[function][0](*args)

    return build


def _inexact(a: Any, b: Any) -> Any:
    raise _Refused("/ needs sizes known when compiling", "write // or ceil_div")


_SYMBOLIC: dict[str, Callable[..., Any]] = _WHOLE | {
    "//": _formula(_quotient("//")),
    "/": _inexact,
    "%": _formula(_quotient("%")),
    "ceil_div": _formula(lambda a, b: -_quotient("//")(-a, b)),
    "min": _formula(_extreme("min")),
    "max": _formula(_extreme("max")),
}
_FUNCTIONS = {"ceil_div": (2, 2), "min": (2, 16), "max": (2, 16)}


class _ExpressionParser:
    def __init__(self, text: str):
        self.text = text
        self.tokens = list(self.scan())
        self.at = 0
        self.nodes = 0
        self.depth = 0

    def scan(self) -> Iterator[tuple[str, str, int]]:
        at, end = 0, len(self.text.rstrip(" \t"))
        while at < end:
            found = _TOKEN.match(self.text, at)
            if found is None:
                column = at + len(self.text[at:]) - len(self.text[at:].lstrip(" \t"))
                raise self.error(f"{self.text[column]!r} may not stand in an expression", column, _ALLOWED)
            kind = found.lastgroup or ""
            yield kind, found[kind], found.start(kind)
            at = found.end()
        yield "end", "", end

    def error(self, message: str, column: int, hint: str = "") -> FormulaError:
        return FormulaError(message, self.text, column + 1, hint)

    def node(self, head: str, args: tuple[Any, ...], column: int) -> Expr:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self.error(f"an expression of more than {MAX_NODES} parts", column)
        return Expr(head, args, column)

    def take(self, *signs: str) -> tuple[str, int] | None:
        kind, text, column = self.tokens[self.at]
        if kind == "sign" and text in signs:
            self.at += 1
            return text, column
        return None

    def whole(self) -> Expr:
        tree = self.sum()
        kind, text, column = self.tokens[self.at]
        if kind != "end":
            raise self.error(f"unexpected {text!r}", column, _ALLOWED)
        return tree

    def chain(self, part: Callable[[], Expr], *signs: str) -> Expr:
        tree = part()
        while (sign := self.take(*signs)) is not None:
            tree = self.node(sign[0], (tree, part()), sign[1])
        return tree

    def sum(self) -> Expr:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(f"parentheses nested deeper than {MAX_DEPTH}", self.tokens[self.at][2])
        tree = self.chain(self.term, "+", "-")
        self.depth -= 1
        return tree

    def term(self) -> Expr:
        return self.chain(self.factor, "*", "//", "/", "%")

    def factor(self) -> Expr:
        signs: list[int] = []
        while (sign := self.take("-")) is not None:
            signs.append(sign[1])
        tree = self.atom()
        return self.node("neg", (tree,), signs[-1]) if len(signs) % 2 else tree

    def atom(self) -> Expr:
        kind, text, column = self.tokens[self.at]
        if self.take("("):
            tree = self.sum()
            self.close(column)
            return tree
        self.at += kind in ("number", "name")
        if kind == "number":
            if len(text) > 18:
                raise self.error("a number of more than 18 digits", column)
            return self.node("number", (int(text),), column)
        if kind == "name":
            return self.call(text, column) if self.take("(") else self.node("name", (text,), column)
        raise self.error("the expression ends early" if kind == "end" else f"unexpected {text!r}", column, _ALLOWED)

    def call(self, name: str, column: int) -> Expr:
        if name not in _FUNCTIONS:
            raise self.error(f"unknown function '{name}'", column, did_you_mean(name, _FUNCTIONS))
        args = [self.sum()]
        while self.take(","):
            args.append(self.sum())
        self.close(column)
        low, high = _FUNCTIONS[name]
        if not low <= len(args) <= high:
            raise self.error(
                f"{name} takes {low if low == high else f'{low} to {high}'} values, not {len(args)}", column
            )
        return self.node(name, tuple(args), column)

    def close(self, opened: int) -> None:
        if not self.take(")"):
            raise self.error("a parenthesis is not closed", opened)


_ALLOWED = "allowed: dims, whole numbers, + - * // / % ( ) and ceil_div, min, max"
