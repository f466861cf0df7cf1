"""The dims that a recurrence's positions can be cut into."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weft.errors import Path
from weft.frontends.schema_values import Size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weft.frontends.lower.scope import Scope


def chunk_dims(s: Scope, size: Size, own: Sequence[str], path: Path) -> tuple[str, ...]:
    """Chunks, places in one, and the same under two more names. own: dims that they must not share a tensor with."""
    low, n = s.low, s.ir.symbol
    with low.reading((*path, "chunk"), "W0201"):
        number = low.dims.size(size)
    avoid = (*s.space, *own)
    row = low.mint("chunk", number, avoid)
    chunks = low.mint("chunks", s.ir.parse(f"ceil(n_{s.length} / n_{row})"), avoid)
    return chunks, row, *(low.mint(f"{row}_{name}", n(f"n_{row}"), avoid) for name in ("key", "sum"))
