"""Text to formula, by a whitelist over Python's own syntax tree; nothing is evaluated.

    formula  := value < value <= ... | formula and formula | formula or formula | not formula | true | name | name(...)
    value    := q | k | h | number | dim | -value | value + value | value - value
              | value * number | value // number | value % number

The canonical text is written while reading: dims as numbers, constants folded, only the parentheses that are needed.
"""

import ast
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple, NoReturn

from weft.errors import FormulaError
from weft.ir.pattern import expression as ex
from weft.ir.pattern.formula import BatchCondition, Formula, InTable, all_of, any_of, compare, negate
from weft.ir.pattern.named import BY_NAME, METADATA, Named
from weft.ir.pattern.table import AnyTable, BigBird, PatternTable, Row

MAX_CHARS, MAX_DEPTH, MAX_TABLE_CHARS = 20_000, 60, 2_000_000
LIMIT = 1 << 40  # products of two of these and an index stay far inside an int64 where it matters
VARIABLES = {"q": ex.Q, "k": ex.K, "h": ex.H}
SPECIAL = ("heads", "on_heads", "blocks", "bigbird")
OR, AND, NOT, COMPARE, SUM, PRODUCT, SIGN, WHOLE = range(8)
_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}
_ALLOWED = "known here: q, k, h, whole numbers, dims, + - * // %, comparisons, and, or, not, named patterns"
_COMPARE_IT = "compare it: 'q - k < 4'"


class SpelledInteger(NamedTuple):
    """An integer expression and its text; `level` is how tightly the text binds."""

    x: ex.Affine
    text: str
    level: int


class Claim(NamedTuple):
    """A formula and its text."""

    f: Formula
    text: str
    level: int


def read(text: str, names: Mapping[str, int] | None = None) -> tuple[Formula, str]:
    """Text -> formula and canonical text. FormulaError says at which column and why. `names`: ints by name."""
    claim = _PatternReader(text, dict(names or {})).whole()
    return claim.f, claim.text


