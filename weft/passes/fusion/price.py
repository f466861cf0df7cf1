"""What a node moves, computes and takes, in numbers: the declarations' formulas at given sizes on a given target."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from weft.ir.ops.op import Op, kind
from weft.ir.types import ITEMSIZE, Node, Type, Val
from weft.targets import Target

MATRIX = ("contraction", "grouped", "product", "attention", "chunked")
"""Kinds of work that run on matrix units."""


@dataclass(frozen=True)
class Prices:
    """Costs of nodes with every dim's size known. Equal ops on equal types are worked out once.

    longest: the sizes that layouts were chosen at, when those are others."""

    sizes: Mapping[str, int]
    target: Target
    longest: Mapping[str, int] | None = None
    _cache: dict[tuple[Op, tuple[Type, ...]], tuple[int, int]] = field(
        default_factory=dict[tuple[Op, tuple[Type, ...]], tuple[int, int]], repr=False
    )

    def size(self, v: Val) -> int:
        """Bytes of a value."""
        return prod(self.sizes[d] for d in v.dims) * ITEMSIZE[v.dtype]

    def points(self, dims: Iterable[str]) -> int:
        """Points of a space."""
        return prod(self.sizes[d] for d in dims)

    def number(self, formula: Any) -> int:
        """A formula over the sizes n_dim, rounded down."""
        return int(formula.xreplace({s: self.sizes[s.name[2:]] for s in formula.free_symbols}))

    def flops(self, node: Node) -> int:
        """Floating point operations; of attention, those its layout touches."""
        return self._costs(node)[0]

    def bytes(self, node: Node) -> int:
        """Bytes that the node reads and writes when it is one kernel."""
        return self._costs(node)[1]

    def _costs(self, node: Node) -> tuple[int, int]:
        key = node.op, node.types
        if key not in self._cache:
            share = density(node.op, self.longest or self.sizes)
            self._cache[key] = int(self.number(node.op.flops(node)) * share), self.number(node.op.bytes(node))
        return self._cache[key]

    def seconds(self, node: Node) -> float:
        """The node as one kernel: launch + max(bytes / bandwidth, FLOPs / rate). Views are free."""
        work = kind(node)
        if work == "view":
            return 0.0
        return self.target.seconds(self.bytes(node), self.flops(node), dtype(node), work in MATRIX)


def dtype(node: Node) -> str:
    """The dtype a node computes in: that of its first float operand, else of its first result."""
    return next((v.dtype for v in (*node.ins, *node.outs) if v.type.floating), "f32")


def density(op: Op, sizes: Mapping[str, int]) -> float:
    """The share of the query x key square that attention's layout touches; 1 without a layout, and for other ops."""
    of = op.attention
    layout: Any = None if of is None else of.layout
    if of is None or layout is None:
        return 1.0
    heads = prod(sizes[d] for d in of.heads) if of.heads else 1
    pairs = sum(p.touched * (len(range(*p.heads)) / heads if p.heads else 1) for p in layout.parts)
    return min(1.0, pairs / (sizes[of.query] * sizes[of.over]))
