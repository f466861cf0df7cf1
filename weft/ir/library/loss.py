"""Cross-entropy against an index."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weft.ir.builder import Builder
from weft.ir.library.precision import accumulate
from weft.ir.library.statistics import Rows
from weft.ir.ops.op import Lookup, Vals
from weft.ir.types import Val


@dataclass(frozen=True)
class CrossEntropy(Rows):
    """log-sum-exp over `over` minus the target's logit, per position, in fp32.

    Operands: logits [... over ...], target i64[...]. Where the target is `ignore` the loss is 0 and so is its gradient;
    the mean over what counts is the caller's. Any other target is a coordinate of `over`: see `weft.ir.indices`.
    """

    over: str
    ignore: int | None = None
    statistics = ("lse",)

    def expand(self, g: Builder, x: Val, target: Val) -> Val:
        return self._loss(g, x, x, target)[0]

    def forward(self, g: Builder, x: Sequence[Val], names: Sequence[str] = ()) -> Vals:
        logits, target = x
        loss, top, total = self._loss(g, logits, g.cast(logits, accumulate(logits)), target, names[:1])
        lse = g.map("top + log(total)", top=top, total=total, to=loss.dims, dtype=loss.dtype, names=names[1:] or None)
        return loss, lse

    def _loss(self, g: Builder, x: Val, wide: Val, target: Val, names: Sequence[str] = ()) -> Vals:
        """The loss, the maximum and the sum of exp(x - maximum)."""
        acc, left = accumulate(x), [d for d in x.dims if d != self.over]
        top = g.detach(g.reduce(wide, to=left, kind="max"))
        total = g.reduce(g.map("exp(x - top)", x=x, top=top, to=x.dims, dtype=acc), to=left)
        chosen = f"where(i_{self.over} == y, x - top, 0)"
        hit = g.reduce(g.map(chosen, x=x, y=target, top=top, to=x.dims, dtype=acc), to=left)
        formula = self._counting("log(total) - hit")  # both measured from the maximum, so nothing cancels
        given: dict[str, Any] = {} if self.ignore is None else {"y": target}
        loss = g.map(formula, total=total, hit=hit, **given, to=left, dtype=acc, names=names or None)
        return loss, top, total

    def backward(self, g: Builder, x: Sequence[Val], statistics: Sequence[Val], dy: Val, names: Sequence[str]) -> Vals:
        logits, target = x
        formula = self._counting(f"(exp(x - lse) - where(i_{self.over} == y, 1, 0))*dy")
        given: dict[str, Any] = {"x": logits, "lse": statistics[0], "y": target, "dy": dy}
        return (g.map(formula, **given, to=logits.dims, dtype=logits.dtype, names=names),)

    def _counting(self, formula: str) -> str:
        """A formula with 0 where the target does not count."""
        return formula if self.ignore is None else f"where(y != {self.ignore}, {formula}, 0)"

    def lookup(self, operand: int) -> Lookup | None:
        return Lookup(self.over, self.ignore, True) if operand == 1 else None

    def wide(self, results: int) -> tuple[bool, ...] | None:
        return (True,) * results
