"""What norms and losses mean where a kernel holds a whole row: written from their statistics, few reductions each.

    LayerNorm   c = x - mean, y = c rstd w + b           dx = rstd (g - mean(g) - u mean(g u)),  g = dy w, u = c rstd
    RMSNorm     y = x rstd w                             dx = rstd (g - u mean(g u)),  u = x rstd
    loss        log sum exp(x - top) - (x[y] - top)      dx = (exp(x - lse) - [i = y]) dloss

Same real-arithmetic functions as the expansions that the library declares, and as torch's own kernels compute.
"""

from collections.abc import Sequence
from typing import Any

from weft.ir.builder import Builder
from weft.ir.library.loss import CrossEntropy
from weft.ir.library.norm import LayerNorm, RMSNorm
from weft.ir.types import Graph, Val

from .fast import FromStatistics, WithStatistics


def rewritten(graph: Graph) -> Graph:
    """The graph with norms and losses, and their derivatives from statistics, in these forms."""
    g = Builder()
    env = {v: g.input(v.name, v.type) for v in graph.inputs}
    for n in graph.nodes:
        ins, names = [env[v] for v in n.ins], [v.name for v in n.outs]
        with g.at(n.src):
            outs = _form(g, n.op, ins, names) or g.many(n.op, *ins, names=names)
        env.update(zip(n.outs, outs, strict=True))
    return g.graph(*(env[v] for v in graph.outputs))


def _form(g: Builder, op: Any, ins: Sequence[Val], names: Sequence[str]) -> tuple[Val, ...] | None:
    of = op.of if isinstance(op, WithStatistics | FromStatistics) else op
    if isinstance(op, FromStatistics):
        own, statistics, dy = ins[: op.n], ins[op.n : -1], ins[-1]
        if isinstance(of, CrossEntropy):
            return _loss_back(g, of, own, statistics[0], dy, names)
        return _norm_back(g, of, own, statistics, dy, names)
    if isinstance(of, LayerNorm | RMSNorm):
        return _norm(g, of, ins, names, isinstance(op, WithStatistics))
    if isinstance(of, CrossEntropy):
        return _loss(g, of, ins, names, isinstance(op, WithStatistics))
    return None


def _wide(x: Val) -> str:
    return "f64" if x.dtype == "f64" else "f32"


def _norm(g: Builder, of: Any, ins: Sequence[Val], names: Sequence[str], statistics: bool) -> tuple[Val, ...]:
    x, *affine = ins
    acc, over = _wide(x), of.over
    left = [d for d in x.dims if d != over]
    more = list(names[1:]) if statistics else []
    c, own = x, ()
    if isinstance(of, LayerNorm):
        total = g.reduce(g.cast(x, acc), to=left)
        mean = g.map(f"t / n_{over}", t=total, dtype=acc, names=more[:1] or None)
        c = g.map("x - mean", x=x, mean=mean, to=x.dims, dtype=acc)
        own, more = (mean,), more[1:]
    total = g.reduce(g.map("c*c", c=c, dtype=acc), to=left)
    rstd = g.map(f"rsqrt(t / n_{over} + {of.eps})", t=total, dtype=acc, names=more[:1] or None)
    formula = ("c*rstd", "c*rstd*w", "c*rstd*w + b")[len(affine)]
    given: dict[str, Any] = dict(zip("wb", affine))
    y = g.map(formula, c=c, rstd=rstd, **given, to=x.dims, dtype=x.dtype, names=names[:1])
    return (y, *own, rstd) if statistics else (y,)


def _norm_back(
    g: Builder, of: Any, own: Sequence[Val], statistics: Sequence[Val], dy: Val, names: Sequence[str]
) -> tuple[Val, ...]:
    x, *affine = own
    acc, over = _wide(x), of.over
    left = [d for d in x.dims if d != over]
    rstd = statistics[-1]
    center = "(x - mean)*rstd" if isinstance(of, LayerNorm) else "x*rstd"
    mean: dict[str, Any] = {"mean": statistics[0]} if isinstance(of, LayerNorm) else {}
    u = g.map(center, x=x, rstd=rstd, **mean, to=x.dims, dtype=acc)
    d = g.map("dy*w", dy=dy, w=affine[0], to=x.dims, dtype=acc) if affine else g.cast(dy, acc)
    both = g.reduce(g.map("d*u", d=d, u=u, to=x.dims, dtype=acc), to=left)
    formula, given = f"rstd*(d - u*both / n_{over})", dict[str, Any](both=both)
    if isinstance(of, LayerNorm):
        formula = f"rstd*(d - one / n_{over} - u*both / n_{over})"
        given["one"] = g.reduce(d, to=left)
    dx = g.map(formula, rstd=rstd, d=d, u=u, **given, to=x.dims, dtype=x.dtype, names=names[:1])
    out = [dx]
    if affine:
        dw = g.map("dy*u", dy=dy, u=u, to=x.dims, dtype=acc)
        out.append(g.cast(g.reduce(dw, to=affine[0].dims), affine[0].dtype))
    if len(affine) > 1:
        out.append(g.cast(g.reduce(g.cast(dy, acc), to=affine[1].dims), affine[1].dtype))
    return tuple(out)


def _loss(g: Builder, of: Any, ins: Sequence[Val], names: Sequence[str], statistics: bool) -> tuple[Val, ...]:
    x, y = ins
    acc, left = _wide(x), [d for d in x.dims if d != of.over]
    top = g.detach(g.reduce(g.cast(x, acc), to=left, kind="max"))
    total = g.reduce(g.map("exp(x - top)", x=x, top=top, to=x.dims, dtype=acc), to=left)
    chosen = f"where(i_{of.over} == y, x - top, 0)"
    hit = g.reduce(g.map(chosen, x=x, y=y, top=top, to=x.dims, dtype=acc), to=left)
    formula, more = "log(total) - hit", dict[str, Any]()
    if of.ignore is not None:
        formula = f"where(y != {of.ignore}, {formula}, 0)"
        more["y"] = y
    loss = g.map(formula, total=total, hit=hit, **more, to=left, dtype=acc, names=names[:1])
    if not statistics:
        return (loss,)
    return loss, g.map("top + log(total)", top=top, total=total, to=left, dtype=acc, names=names[1:])


def _loss_back(g: Builder, of: Any, own: Sequence[Val], lse: Val, dy: Val, names: Sequence[str]) -> tuple[Val, ...]:
    x, y = own
    formula = f"(exp(x - lse) - where(i_{of.over} == y, 1, 0))*dy"
    if of.ignore is not None:
        formula = f"where(y != {of.ignore}, {formula}, 0)"
    return (g.map(formula, x=x, lse=lse, y=y, dy=dy, to=x.dims, dtype=x.dtype, names=names),)
