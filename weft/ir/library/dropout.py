"""Counter-based dropout."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import sympy as sp

from weft.ir.builder import Builder
from weft.ir.composite import Composite
from weft.ir.library.index import constants, row_major
from weft.ir.ops.op import Vals
from weft.ir.types import Dims, Node, Val


def kept(rate: sp.Expr, op_id: int, index: sp.Expr) -> sp.Expr:
    """What is left of x at a global logical index: x / (1 - rate), or 0. In `x`, `seed`, `layer`."""
    formula = f"where(uniform(seed, {op_id}, layer, index) >= rate, x * scale, 0)"
    return constants(formula, rate=rate, scale=1 / (1 - rate), index=index)


@dataclass(frozen=True)
class Dropout(Composite):
    """x / (1 - rate) where uniform(seed, op_id, layer, index) >= rate, else 0.

    Operands: x, seed i64[], layer i64[]. The index is the element's row-major place over the global sizes of x's dims,
    so the same bits come out of any layout, tiling or sharding. Dims in `shared` get one bit for all their coordinates
    (variational dropout over time, Gal and Ghahramani 2016).
    """

    rate: sp.Expr
    op_id: int
    shared: Dims = ()
    regularizes = True
    scalars = MappingProxyType({1: "seed", 2: "layer"})

    def coordinates(self, node: Node) -> tuple[str, ...]:
        return tuple(d for d in node.ins[0].dims if d not in self.shared)

    def expand(self, g: Builder, x: Val, seed: Val, layer: Val) -> Val:
        index = row_major(tuple(d for d in x.dims if d not in self.shared))
        formula = kept(self.rate, self.op_id, index)
        return g.map(formula, x=x, seed=seed, layer=layer, to=x.dims, dtype=x.type.dtype)

    def step(self, s: Any, n: Node, ins: Sequence[Any]) -> Iterable[Any]:
        return ins[:1]

    def pair(self, g: Builder, x: Sequence[Val], dy: Sequence[Val], names: Sequence[str]) -> Vals | None:
        return g.many(self, *dy, *x[1:], names=names)
