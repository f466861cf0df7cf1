"""Cross-entropy against an index."""

from dataclasses import dataclass

from weft.ir.builder import Builder
from weft.ir.library.precision import accumulate
from weft.ir.op import Composite
from weft.ir.types import Val


@dataclass(frozen=True)
class CrossEntropy(Composite):
    """log-sum-exp over `over` minus the target's logit, per position, in fp32.

    Operands: logits [... over ...], target i64[...]. Where the target is `ignore` the loss is 0 and so is its gradient;
    the mean over what counts is the caller's. Any other target is a coordinate of `over`: see `weft.ir.indices`.
    """

    over: str
    ignore: int | None = None

    def expand(self, g: Builder, x: Val, target: Val) -> Val:
        acc, left = accumulate(x), [d for d in x.dims if d != self.over]
        top = g.detach(g.reduce(x, to=left, kind="max"))
        total = g.reduce(g.map("exp(x - top)", x=x, top=top, to=x.dims, dtype=acc), to=left)
        chosen = f"where(i_{self.over} == y, x - top, 0)"
        hit = g.reduce(g.map(chosen, x=x, y=target, top=top, to=x.dims, dtype=acc), to=left)
        loss = "log(total) - hit"  # both measured from the maximum, so nothing cancels
        if self.ignore is None:
            return g.map(loss, total=total, hit=hit, to=left, dtype=acc)
        loss = f"where(y != {self.ignore}, {loss}, 0)"
        return g.map(loss, total=total, hit=hit, y=target, to=left, dtype=acc)
