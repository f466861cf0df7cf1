"""Top-k routing of tokens to experts."""

from dataclasses import dataclass
from typing import Any

from weft.ir.builder import Builder
from weft.ir.library.norm import Softmax
from weft.ir.op import Composite
from weft.ir.types import Dims, Val, need

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
