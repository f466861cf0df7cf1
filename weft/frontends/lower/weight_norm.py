"""Weight norm: a matrix by its direction and the norms of its columns (Salimans and Kingma 2016)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weft.errors import Path
    from weft.frontends.lower.scope import Scope
    from weft.frontends.schema_values import Init
    from weft.ir.types import Val


def weights(s: Scope, stem: str, into: str, out: str, rule: Init | None, path: Path, role: str = "weight") -> Val:
    """The weights [into out]: w = `stem`.weight; with a rule for it g w / ||w||, g = `stem`.gain [out], norms over
    `into`, in the accumulate dtype."""
    dims = f"{into} {out}"
    w = s.param(f"{stem}.weight", dims, role, into, dtype=s.compute if rule is None else s.accumulate)
    if rule is None:
        return w
    gain = s.param(f"{stem}.gain", out, rule=(rule, (*path, "weight_norm")), dtype=s.accumulate)
    square = s.map("square", "w*w", w=w, dtype=s.accumulate)
    total = s.g.reduce(square, to=(out,))
    return s.map("weights", "w * gain * rsqrt(t)", w=w, gain=gain, t=total, to=dims, dtype=s.compute)
