"""What a linear recurrence comes to within a chunk of positions: products through decays, and a triangular inverse."""

from dataclasses import dataclass

import sympy as sp

from weft.ir.builder import Builder
from weft.ir.composite import Composite, Grad
from weft.ir.formula import symbol
from weft.ir.ops.op import Cotangents, Grads, Vals
from weft.ir.ops.regions import Loop
from weft.ir.types import Dims, Node, Type, Val, need, union


@dataclass(frozen=True)
class DecayedProduct(Composite):
    """M[t, j] = sum over keys of w[t] k[j] a[j+1] a[j+2] .. a[t-1] for j < t, else 0: what row t reads of key j, after
    all decays between them.

    Operands: w [.. row key..], k [.. column key..], a [.. row key..]. Result [.. row column], of the dims that any of
    them has. Rows and columns are the same places under two names.
    """

    row: str
    column: str
    key: Dims

    def expand(self, g: Builder, w: Val, k: Val, a: Val) -> Val:
        row, column = self.row, self.column
        own = {row, column, *self.key}
        need({row, *self.key} <= set(w.dims), f"the rows {w.type} have no {row} and {' '.join(self.key)}")
        need({column, *self.key} <= set(k.dims), f"the keys {k.type} have no {column} and {' '.join(self.key)}")
        need({row, *self.key} <= set(a.dims), f"the decays {a.type} have no {row} and {' '.join(self.key)}")
        lead = tuple(d for d in a.dims if d not in own)
        every = tuple(d for d in union(w.dims, k.dims, a.dims) if d not in own)
        start = g.map(0, to=(*lead, column, *self.key), dtype=a.dtype)
        place = g.map(f"i_{row}", to=(row,), dtype="i64")
        b = g.body()
        passed = b.input("passed", start.type)
        w_t, a_t, t = (b.input(n, v.type.but(d for d in v.dims if d != row)) for n, v in zip("wat", (w, a, place)))
        keys = b.input("k", k.type)
        read = b.einsum(w_t, passed, keys, to=(*every, column))
        formula = f"p*a + where(t == i_{column}, 1, 0)"
        after = b.map(formula, p=passed, a=a_t, t=t, to=passed.dims, dtype=a.dtype)
        loop = g.many(Loop(row, b.graph(after, read), 1), start, w, a, place, k)
        return g.expand(loop[1], to=(*every, row, column))

    def direct(self, types: tuple[Type, ...]) -> bool:
        return _in_order(self, types)

    def work(self, types: tuple[Type, ...]) -> str:
        return "chunked" if self.direct(types) else super().work(types)

    def vjp(self, g: Builder, x: Vals, y: Vals, dy: Grads) -> Cotangents:
        assert dy[0] is not None
        return g.many(DecayedProductGrad(self.row, self.column, self.key), *x, dy[0])

    def flops(self, node: Node) -> sp.Expr:
        """Half of all pairs of places."""
        return _points(node)


@dataclass(frozen=True)
class DecayedProductGrad(Composite):
    """The derivative of DecayedProduct: of w, k and a, from these and the cotangent of the result."""

    row: str
    column: str
    key: Dims

    def expand(self, g: Builder, *x: Val) -> Vals:
        return Grad(DecayedProduct(self.row, self.column, self.key), 3, (True,)).expand(g, *x)

    def direct(self, types: tuple[Type, ...]) -> bool:
        return _in_order(self, types)

    def work(self, types: tuple[Type, ...]) -> str:
        return "chunked" if self.direct(types) else super().work(types)

    def linear_in(self, operands: int) -> tuple[tuple[int, ...], ...]:
        return ((3,),)

    def wide(self, results: int) -> tuple[bool, ...] | None:
        return (False,) * results

    def flops(self, node: Node) -> sp.Expr:
        return 2 * _points(node)


def _in_order(op: DecayedProduct | DecayedProductGrad, types: tuple[Type, ...]) -> bool:
    """Is there one key dim, and are the operands equal but for the names of places, these and keys last?"""
    w, k, a, *_ = types
    lead = w.dims[:-2]
    return (*lead, op.row, *op.key) == w.dims == a.dims and (*lead, op.column, *op.key) == k.dims and len(op.key) == 1


def _points(node: Node) -> sp.Expr:
    return sp.Mul(*(symbol(f"n_{d}") for d in node.space))


@dataclass(frozen=True)
class UnitInverse(Composite):
    """(1 - x)^-1 of a matrix [.. row column] of which the part below the diagonal alone is read. Rows, columns and the
    places summed over inside are the same places under three names."""

    row: str
    column: str
    inner: str

    def expand(self, g: Builder, x: Val) -> Val:
        row, column, inner = self.row, self.column, self.inner
        need({row, column} <= set(x.dims), f"{x.type} has no {row} and {column}")
        lead = tuple(d for d in x.dims if d not in (row, column))
        low = g.map(f"where(i_{row} > i_{column}, x, 0)", x=x, to=x.dims, dtype=x.dtype)
        low = g.rename(low, column, inner)
        start = g.map(0, to=(*lead, inner, column), dtype=x.dtype)
        place = g.map(f"i_{row}", to=(row,), dtype="i64")
        b = g.body()
        rows = b.input("rows", start.type)
        low_t, t = (b.input(n, v.type.but(d for d in v.dims if d != row)) for n, v in zip("xt", (low, place)))
        formula = f"s + where(t == i_{column}, 1, 0)"
        new = b.map(formula, s=b.einsum(low_t, rows, to=(*lead, column)), t=t, to=(*lead, column), dtype=x.dtype)
        after = b.map(f"where(t == i_{inner}, n, r)", r=rows, t=t, n=new, to=rows.dims, dtype=x.dtype)
        out = g.many(Loop(row, b.graph(after, new), 1), start, low, place)[1]
        return g.expand(out, to=x.dims)

    def direct(self, types: tuple[Type, ...]) -> bool:
        return types[0].dims[-2:] == (self.row, self.column)

    def work(self, types: tuple[Type, ...]) -> str:
        return "chunked" if self.direct(types) else super().work(types)

    def vjp(self, g: Builder, x: Vals, y: Vals, dy: Grads) -> Cotangents:
        """y' dy y', below the diagonal."""
        d, row, column, inner = dy[0], self.row, self.column, self.inner
        assert d is not None
        lead = [n for n in d.dims if n not in (row, column)]
        left = g.einsum(g.rename(y[0], column, inner), d, to=(*lead, inner, column))
        both = g.einsum(left, y[0], to=(*lead, inner, row))
        both = g.rename(g.rename(both, row, column), inner, row)
        yield g.map(f"where(i_{row} > i_{column}, d, 0)", d=both, to=x[0].dims, dtype=x[0].dtype)

    def flops(self, node: Node) -> sp.Expr:
        return _points(node) * symbol(f"n_{self.inner}") / 3
