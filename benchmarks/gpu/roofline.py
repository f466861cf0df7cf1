"""How near a timed kernel comes to what this GPU was measured to reach."""

from collections.abc import Sequence
from typing import Any

BAR = 0.8
"""Least share of the copy's rate for pointwise and rowwise kernels, forward."""
BOUND_BY_BYTES = ("pointwise", "rowwise")
Row = dict[str, Any]


def ceilings(rows: Sequence[Row]) -> tuple[float, float]:
    """(bytes a second, bf16 operations a second) from the rows of that stage; 0 where one is missing."""
    known = {r["case"]: r for r in rows}
    copy, product = known.get("copy", {}), known.get("product bfloat16", {})
    return float(copy.get("bytes_per_second", 0)), float(product.get("flops_per_second", 0))


def share(rows: Sequence[Row], bandwidth: float, rate: float) -> None:
    """Add to each timed row its `roofline_us`, the `share` of it that weft reaches, and whether the aim is met.

    The roofline is the larger of bytes over the copy's rate and operations over the product's."""
    for row in rows:
        own = row.get("times", {}).get("weft", {}).get("us")
        if not own or not bandwidth or not rate:
            continue
        row["roofline_us"] = 1e6 * max(row["bytes"] / bandwidth, row["flops"] / rate)
        row["share"] = row["roofline_us"] / own
        if row.get("skeleton") in BOUND_BY_BYTES and row.get("half") == "forward":
            row.setdefault("bars", {})["copy"] = row["bytes"] / bandwidth * 1e6 >= BAR * own
