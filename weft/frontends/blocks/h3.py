"""H3: a shift state space and a diagonal one, with a product before and one behind the latter (Fu et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from weft.errors import Path, Problem, SpecError
from weft.frontends.blocks.convolution import read_back, there
from weft.frontends.blocks.diagonal import Diagonal
from weft.frontends.blocks.kind import Aux, BlockKind
from weft.frontends.schema_values import Init, InitRule, Size

if TYPE_CHECKING:
    from weft.frontends.lower.scope import Scope
    from weft.frontends.resolve import Dims
    from weft.ir.types import Val


class H3(BlockKind):
    """H3 (Fu et al. 2023): of q, k and v, matrices of the input, output(q * diagonal(shift(k) * v)).

    `shift` reads the last `taps` positions, with kernel[l] = sum over j of b[j] c[j + l], two parameters a channel. In
    heads of several dims, shift(k) * v is an outer product whose entries all have their head's numbers, and q sums over
    the dim of k.
    """

    kind: Literal["h3"] = "h3"
    head: Size = Field(default=1, description="size of a head: a divisor of `width`")
    taps: Size = Field(default=64, description="positions that the shift reads: its own and those before it")
    system: Diagonal = Field(
        default=Diagonal(discretisation="bilinear", drive="ones"),
        description="the diagonal one; default: `{discretisation: bilinear, drive: ones}`",
    )
    shift: Init = Field(
        default=InitRule(normal=1.0), description="the parameter c of the shift; b starts at 1, 0, 0 .."
    )
    bias: bool = Field(default=True, description="biases on the four matrices")

    def problems(self, dims: Dims, path: Path) -> Iterator[Problem]:
        yield from self.system.problems((*path, "system"))

    def lower(self, s: Scope, x: Val, stem: str, path: Path) -> tuple[Val, Aux]:
        low = s.low
        with low.reading((*path, "head"), "W0201"):
            size = low.dims.size(self.head)
        width = low.number("width")
        if width % size:
            raise SpecError.at((*path, "head"), "W0402", f"heads of {size} do not divide the width {width}")
        with s.at(*path):
            heads = low.mint("heads", width // size, s.space)
            one = size == 1
            key, value = ((), ()) if one else ((low.mint(n, size, (*s.space, heads)),) for n in ("key", "value"))
            own = {"query": (heads, *key), "key": (heads, *key), "value": (heads, *value)}
            q, k, v = (self._matrix(s, x, n, dims, stem) for n, dims in own.items())
            k = self._shifted(s, k, own["key"], stem, path)
            both = " ".join(dict.fromkeys((*s.rows.split(), *own["key"], *own["value"])))
            kv = s.map("pairs", "k*v", k=k, v=v, to=both, dtype=s.accumulate)
            y = self.system.lower(s, kv, heads, stem, (*path, "system"))
            to = " ".join((*s.rows.split(), *own["value"]))
            q = s.g.cast(q, s.accumulate)
            if one:
                read = s.map("read", "q*y", q=q, y=y, to=to, dtype=s.compute)
            else:
                read = s.g.cast(s.einsum("read", q, y, to=to), s.compute)
            last = " ".join(own["value"])
            bias = "width" if self.bias else None
            name = stem.rsplit(".", 1)[-1]
            out = s.linear(name, read, f"{last} width", " ".join(s.space), f"{stem}.output", bias, "output", last)
            return out, []

    def _matrix(self, s: Scope, x: Val, name: str, own: tuple[str, ...], stem: str) -> Val:
        dims, to = " ".join(own), " ".join((*s.rows.split(), *own))
        return s.linear(name, x, f"width {dims}", to, f"{stem}.{name}", dims if self.bias else None)

    def _shifted(self, s: Scope, k: Val, own: tuple[str, ...], stem: str, path: Path) -> Val:
        """The shift of k, and what skips it."""
        low, dims, dtype = s.low, " ".join(own), s.accumulate
        tap = low.axis(self.taps, "taps", (*path, "taps"), (*s.space, *own))
        place = low.mint(f"{tap}_place", low.sizes[tap], (*s.space, *own, tap))
        b = s.param(f"{stem}.shift_in", f"{dims} {tap}", rule=(s.ir.Init("first"), ()), dtype=dtype, wide=True)
        c = s.param(f"{stem}.shift_out", f"{dims} {tap}", rule=(self.shift, (*path, "shift")), dtype=dtype, wide=True)
        d = s.param(f"{stem}.shift_skip", dims, rule=(InitRule(normal=1.0), ()), dtype=dtype, wide=True)
        far = s.map("far", f"i_{place} + n_{tap} - 1 - i_{tap}", to=f"{place} {tap}", dtype="i64")
        later = s.gather("later", c, far, at=tap)
        kernel = s.einsum("kernel", s.rename("b", b, tap, place), later, to=f"{tap} {dims}")
        wide = s.g.cast(k, dtype)
        y = read_back(s, there(s, wide), kernel, tap, 1)
        return s.map("shifted", "y + d*k", y=y, d=d, k=wide, to=" ".join(k.dims), dtype=dtype)
