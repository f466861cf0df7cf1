"""The text form: parse(show(graph)) == graph, sources included, decisions not.

    (x: f32[batch seq width], w: f32[width inner]) {
      h: f32[batch seq inner] = einsum(x, w) to=[batch seq inner] @spec.yaml:14
      y: f32[batch seq inner] = map(h) exprs="gelu(h)" to=[batch seq inner] @spec.yaml:15
      return y
    }

An attribute prints by its value and parses by the declared type of its field; one that has its
default, or is an empty tuple without one, is left out.
In formulas, operands go by the names of the values."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from fractions import Fraction
from functools import cache
from keyword import iskeyword
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import sympy as sp

from weft.errors import TextError
from weft.ir import formula, pattern
from weft.ir.all_ops import OPS
from weft.ir.formula.functions import FUNCTIONS
from weft.ir.ops.op import Op, op_name
from weft.ir.ops.primitives import Map
from weft.ir.types import IDENTIFIER, Graph, Node, Type, Val

_LIMIT, _DEPTH = 200_000, 60  # syntax nodes of one formula in a graph; nesting of bodies and ops
_RESERVED = {*FUNCTIONS, *formula.CONSTANTS}
_OPEN = re.compile(r"[in]_.*|_.*")


def _named(vals: Sequence[Val]) -> dict[str, sp.Symbol]:
    """The value names that may stand for operands in formulas. Twice the same value, or a name with a meaning: none."""
    names = [v.name for v in vals]
    taken = {n for n in names if names.count(n) > 1 or n in _RESERVED or iskeyword(n) or _OPEN.fullmatch(n)}
    return {n: formula.operand(i) for i, n in enumerate(names) if n not in taken}


def show(graph: Graph) -> str:
    """The text of a graph."""
    return _graph(graph, "")


def _graph(graph: Graph, indent: str) -> str:
    out = [f"({_typed(graph.inputs)}) {{"]
    for n in graph.nodes:
        names = {s: name for name, s in _named(n.ins).items()} if isinstance(n.op, Map) else {}
        head = f"{indent}  {_typed(n.outs)} = {op_name(type(n.op))}({', '.join(v.name for v in n.ins)})"
        out.append(head + _attributes(n.op, names, indent + "  ") + (f" @{_source(n.src)}" if n.src else ""))
    return "\n".join([*out, f"{indent}  return {', '.join(v.name for v in graph.outputs)}", f"{indent}}}"])


def _typed(vals: Sequence[Val]) -> str:
    return ", ".join(f"{v.name}: {v.type}" for v in vals)


def _source(src: str) -> str:
    return src if re.fullmatch(r"[^\s\"{}@]+", src) else json.dumps(src)


def _attributes(op: Op, names: Mapping[Any, str], indent: str) -> str:
    out: list[str] = []
    for f in fields(op):  # pyright: ignore[reportArgumentType]
        value = getattr(op, f.name)
        default = () if f.default is MISSING else f.default
        if value != default or type(value) is not type(default):
            out.append(f" {f.name}={_value(value, names, indent)}")
    return "".join(out)


def _value(x: Any, names: Mapping[Any, str], indent: str) -> str:
    match x:
        case None:
            return "none"
        case bool():
            return "true" if x else "false"
        case int():
            return str(x)
        case float():
            return str(Fraction(x))
        case str():
            return json.dumps(x)
        case Type():
            return str(x)
        case Graph():
            return _graph(x, indent)
        case Op():
            return op_name(type(x)) + " {" + _attributes(x, names, indent) + " }"
        case sp.Basic():
            return json.dumps(formula.show(x, names))
        case tuple() if x and all(isinstance(e, str) and IDENTIFIER.fullmatch(e) for e in x):
            return f"[{' '.join(x)}]"
        case tuple():
            return f"[{', '.join(_value(e, names, indent) for e in x)}]"
        case _:
            return json.dumps(str(x))  # a pattern or a layout: it has a text of its own


@cache
def _hints(cls: type) -> dict[str, Any]:
    """The declared types of an op's fields; an op that names a pattern's types has not imported them."""
    return get_type_hints(cls, localns={n: getattr(pattern, n, str) for n in ("Pattern", "PatternLayout")})


_TOKEN = re.compile(r'[ \t\r]*(\n|"(?:[^"\\\n]|\\.)*"|@"(?:[^"\\\n]|\\.)*"|@[^\s"{}@]+|-?[\w.]+(?:/\d+)?|\S|$)')


def parse(text: str) -> Graph:
    """The graph of a text; raises TextError with the line, VerifyError, FormulaError. Not verified."""
    p = _GraphParser(text)
    graph = p.graph(0)
    if p.peek():
        raise p.error(f"expected the end, found {p.peek()!r}")
    return graph


class _GraphParser:
    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, int]] = []
        line = 1
        for m in _TOKEN.finditer(text):
            if m[1] == "\n":
                line += 1
            elif m[1]:
                self.tokens.append((m[1], line))
        self.tokens.append(("", line))
        self.i = 0

    def error(self, message: str) -> TextError:
        return TextError(message, self.tokens[min(self.i, len(self.tokens) - 1)][1])

    def peek(self) -> str:
        return self.tokens[self.i][0]

    def take(self, want: str = "") -> str:
        got = self.peek()
        if (want and got != want) or not got:
            raise self.error(f"expected {want or 'more'!r}, found {got or 'the end'!r}")
        self.i += 1
        return got

    def maybe(self, want: str) -> bool:
        if self.peek() != want:
            return False
        self.i += 1
        return True

    def type(self) -> Type:
        dtype = self.take()
        self.take("[")
        dims: list[str] = []
        while not self.maybe("]"):
            dims.append(self.take())
        return Type(dtype, tuple(dims))

    def typed(self, end: str) -> tuple[Val, ...]:
        out: list[Val] = []
        while not self.maybe(end):
            name = self.take()
            self.take(":")
            out.append(Val(name, self.type()))
            self.maybe(",")
        return tuple(out)

    def bound(self, env: Mapping[str, Val], end: str) -> tuple[Val, ...]:
        out: list[Val] = []
        while not self.maybe(end):
            if self.peek() not in env:
                raise self.error(f"{self.peek() or end!r} is not bound before use")
            out.append(env[self.take()])
            self.maybe(",")
        return tuple(out)

    def graph(self, depth: int) -> Graph:
        if depth > _DEPTH:
            raise self.error(f"more than {_DEPTH} bodies within each other")
        self.take("(")
        inputs = self.typed(")")
        self.take("{")
        env, nodes = {v.name: v for v in inputs}, list[Node]()
        while not self.maybe("return"):
            outs = self.typed("=")
            kind = self.take()
            self.take("(")
            ins = self.bound(env, ")")
            op = self.op(kind, _named(ins) if kind == op_name(Map) else {}, depth)
            nodes.append(Node(op, ins, outs, self.source()))
            env |= {v.name: v for v in outs}
        return Graph(inputs, tuple(nodes), self.bound(env, "}"))

    def source(self) -> str:
        if not self.peek().startswith("@"):
            return ""
        raw = self.take()[1:]
        return json.loads(raw) if raw.startswith('"') else raw

    def op(self, kind: str, names: Mapping[str, sp.Symbol], depth: int) -> Op:
        if kind not in OPS:
            raise self.error(f"unknown op {kind!r}")
        cls = OPS[kind]
        hints, given = _hints(cls), dict[str, Any]()
        known = {f.name: f for f in fields(cls)}  # pyright: ignore[reportArgumentType]
        while self.peek() in known and self.tokens[self.i + 1][0] == "=":
            name = self.take()
            self.take("=")
            if name in given:
                raise self.error(f"{kind}: attribute {name} twice")
            given[name] = self.value(hints[name], names, depth)
        given = {
            f.name: () for f in known.values() if f.default is MISSING and get_origin(hints[f.name]) is tuple
        } | given
        missing = [f.name for f in known.values() if f.default is MISSING and f.name not in given]
        if missing:
            raise self.error(f"{kind}: attribute {missing[0]} is missing")
        return cls(**given)

    def value(self, want: Any, names: Mapping[str, sp.Symbol], depth: int) -> Any:
        if get_origin(want) in (Union, UnionType):
            if self.maybe("none"):
                return None
            return self.value(next(t for t in get_args(want) if t is not NoneType), names, depth)
        if get_origin(want) is tuple:
            return self.items(get_args(want), names, depth)
        if want is Graph:
            return self.graph(depth + 1)
        if want is Type:
            return self.type()
        if isinstance(want, type) and issubclass(want, Op):
            kind = self.take()
            self.take("{")
            op = self.op(kind, names, depth + 1)
            self.take("}")
            if not isinstance(op, want):
                raise self.error(f"{kind} cannot stand here")
            return op
        return self.scalar(want, names)

    def items(self, types: tuple[Any, ...], names: Mapping[str, sp.Symbol], depth: int) -> tuple[Any, ...]:
        self.take("[")
        out: list[Any] = []
        while not self.maybe("]"):
            want = types[0] if types[-1] is Ellipsis else types[min(len(out), len(types) - 1)]
            bare = want is str and not self.peek().startswith('"')
            out.append(self.take() if bare else self.value(want, names, depth))
            self.maybe(",")
        return tuple(out)

    def scalar(self, want: Any, names: Mapping[str, sp.Symbol]) -> Any:
        raw = self.take()
        try:
            if want is bool:
                return {"true": True, "false": False}[raw]
            if want is int:
                return int(raw)
            if want is float:
                return float(Fraction(raw))
            text = str(json.loads(raw if raw.startswith('"') else ""))
        except (ValueError, KeyError, ZeroDivisionError):
            raise self.error(f"{raw[:60]!r} is not {getattr(want, '__name__', want)}") from None
        if want is str or get_origin(want) is Literal:
            return text
        if isinstance(want, type) and issubclass(want, sp.Basic):
            return formula.parse(text, names, open=True, limit=_LIMIT)
        return want.parse(text)
