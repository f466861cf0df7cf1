"""Causal convolution with a kernel as long as the sequence, and its derivatives."""

from dataclasses import dataclass

import sympy as sp

from weft.ir.builder import Builder
from weft.ir.composite import Composite
from weft.ir.formula import symbol
from weft.ir.ops.op import Cotangents, Grads, Vals, points, size
from weft.ir.types import Dims, Node, Type, Val, need


@dataclass(frozen=True)
class LongConvolve(Composite):
    """y[t] = sum over j < t of k[t - j - 1] x[j]: what a position reads of those before it.

    Operands: x [.. time ..], k [.. time ..] of dims that x has. Result: as x. later: the transpose in x, which reads
    the positions behind. column: the positions once more, under another name."""

    time: str
    column: str
    later: bool = False

    def expand(self, g: Builder, x: Val, k: Val) -> Val:
        time, column = self.time, self.column
        need(time in x.dims and time in k.dims, f"{x.type} and {k.type} must both have {time}")
        need(set(k.dims) <= set(x.dims), f"the kernel {k.type} has dims that {x.type} has not")
        first, second = (column, time) if self.later else (time, column)
        lag = g.map(f"i_{first} - i_{second} - 1", to=(time, column), dtype="i64")
        return g.einsum(g.gather(k, lag, at=time), g.rename(x, time, column), to=x.dims)

    def linear_in(self, operands: int) -> tuple[tuple[int, ...], ...]:
        return (0,), (1,)

    def direct(self, types: tuple[Type, ...]) -> bool:
        return _aligned(types[0].dims, types[1].dims, self.time)

    def vjp(self, g: Builder, x: Vals, y: Vals, dy: Grads) -> Cotangents:
        if self.later or dy[0] is None:
            return super().vjp(g, x, y, dy)
        back = g.one(LongConvolve(self.time, self.column, True), dy[0], x[1])
        return [back, g.one(LongConvolveKernel(self.time, self.column, x[1].dims), x[0], dy[0])]

    def flops(self, node: Node) -> sp.Expr:
        return _transforms(node, self.time)

    def bytes(self, node: Node) -> sp.Expr:
        return _moved(node)


@dataclass(frozen=True)
class LongConvolveKernel(Composite):
    """The gradient of the kernel [to] of a LongConvolve: d(k)[l] = sum over t of x[t - l - 1] d(y)[t]."""

    time: str
    column: str
    to: Dims

    def expand(self, g: Builder, x: Val, dy: Val) -> Val:
        time, column = self.time, self.column
        need(x.dims == dy.dims, f"{x.type} and {dy.type} differ in dims")
        lag = g.map(f"i_{column} - i_{time} - 1", to=(time, column), dtype="i64")
        return g.einsum(g.gather(x, lag, at=time), g.rename(dy, time, column), to=self.to)

    def linear_in(self, operands: int) -> tuple[tuple[int, ...], ...]:
        return (0,), (1,)

    def direct(self, types: tuple[Type, ...]) -> bool:
        return _aligned(types[0].dims, self.to, self.time)

    def flops(self, node: Node) -> sp.Expr:
        return _transforms(node, self.time)

    def bytes(self, node: Node) -> sp.Expr:
        return _moved(node)


def _aligned(x: Dims, k: Dims, time: str) -> bool:
    """Are positions last, and the kernel's dims the last ones of x?"""
    return x[-1:] == (time,) and x[len(x) - len(k) :] == k


def _transforms(node: Node, time: str) -> sp.Expr:
    """Two real Fourier transforms of twice the length for each row (the kernel's one is shared), of 5/2 n log2 n each,
    counted a quarter: libraries do them at some four times the rate of formulas."""
    return sp.Rational(5, 2) * points(node.ins[0].dims) * sp.log(2 * symbol(f"n_{time}"), 2)


def _moved(node: Node) -> sp.Expr:
    """Rows of twice the length and their spectra are written and read."""
    return 8 * size(node.ins[0])
