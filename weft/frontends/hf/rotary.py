"""Rotary positions as the configs of many families have them, and as a spec says them."""

from __future__ import annotations

from typing import Any

from weft.frontends.hf.family import Values
from weft.frontends.hf.options import ConfigOption, Unsaid, number

KEYS = {"rope_theta", "rope_type", "type"}


def _parameters(value: Any) -> dict[str, Any] | None:
    """`rope_parameters` (or `rope_scaling`): a map whose type is the default, nothing scaled."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise Unsaid("W0105", "expected a map, or null")
    kind = value.get("rope_type", value.get("type", "default"))
    if kind != "default":
        raise Unsaid("W0104", f"rope_type {str(kind)[:40]!r} is nothing that a spec says", "known: default")
    if odd := sorted(set(value) - KEYS):
        raise Unsaid("W0104", f"{', '.join(odd)[:80]}: no spec says that", f"known: {', '.join(sorted(KEYS))}")
    return {"rope_theta": number(None).read(value.get("rope_theta"))}


def options(base: float) -> dict[str, ConfigOption]:
    """The options of rotary positions, in the spelling of transformers 5 (`rope_parameters`) and of those before."""
    return {
        "rope_parameters": ConfigOption(_parameters, None),
        "rope_theta": number(base, least=1.0),
        "rope_scaling": ConfigOption(_parameters, None),
    }


def rotary(c: Values) -> Any:
    """The key `rotary` of an attention."""
    base = (c["rope_parameters"] or {}).get("rope_theta") or c["rope_theta"]
    return True if base == 10000 else {"base": int(base) if base == int(base) else base}
