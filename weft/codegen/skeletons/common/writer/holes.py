"""Holes: small @triton.jit functions printed from IR, handed to a skeleton as constexpr.

A hole is straight-line code: above the lines of each IR node stands the node, in IR text. What it reads beyond its
arguments it loads through X, a tuple of pointers, strides and numbers. Names of holes are unique in their file, for two
holes of one module and name in one kernel would both compile as the first.
"""

import builtins
import keyword
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from weft.codegen.skeletons.common.writer.spelling import ATOM, Tri, TritonFormulas
from weft.codegen.skeletons.common.writer.wrapper import Refused, Why
from weft.codegen.torch.lines import WIDTH, Lines
from weft.ir.formula import normal, operand, symbol
from weft.ir.formula.evaluate import evaluate
from weft.ir.library import Dropout
from weft.ir.library.index import row_major
from weft.ir.names import identifier
from weft.ir.ops.primitives import Detach, Einsum, Gather, Map, Rename
from weft.ir.text import show
from weft.ir.types import FLOATS, Dims, Graph, Node, Val

_RESERVED = frozenset({*keyword.kwlist, *dir(builtins), "tl", "triton", "elementwise", "X", "ACC"})
TOP24 = 1 << 24


def ir_line(node: Node) -> str:
    """A node in IR text; of a loop, its head."""
    return show(Graph(tuple(dict.fromkeys(node.ins)), (node,), node.outs)).split("\n")[1].strip()


class Hole:
    """One function under construction.

    args: its parameters as written. acc: the source of the accumulator's dtype; "" until a float is at hand."""

    def __init__(self, name: str, args: Sequence[str], acc: str = "", doc: str = "") -> None:
        self.name, self.args, self._acc, self.doc = name, tuple(args), acc, doc
        self.lines = Lines()
        self.lines.depth = 1
        self.taken = {*_RESERVED, *(a.split(":")[0] for a in args)}

    @property
    def acc(self) -> str:
        """What the hole computes in; Refused where no float says it."""
        if not self._acc:
            raise Refused(Why.NO_FLOAT)
        return self._acc

    @acc.setter
    def acc(self, source: str) -> None:
        self._acc = source

    @property
    def computes(self) -> bool:
        """Is it known what the hole computes in?"""
        return bool(self._acc)

    def mint(self, hint: str) -> str:
        name = identifier(hint, self.taken)
        self.taken.add(name)
        return name

    def bind(self, hint: str, src: Tri) -> Tri:
        """Give an expression a name."""
        name = self.mint(hint)
        self.lines.add(f"{name} = {src.text}")
        return Tri(name, ATOM, src.kind, None, src.low)

    def note(self, text: str) -> None:
        """A comment, over as many lines as it takes."""
        for part in textwrap.wrap(text, WIDTH - 6, break_long_words=True, break_on_hyphens=False):
            self.lines.note(part)

    def add(self, statement: str) -> None:
        self.lines.add(statement)

    def formula(
        self, exprs: Sequence[Any], env: Mapping[Any, Tri], lets: Sequence[Any] = (), hint: str = "t"
    ) -> list[Tri]:
        """The values of formulas over symbols that `env` names."""
        return evaluate([normal(e) for e in exprs], env, TritonFormulas(self, hint).table, lets)

    def text(self) -> list[str]:
        """The function's source."""
        head = Lines()
        head.add("@triton.jit")
        head.add(f"def {self.name}({', '.join(self.args)}):")
        if self.doc:
            head.lines += textwrap.indent(f'"""{self.doc}"""', "    ").split("\n")
        return [*head.lines, *self.lines.lines]


