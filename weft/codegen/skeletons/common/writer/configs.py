"""Configurations by architecture and dtype."""

from collections.abc import Mapping
from typing import Any

from weft.targets import ARCHS, KERNEL_DTYPES

Configs = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""arch -> dtype -> configuration."""


def everywhere(found: Mapping[str, Any]) -> Configs:
    """One configuration for all."""
    return {a: {d: dict(found) for d in KERNEL_DTYPES} for a in ARCHS}
