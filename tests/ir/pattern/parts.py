"""What a part of a layout lets through, as its definition says."""

from typing import Any

from weft.ir.pattern import LayoutPart, holds


def part_holds(p: LayoutPart, q: Any, k: Any, head: Any = 0, np: Any = None, n: int | None = None) -> Any:
    """Does the part let query q see key k on a head? As `holds`."""
    seen = holds(p.term, q, k, head=head, np=np, n=n)
    if p.heads is None:
        return seen
    first, end, step = p.heads
    return seen * ((head >= first) & (head < end) & ((head - first) % step == 0))