class HoleBody:
    """The values of a graph's nodes inside a hole.

    env: values that are there, by name. load(v): the source that reads an operand, called when first needed.
    coordinates: dim -> its coordinate; sizes(dim) -> its size. seeds: source of each seed's pointer, by name.
    place(node): the logical index of a dropout's elements where it is at hand, else None: it is made of coordinates.
    gather(node): what a gather gives, where one is possible.
    """

    def __init__(
        self,
        hole: Hole,
        coordinates: Mapping[str, Tri],
        sizes: Callable[[str], Tri],
        load: Callable[[Val], Tri],
        env: Mapping[str, Tri] | None = None,
        seeds: Mapping[str, str] | None = None,
        place: Callable[[Node], Tri | None] = lambda node: None,
    ) -> None:
        self.hole, self.coordinates, self.sizes, self.load, self.place = hole, coordinates, sizes, load, place
        self.gather: Callable[[Node], Tri] | None = None
        self.env: dict[str, Tri] = dict(env or {})
        self.seeds = dict(seeds or {})

    def value(self, v: Val) -> Tri:
        """The value under a name."""
        if v.name not in self.env:
            src = self.load(v)
            self.hole.note(f"{v.name}: {v.type}")
            self.env[v.name] = src if src.plain else self.hole.bind(v.name, src)
        return self.env[v.name]

    def node(self, node: Node) -> None:
        """Print one pointwise node."""
        if isinstance(node.op, Map):
            self.map(node, node.op)
        elif isinstance(node.op, Dropout):
            self.dropout(node, node.op)
        elif isinstance(node.op, Einsum):
            self.product(node)
        elif isinstance(node.op, Gather) and self.gather is not None:
            self.put(node.outs[0], self.gather(node))
        elif isinstance(node.op, Rename | Detach):
            self.env[node.outs[0].name] = self.value(node.ins[0])
        else:
            raise NotImplementedError(f"{type(node.op).__name__} is not pointwise")

    def map(self, node: Node, op: Map) -> None:
        env: dict[Any, Tri] = {operand(i): self.value(v) for i, v in enumerate(node.ins)}
        names = sorted(op.symbols)
        env |= {symbol(n): self.coordinates[n[2:]] for n in names if n.startswith("i_")}
        env |= {symbol(n): self.sizes(n[2:]) for n in names if n.startswith("n_")}
        self.hole.note(ir_line(node))
        first = node.outs[0].name
        for v, src in zip(node.outs, self.hole.formula(op.exprs, env, op.lets, first)):
            self.put(v, self.converted(src, op.dtype))

    def converted(self, src: Tri, dtype: str) -> Tri:
        """A formula's value in the kind of its map's dtype."""
        table = TritonFormulas(self.hole, "t")
        if dtype in FLOATS:
            return table.floating(src)
        if dtype == "bool":
            return src if src.kind == "bool" else Tri(f"({src.text}) != 0", 1, "bool")
        if src.kind == "float":
            return Tri(f"{src.at(ATOM)}.to(tl.int64)", ATOM, "int")
        return table.counting(src)

    def put(self, v: Val, src: Tri) -> None:
        """Record a result, under a name unless it is a literal."""
        self.env[v.name] = src if src.number else self.hole.bind(v.name, src)

    def dropout(self, node: Node, op: Dropout) -> None:
        """x, seed, layer -> x * 1 / (1 - rate) or 0, by the element's 24 random bits."""
        x, seed, layer = node.ins
        value, number = TritonFormulas(self.hole, "x").tensor(self.value(x)), self.value(layer)
        self.hole.note(ir_line(node))
        at = self.place(node) or self.index(tuple(d for d in x.dims if d not in op.shared))
        threshold, scale = math.ceil(op.rate * TOP24), float(1 / (1 - op.rate))
        said = f"elementwise.dropout({value.text}, {threshold}, {scale!r}, {self.seeds[seed.name]}, {op.op_id}, "
        self.put(node.outs[0], Tri(f"{said}{number.text}, {at.text})"))

    def index(self, dims: Dims) -> Tri:
        """The row-major logical index over dims."""
        env = {symbol(f"i_{d}"): self.coordinates[d] for d in dims}
        env |= {symbol(f"n_{d}"): self.sizes(d) for d in dims}
        (at,) = self.hole.formula([row_major(dims)], env, hint="index")
        return self.hole.bind("index", at)

    def product(self, node: Node) -> None:
        """An einsum that sums nothing."""
        table = TritonFormulas(self.hole, "t")
        self.hole.note(ir_line(node))
        out = self.value(node.ins[0])
        for v in node.ins[1:]:
            out = table.mul(out, self.value(v))
        self.put(node.outs[0], out)

    def nodes(self, nodes: Iterable[Node]) -> None:
        for n in nodes:
            self.node(n)
