"""The joint graph in torch's own terms: forward ops that give their statistics, and backwards that read them.

before:  y = layer_norm(x, w, b)                          dx, dw, db = grad{layer_norm}(x, w, b, dy)
after:   y, mean, rstd = with_statistics(x, w, b)         dx, dw, db = from_statistics(x, w, b, mean, rstd, dy)

The statistics are small (one number a row), so a block always keeps them from forward to backward; the derivative of
dropout is dropout, and that of a rotation is the rotation back. It does not fire on composites without such a pair in
torch, nor where the normalised dim is not the last one. Same real-arithmetic function; its results are the ops' own.
"""

from dataclasses import dataclass, replace
from typing import Any

from weft.ir.builder import Builder, dce
from weft.ir.derive import backward
from weft.ir.library.dropout import Dropout
from weft.ir.library.loss import CrossEntropy
from weft.ir.library.norm import LayerNorm, RMSNorm, Softmax
from weft.ir.library.rotary import Rotary
from weft.ir.op import Composite, expansion
from weft.ir.primitives import Grad, Loop
from weft.ir.types import Graph, Node, Type, Val

from .rewrite import merge


@dataclass(frozen=True)
class WithStatistics(Composite):
    """A norm or loss `of`, and after its result the statistics that its backward reads (f32 or f64, one a row)."""

    of: Any

    def expand(self, g: Builder, *x: Val) -> tuple[Val, ...]:
        (out,) = g.inline(expansion(self.of, tuple(v.type for v in x)), x)
        over, first = self.of.over, x[0]
        acc = "f64" if first.dtype == "f64" else "f32"
        left = [d for d in first.dims if d != over]
        wide = g.cast(first, acc)
        if isinstance(self.of, CrossEntropy):
            top = g.reduce(wide, to=left, kind="max")
            total = g.reduce(g.map("exp(x - top)", x=wide, top=top, to=first.dims, dtype=acc), to=left)
            return out, g.map("top + log(total)", top=top, total=total, dtype=acc)
        mean = g.mean(wide, over)
        center = wide if isinstance(self.of, RMSNorm) else g.map("x - m", x=wide, m=mean, to=first.dims, dtype=acc)
        square = g.mean(g.map("c*c", c=center, dtype=acc), over)
        rstd = g.map(f"rsqrt(s + {self.of.eps})", s=square, dtype=acc)
        return (out, rstd) if isinstance(self.of, RMSNorm) else (out, mean, rstd)


@dataclass(frozen=True)
class FromStatistics(Composite):
    """d(operands of `of`) from its n operands, its statistics and d(result): `of`'s derivative, other rounding."""

    of: Any
    n: int

    def expand(self, g: Builder, *x: Val) -> tuple[Val, ...]:
        start = len(g.nodes)
        (out,) = g.inline(expansion(self.of, tuple(v.type for v in x[: self.n])), x[: self.n])
        cot = backward(g, g.nodes[start:], {out: x[-1]})
        return tuple(cot.get(v) or g.zeros(v) for v in x[: self.n] if v.type.floating)


@dataclass(frozen=True)
class SoftmaxGrad(Composite):
    """d(x) of a softmax from its result and d(result): y * (dy - sum(y * dy))."""

    over: str

    def expand(self, g: Builder, y: Val, dy: Val) -> Val:
        left = [d for d in y.dims if d != self.over]
        total = g.reduce(g.map("y*dy", y=y, dy=dy, to=y.dims, dtype=y.dtype), to=left)
        return g.map("y*(dy - total)", y=y, dy=dy, total=total, to=y.dims, dtype=y.dtype)


@dataclass(frozen=True)
class RotaryBack(Composite):
    """The transpose of a rotation: operands d(result), then the positions if there are any."""

    of: Rotary

    def expand(self, g: Builder, dy: Val, *at: Val) -> Val:
        """The rotation by the opposite angles."""
        position = self.of.position
        back = g.map("-at", at=at[0], dtype="i64") if at else g.map(f"-i_{position}", to=(position,), dtype="i64")
        return self.of.expand(g, dy, back)


def last(of: Any, types: tuple[Type, ...]) -> bool:
    """Is the dim that `of` works over the last one of its first operand?"""
    return types[0].dims[-1:] == (of.over,)


def fast(joint: Graph) -> Graph:
    """The joint graph with every known pair of forward and backward joined by its statistics."""
    wanted = {(n.op.inner, n.ins[: n.op.n]) for n in joint.nodes if isinstance(n.op, Grad)}
    g = Builder()
    env = {v: g.input(v.name, v.type) for v in joint.inputs}
    for n in joint.nodes:
        with g.at(n.src):
            outs = _node(g, n, [env[v] for v in n.ins], (n.op, n.ins) in wanted)
        env.update(zip(n.outs, outs, strict=True))
    return merge(dce(g.graph(*(env[v] for v in joint.outputs), decisions=joint.decisions)))


def _node(g: Builder, n: Node, ins: list[Val], again: bool) -> tuple[Val, ...]:
    """One node, or the pair's form of it. `again`: its derivative stands in the graph too."""
    op, names = n.op, [v.name for v in n.outs]
    if isinstance(op, LayerNorm | RMSNorm | CrossEntropy) and again and last(op, n.types):
        return _statistics(g, op, ins, names)[:1]
    if isinstance(op, Grad):
        inner, own, dy = op.inner, ins[: op.n], ins[op.n :]
        if isinstance(inner, LayerNorm | RMSNorm | CrossEntropy) and last(inner, n.types):
            _, *statistics = _statistics(g, inner, own, [names[0]])
            return g.many(FromStatistics(inner, op.n), *own, *statistics, *dy, names=names)
        if isinstance(inner, Softmax):
            y = g.one(inner, *own)
            return (g.one(SoftmaxGrad(inner.over), y, *dy, names=names),)
        if isinstance(inner, Dropout):
            return (g.one(inner, *dy, *own[1:], names=names),)
        if isinstance(inner, Rotary):
            return (g.one(RotaryBack(inner), *dy, *own[1:], names=names),)
    if isinstance(op, Loop):
        op = replace(op, body=fast(op.body))
    return g.many(op, *ins, names=names)


def _statistics(g: Builder, of: Any, ins: list[Val], names: list[str]) -> tuple[Val, ...]:
    stats = {LayerNorm: ["mean", "rstd"], RMSNorm: ["rstd"], CrossEntropy: ["lse"]}[type(of)]
    return g.many(WithStatistics(of), *ins, names=[*names, *stats])


def statistics(joint: Graph) -> tuple[str, ...]:
    """Names of the statistics in a `fast` joint graph that its derivatives read: what a block keeps in every mode."""
    made = {v for n in joint.nodes if isinstance(n.op, WithStatistics) for v in n.outs[1:]}
    read = {v for n in joint.nodes if isinstance(n.op, FromStatistics) for v in n.ins}
    return tuple(sorted(v.name for v in made & read))
