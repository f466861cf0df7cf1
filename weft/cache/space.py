"""Whether a configuration from a file may be used here: it must be one that today's space would have proposed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

Accept = Callable[[Mapping[str, Any]], bool]
Space = Accept | Mapping[str, Collection[Any]]
"""A judge of configurations, or the values of every knob."""


def within(knobs: Mapping[str, Collection[Any]], constraint: Accept | None = None) -> Accept:
    """A judge that takes exactly these knobs with exactly these values, and what the constraint takes of them.

    1, 1.0 and True are three values here."""
    allowed = {name: {(type(v), v) for v in values} for name, values in knobs.items()}

    def accept(config: Mapping[str, Any]) -> bool:
        if config.keys() != allowed.keys():
            return False
        if not all((type(value), value) in allowed[name] for name, value in config.items()):
            return False
        return constraint is None or bool(constraint(config))

    return accept


def judge(space: Space) -> Accept:
    """The space as a judge that never raises: what it cannot judge, it refuses."""
    accept = within(space) if isinstance(space, Mapping) else space

    def safe(config: Mapping[str, Any]) -> bool:
        try:
            return bool(accept(config))
        except Exception:
            return False

    return safe
