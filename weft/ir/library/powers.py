"""Powers of numbers along a new dim: of what a linear recurrence with fixed decays is made."""

from dataclasses import dataclass

from weft.ir.builder import Builder
from weft.ir.composite import Composite
from weft.ir.ops.op import Cotangents, Grads, Vals
from weft.ir.ops.regions import Loop
from weft.ir.types import Val, need


@dataclass(frozen=True)
class Powers(Composite):
    """1, a, a^2, .. a^(n_at - 1) along a new last dim `at`, of a number or of a complex one by its parts.

    Operands: a, or re and im; results [.. at], as many. No logarithm: exact for numbers that are 0, negative or large.
    """

    at: str

    def expand(self, g: Builder, *a: Val) -> Vals:
        need(len(a) in (1, 2), f"powers takes a number or two parts of one, found {len(a)} operands")
        need(len({v.type for v in a}) == 1, "powers: the parts of a number differ in type")
        need(self.at not in a[0].dims, f"powers: {a[0].type} already has a dim {self.at}")
        dims, dtype, b = a[0].dims, a[0].dtype, g.body()
        starts = [g.map(int(i == 0), to=dims, dtype=dtype) for i in range(len(a))]
        before = [b.input(n, v.type) for n, v in zip(("p", "q"), a)]
        given = dict(zip(("re", "im"), (b.input(n, v.type) for n, v in zip(("re", "im"), a))))
        formulas = ["p*re"] if len(a) == 1 else ["p*re - q*im", "p*im + q*re"]
        after = b.maps(formulas, dict(zip(("p", "q"), before)), to=dims, dtype=dtype, **given)
        found = g.many(Loop(self.at, b.graph(*after), len(a)), *starts, *a)[len(a) :]
        return tuple(g.expand(v, to=(*dims, self.at)) for v in found)

    def vjp(self, g: Builder, x: Vals, y: Vals, dy: Grads) -> Cotangents:
        """n a^(n - 1), conjugated, times the cotangent of a^n."""
        at, dims, dtype = self.at, y[0].dims, y[0].dtype
        less = g.map(f"i_{at} - 1", to=(at,), dtype="i64")
        names = ("p", "q")[: len(x)]
        given: dict[str, Val] = dict(zip(names, (g.expand(g.gather(v, less, at=at), to=dims) for v in y)))
        given |= {f"d{n}": g.zeros(y[i]) if d is None else d for i, (n, d) in enumerate(zip(names, dy))}
        formulas = ["p*dp"] if len(x) == 1 else ["p*dp + q*dq", "p*dq - q*dp"]
        each = g.maps([f"i_{at}*({f})" for f in formulas], given, to=dims, dtype=dtype)
        return [g.reduce(v, to=x[0].dims) for v in each]