@dataclass
class _PatternReader:
    """One text being read. `column` of a node is in characters, from 0."""

    text: str
    names: dict[str, int]

    def whole(self) -> Claim:
        flat = self.text.replace("\n", " ").replace("\t", " ")
        self.offset = len(flat) - len(flat.lstrip(" "))
        self.body = flat.strip(" ")
        most = MAX_TABLE_CHARS if "blocks" in flat else MAX_CHARS
        if len(flat) > most:
            raise FormulaError(f"a pattern of more than {most} characters", self.text, hint="larger blocks, fewer rows")
        for bad in "#\\;\r\0'\"`@{}":
            if bad in flat:
                raise FormulaError(f"{bad!r} may not stand in a pattern", self.text, flat.index(bad) + 1, _ALLOWED)
        if not self.body:
            raise FormulaError("an empty pattern", self.text, 1, "write 'all' for every key")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(self.body, mode="eval").body
        except SyntaxError as e:
            column = self.offset + (e.offset - 1 if e.offset else len(self.body))
            raise FormulaError(f"cannot read it: {e.msg}", self.text, column + 1, _ALLOWED) from None
        except (RecursionError, MemoryError, ValueError):
            raise FormulaError("parentheses nested too deep", self.text) from None
        level: list[ast.AST] = [tree]
        for _ in range(MAX_DEPTH):
            level = [child for node in level for child in ast.iter_child_nodes(node)]
        if level:
            raise FormulaError(f"a pattern nested deeper than {MAX_DEPTH}", self.text)
        return self.claim(tree)

    def refuse(self, node: ast.AST, message: str, hint: str = "") -> NoReturn:
        column = len(self.body.encode()[: getattr(node, "col_offset", 0)].decode(errors="ignore"))
        raise FormulaError(message, self.text, self.offset + column + 1, hint)

    def found(self, node: ast.AST) -> str:
        got = ast.unparse(node)
        return repr(got if len(got) <= 40 else got[:37] + "...")

    # ---- formulas

    def claim(self, node: ast.AST) -> Claim:
        match node:
            case ast.BoolOp(op=op, values=values):
                return self.junction("and" if isinstance(op, ast.And) else "or", [self.claim(v) for v in values])
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = self.claim(operand)
                return Claim(negate(inner.f), f"not {_in(inner, NOT)}", NOT)
            case ast.Compare(left=left, ops=ops, comparators=rest):
                return self.chain(node, [left, *rest], ops)
            case ast.Name(id=name):
                return self.plain(node, name)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                return self.call(node, name, args)
            case ast.Constant(value=bool() as value):
                return self.refuse(node, f"{value} is not known", f"write '{str(value).lower()}'")
            case ast.Constant() | ast.BinOp() | ast.UnaryOp():
                return self.refuse(node, f"{self.found(node)} is a number where a condition is needed", _COMPARE_IT)
            case _:
                return self.refuse(node, f"{self.found(node)} is not in the grammar", _ALLOWED)

    def junction(self, op: str, parts: list[Claim]) -> Claim:
        level = AND if op == "and" else OR
        texts: list[str] = [_in(p, level) for p in parts]
        join = all_of if op == "and" else any_of
        return Claim(join(*(p.f for p in parts)), f" {op} ".join(texts), level)

    def chain(self, node: ast.AST, operands: list[ast.expr], ops: list[ast.cmpop]) -> Claim:
        signs: list[str] = []
        for op in ops:
            if type(op) not in _COMPARE:
                self.refuse(node, f"{self.found(node)} is not in the grammar", "compare with < <= > >= == !=")
            signs.append(_COMPARE[type(op)])
        values = [self.value(x) for x in operands]
        f = all_of(*(compare(s, x.x, y.x) for s, x, y in zip(signs, values, values[1:])))
        text = _in(values[0], SUM) + "".join(f" {s} {_in(v, SUM)}" for s, v in zip(signs, values[1:]))
        return Claim(f, text, COMPARE)

    def plain(self, node: ast.AST, name: str) -> Claim:
        if name in ("true", "false"):
            return Claim(name == "true", name, WHOLE)
        if name in METADATA:
            return Claim(BatchCondition(name, False), name, WHOLE)
        if name in BY_NAME and not BY_NAME[name].params:
            return self.named(node, BY_NAME[name], ())
        if name in BY_NAME:
            self.refuse(node, f"{name} needs values", f"write {_signature(BY_NAME[name])}")
        if name in VARIABLES or name in self.names:
            self.refuse(node, f"'{name}' is a number where a condition is needed", _COMPARE_IT)
        return self.refuse(node, f"unknown name '{name}'", self.suggest(name, formulas=True))

    def call(self, node: ast.AST, name: str, args: list[ast.expr]) -> Claim:
        special = {"heads": self.heads, "on_heads": self.on_heads, "blocks": self.blocks, "bigbird": self.bigbird}
        if name in special:
            return special[name](node, args)
        if name in METADATA and not args:
            return self.plain(node, name)
        if name not in BY_NAME:
            self.refuse(node, f"unknown pattern '{name}'", self.suggest(name, formulas=True))
        known = BY_NAME[name]
        if len(args) != len(known.params):
            self.refuse(node, f"{name} takes {len(known.params)} values, not {len(args)}", f"write {_signature(known)}")
        return self.named(node, known, tuple(self.number(a) for a in args))

    def named(self, node: ast.AST, known: Named, args: tuple[int, ...]) -> Claim:
        for param, value in zip(known.params, args):
            if value <= 0 and param in ("block", "step", "choices"):
                self.refuse(node, f"{known.name}: {param} is {value}, not positive", f"write {_signature(known)}")
        f, _ = read(known.body, dict(zip(known.params, args)))
        text = f"{known.name}({', '.join(map(str, args))})" if args else known.name
        return Claim(f, text, WHOLE)

    def heads(self, node: ast.AST, args: list[ast.expr]) -> Claim:
        """heads(a, b, ...): head h uses number h % count."""
        if len(args) < 2:
            self.refuse(node, "heads takes two patterns or more", "write heads(window(128), strided(128))")
        parts = [self.claim(a) for a in args]
        which = ex.mod(ex.H, len(parts))
        f = any_of(*(all_of(compare("==", which, ex.const(i)), p.f) for i, p in enumerate(parts)))
        return Claim(f, f"heads({', '.join(p.text for p in parts)})", WHOLE)

    def on_heads(self, node: ast.AST, args: list[ast.expr]) -> Claim:
        """on_heads(lo, hi, a): a on the heads lo <= h < hi, nothing on the others."""
        if len(args) != 3:
            self.refuse(node, "on_heads takes two numbers and a pattern", "write on_heads(0, 4, window(128))")
        low, high, part = self.natural(args[0]), self.number(args[1]), self.claim(args[2])
        if high <= low:
            self.refuse(node, f"on_heads({low}, {high}, ...) names no head", "write on_heads(0, 4, window(128))")
        f = all_of(compare("<=", ex.const(low), ex.H), compare("<", ex.H, ex.const(high)), part.f)
        return Claim(f, f"on_heads({low}, {high}, {part.text})", WHOLE)

    def blocks(self, node: ast.AST, args: list[ast.expr]) -> Claim:
        """blocks(size, rows) or blocks(size, rows of head 0, rows of head 1, ...): rows for all of seq, where known."""
        if len(args) < 2:
            self.refuse(node, "blocks takes a size and rows", "write blocks(64, [all, [0, 1], [0, 2]])")
        size, heads = self.positive(args[0]), tuple(self.rows(a) for a in args[1:])
        try:
            return self.listed(PatternTable(size, heads))
        except FormulaError as e:
            self.refuse(node, e.message, e.hint)

    def listed(self, table: AnyTable) -> Claim:
        """A static table. FormulaError: it is too short for the dim seq."""
        if "seq" in self.names:
            table.at(self.names["seq"])
        return Claim(InTable(table, False), table.text(), WHOLE)

    def rows(self, node: ast.expr) -> tuple[Row, ...]:
        if not isinstance(node, ast.List) or not node.elts:
            self.refuse(node, "rows of blocks are a list of lists", "write [all, [0, 1], [0, 2]]")
        out: list[Row] = []
        for row in node.elts:
            if isinstance(row, ast.Name) and row.id == "all":
                out.append(None)
            elif isinstance(row, ast.List):
                out.append(tuple(sorted(self.natural(b) for b in row.elts)))
            else:
                self.refuse(row, "a row is a list of key blocks, or all")
        return tuple(out)

    def bigbird(self, node: ast.AST, args: list[ast.expr]) -> Claim:
        """bigbird(block, random, seed[, tokens]); tokens is the dim seq when that is known."""
        if len(args) not in (3, 4):
            self.refuse(node, f"bigbird takes 3 or 4 values, not {len(args)}", "write bigbird(64, 3, 0)")
        n = self.positive(args[3]) if len(args) == 4 else self.names.get("seq")
        try:
            return self.listed(BigBird(self.positive(args[0]), self.natural(args[1]), self.natural(args[2]), n))
        except FormulaError as e:
            self.refuse(node, e.message, e.hint)

    # ---- values

    def value(self, node: ast.AST) -> SpelledInteger:
        match node:
            case ast.Name(id=name) if name in VARIABLES:
                return SpelledInteger(VARIABLES[name], name, WHOLE)
            case ast.Name(id=name) if name in self.names:
                return self.constant(node, int(self.names[name]))
            case ast.Name(id=name):
                return self.refuse(node, f"unknown name '{name}'", self.suggest(name, formulas=False))
            case ast.Constant(value=bool()):
                return self.refuse(node, f"{self.found(node)} is not a number")
            case ast.Constant(value=int() as value):
                return self.constant(node, value)
            case ast.Constant():
                return self.refuse(node, f"{self.found(node)} is not a whole number")
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                inner = self.value(operand)
                x = ex.scale(inner.x, -1)
                return self.constant(node, x.c) if ex.is_const(x) else SpelledInteger(x, f"-{_in(inner, SIGN)}", SIGN)
            case ast.BinOp(left=left, op=op, right=right):
                return self.binary(node, self.value(left), op, self.value(right))
            case ast.BinOp() | ast.UnaryOp() | ast.Compare() | ast.BoolOp():
                return self.refuse(node, f"{self.found(node)} is a condition where a number is needed")
            case _:
                return self.refuse(node, f"{self.found(node)} is not in the grammar", _ALLOWED)

    def binary(self, node: ast.AST, x: SpelledInteger, op: ast.operator, y: SpelledInteger) -> SpelledInteger:
        match op:
            case ast.Add() | ast.Sub():
                minus = isinstance(op, ast.Sub)
                z = ex.add(x.x, y.x, -1 if minus else 1)
                text = f"{_in(x, SUM)} {'-' if minus else '+'} {_in(y, PRODUCT)}"
            case ast.Mult():
                if not (ex.is_const(x.x) or ex.is_const(y.x)):
                    self.refuse(node, f"{self.found(node)} multiplies two indices", "one side is a number or a dim")
                z = ex.scale(x.x, y.x.c) if ex.is_const(y.x) else ex.scale(y.x, x.x.c)
                text = f"{_in(x, PRODUCT)} * {_in(y, SIGN)}"
            case ast.FloorDiv() | ast.Mod():
                sign = "//" if isinstance(op, ast.FloorDiv) else "%"
                if not ex.is_const(y.x) or y.x.c <= 0:
                    hint = f"the right side of {sign} is a positive number or a dim"
                    self.refuse(node, f"{self.found(node)} does not divide by a positive number", hint)
                z = ex.div(x.x, y.x.c) if sign == "//" else ex.mod(x.x, y.x.c)
                text = f"{_in(x, PRODUCT)} {sign} {_in(y, SIGN)}"
            case ast.Div():
                self.refuse(node, f"{self.found(node)} is not a whole number", "write // to round down")
            case _:
                self.refuse(node, f"{self.found(node)} is not in the grammar", _ALLOWED)
        if ex.is_const(z):
            return self.constant(node, z.c)
        return SpelledInteger(z, text, SUM if isinstance(op, ast.Add | ast.Sub) else PRODUCT)

    def constant(self, node: ast.AST, value: int) -> SpelledInteger:
        if abs(value) > LIMIT:
            self.refuse(node, "a number above 2**40")
        return SpelledInteger(ex.const(value), str(value), WHOLE if value >= 0 else SIGN)

    def number(self, node: ast.expr) -> int:
        value = self.value(node)
        if not ex.is_const(value.x):
            self.refuse(node, f"{self.found(node)} is not a constant", "give a number or a dim")
        return value.x.c

    def natural(self, node: ast.expr) -> int:
        value = self.number(node)
        if value < 0:
            self.refuse(node, f"{value} is negative")
        return value

    def positive(self, node: ast.expr) -> int:
        value = self.number(node)
        if value <= 0:
            self.refuse(node, f"{value} is not positive")
        return value

    def suggest(self, name: str, formulas: bool) -> str:
        known = [*VARIABLES, *self.names] + ([*BY_NAME, *METADATA, *SPECIAL, "true", "false"] if formulas else [])
        near = get_close_matches(name[:100], known, n=1, cutoff=0.6)
        return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(known))}"


def _in(part: SpelledInteger | Claim, level: int) -> str:
    """The text, in parentheses where it binds less tightly than its place."""
    return part.text if part.level >= level else f"({part.text})"


def _signature(known: Named) -> str:
    return f"{known.name}({', '.join(known.params)})" if known.params else known.name
