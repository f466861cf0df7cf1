"""Top-k routing of tokens to experts, and products of tokens with the weights of the experts they were routed to."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy as sp

from weft.ir.builder import Builder
from weft.ir.composite import Composite
from weft.ir.library.norm import Softmax
from weft.ir.ops.op import Cotangents, Grads, Vals, points
from weft.ir.types import Dims, Node, Val, need, union

ONE_HOT = "where(i_{over} == k, 1, 0)"


@dataclass(frozen=True)
class Route(Composite):
    """Choose k experts per token, and each token's place in their queues (Switch: Fedus et al. 2021, eq. 1 to 6).

    Operands: logits f32[... along ... over ...]; optionally the queues' lengths so far, i64[... over ...] without
    `along`, to continue a sequence. Outputs, with `rest` = the logits' dims without `over`, then `choice` if given
    (required for k > 1):

    - expert i64[rest]: the index of the j-th largest logit; of equal ones the lowest index comes first.
    - place i64[rest]: how many choices of that expert came earlier along `along` (in the same row of the other dims);
      a scatter into a capacity dim drops what lies past it, and a gather reads 0 there.
    - gate f32[rest]: softmax probability of the chosen expert; with `normalize` they sum to 1 over the k choices.
    - aux f32[]: n_over * sum_i f_i P_i, f the fraction of tokens that chose i (before capacity), P the mean
      probability, both along `along`, averaged over the other dims.
    - count i64[... over ...]: the queues' lengths at the end.
    - z f32[], with `z_loss`: the mean squared log-sum-exp of the logits (ST-MoE: Zoph et al. 2022, eq. 5).
    """

    over: str
    along: str
    k: int = 1
    choice: str = ""
    normalize: bool = False
    z_loss: bool = False
    again = False

    def expand(self, g: Builder, logits: Val, *count: Val) -> tuple[Val, ...]:
        need(logits.type.dtype in ("f32", "f64"), f"routing wants fp32 logits, got {logits.type}; cast them")
        need(self.k == 1 or bool(self.choice), f"routing to {self.k} experts needs a name for the dim of choices")
        need({self.over, self.along} <= set(logits.dims), f"{logits.type} has no {self.over} or no {self.along}")
        left = tuple(d for d in logits.dims if d != self.over)
        p = g.one(Softmax(self.over), logits)
        experts, hots = self._choose(g, logits, left)
        every: dict[str, Any] = {f"h{j}": h for j, h in enumerate(hots)}
        taken = g.map(" + ".join(every), **every, dtype="i64") if self.k > 1 else hots[0]
        before, total = self._count(g, taken, *count)
        places, gates = ([self._at(g, x, hot, left) for hot in hots] for x in (before, p))
        if self.normalize:
            names: dict[str, Any] = {f"g{j}": gate for j, gate in enumerate(gates)}
            gates = [g.map(f"g{j} / ({' + '.join(names)})", **names, dtype=p.type.dtype) for j in range(self.k)]
        out = (*(self._join(g, x, left) for x in (experts, places, gates)), self._balance(g, taken, p), total)
        return (*out, self._z(g, logits, left)) if self.z_loss else out

    def step(self, s: Any, n: Node, ins: Sequence[Any]) -> Iterable[Any]:
        """The queues are as long as earlier choices made them. What else a router gives (losses) mixes positions."""
        if self.along != s.time or len(ins) != 1:
            return super().step(s, n, ins)
        key, lengths = f"{self.over}_row", n.outs[4].dims
        held, rest = s.held(n.outs[0], key)
        formula = f"where(pos - n_past_{key} + i_past_{key} >= 0 and expert == i_{self.over}, 1, 0)"
        waiting = s.g.map(formula, expert=held, pos=s.fed.pos, to=(*held.dims, self.over), dtype="i64")
        made = s.g.many(self, s.value(ins[0]), s.g.reduce(waiting, to=lengths), names=[v.name for v in n.outs])
        expert, place, gate, *_ = made
        s.routes(n, held, s.g.expand(expert, to=(s.rows, s.time, *rest)), key, (expert, place))
        bad = s.refusal(n, f"mixes positions along {s.time}")
        return [expert, place, gate, *(bad for _ in n.outs[3:])]

    def _at(self, g: Builder, x: Val, hot: Val, left: Dims) -> Val:
        """x at the chosen expert."""
        return g.reduce(g.map("x * hot", x=x, hot=hot, to=hot.dims, dtype=x.dtype), to=left)

    def _choose(self, g: Builder, logits: Val, left: Dims) -> tuple[list[Val], list[Val]]:
        """The k largest by repeated argmax: k is small, and ties then need no rule of their own."""
        experts, hots, open_ = list[Val](), list[Val](), logits
        for j in range(self.k):
            if j:
                masked = "where(hot == 0, x, -oo)"
                open_ = g.map(masked, x=open_, hot=hots[-1], to=logits.dims, dtype=logits.type.dtype)
            experts.append(g.reduce(open_, to=left, kind="argmax"))
            hots.append(g.map(ONE_HOT.format(over=self.over), k=experts[-1], to=logits.dims, dtype="i64"))
        return experts, hots

    def _count(self, g: Builder, taken: Val, *start: Val) -> tuple[Val, Val]:
        """Exclusive running sum of `taken` along `along`, and its end."""
        first = start[0] if start else g.map("0", to=[d for d in taken.dims if d != self.along], dtype="i64")
        b = Builder()
        n, x = b.input("n", first.type), b.input("x", taken.type.but(d for d in taken.dims if d != self.along))
        body = b.graph(b.map("n + x", n=n, x=b.expand(x, to=n.dims), dtype="i64"))
        total, before = g.loop(self.along, body, 1, first, taken)
        return g.expand(before, to=taken.dims), total

    def _join(self, g: Builder, values: list[Val], left: Dims) -> Val:
        """The k values along the dim of choices."""
        if not self.choice:
            return values[0]
        names: dict[str, Any] = {f"v{j}": v for j, v in enumerate(values)}
        formula = f"v{self.k - 1}"
        for j in reversed(range(self.k - 1)):
            formula = f"where(i_{self.choice} == {j}, v{j}, {formula})"
        return g.map(formula, **names, to=(*left, self.choice), dtype=values[0].type.dtype)

    def _balance(self, g: Builder, taken: Val, p: Val) -> Val:
        fraction = g.mean(g.cast(taken, p.type.dtype), self.along)
        load = g.map(f"f * p * n_{self.over}", f=fraction, p=g.mean(p, self.along), dtype=p.type.dtype)
        total = g.reduce(load, to=[d for d in load.dims if d != self.over])
        return g.mean(total, total.dims) if total.dims else total

    def _z(self, g: Builder, logits: Val, left: Dims) -> Val:
        dtype = logits.type.dtype
        top = g.detach(g.reduce(logits, to=left, kind="max"))
        total = g.reduce(g.map("exp(x - top)", x=logits, top=top, to=logits.dims, dtype=dtype), to=left)
        square = g.map("(top + log(total))**2", top=top, total=total, to=left, dtype=dtype)
        return g.mean(square, left)


@dataclass(frozen=True)
class ExpertProduct(Composite):
    """Rows times the matrices of their own experts, for as many rows as each has: no slots, and nothing dropped.

    Operands: x [rows .. k ..], which may lack some of the rows' dims; w [over k .. n ..]; expert i64[rows], the row of
    `over`. Result [to], of the dims of rows and n: y[r, n] = sum over k of x[r, k] w[expert[r], k, n].
    Source: dropless mixtures (Gale et al. 2022, MegaBlocks, section 4).
    """

    over: str
    to: Dims

    def expand(self, g: Builder, x: Val, w: Val, expert: Val) -> Val:
        need(self.over in w.dims and self.over not in x.dims, f"the experts {self.over} are a dim of {w.type} alone")
        need(set(expert.dims) <= set(self.to), f"the result has all dims of the rows {expert.type}")
        need(not set(w.dims) & set(expert.dims), f"{w.type} has dims of the rows {expert.type}")
        need(set(x.dims) <= {*expert.dims, *w.dims}, f"{x.type} has dims that neither rows nor matrices have")
        return g.einsum(x, w, _hot(g, expert, self.over, x.dtype), to=self.to)

    def flops(self, node: Node) -> sp.Expr:
        return _flops(node, self.over)

    def vjp(self, g: Builder, x: Vals, y: Vals, dy: Grads) -> Cotangents:
        rows, w, expert = x
        out = dy[0]
        assert out is not None
        every = (*expert.dims, *(d for d in rows.dims if d not in expert.dims))
        yield g.reduce(g.one(ExpertProduct(self.over, every), out, w, expert), to=rows.dims)
        yield g.one(ExpertWeights(self.over, w.dims), rows, out, expert)
        yield None


@dataclass(frozen=True)
class ExpertWeights(Composite):
    """The gradient of ExpertProduct's matrices: for each expert, the sum over its own rows of x times d.

    Operands: x [rows .. k ..], which may lack some of the rows' dims; d [rows .. n ..]; expert i64[rows]. Result [to]:
    dw[e, k, n] = sum over the rows r with expert[r] = e of x[r, k] d[r, n]; 0 for an expert without rows.
    """

    over: str
    to: Dims

    def expand(self, g: Builder, x: Val, d: Val, expert: Val) -> Val:
        need(self.over in self.to, f"the result has the dim of the experts {self.over}")
        return g.einsum(x, d, _hot(g, expert, self.over, x.dtype), to=self.to)

    def flops(self, node: Node) -> sp.Expr:
        return _flops(node, self.over)


def _hot(g: Builder, expert: Val, over: str, dtype: str) -> Val:
    """1 at each row's own expert, else 0."""
    return g.map(ONE_HOT.format(over=over), k=expert, to=(*expert.dims, over), dtype=dtype)


def _flops(node: Node, over: str) -> sp.Expr:
    """A row meets one expert alone."""
    return 2 * points(d for d in union(*(v.dims for v in (*node.ins, *node.outs))) if d != over)
