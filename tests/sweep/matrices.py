"""Recurrences that multiply by matrices, drawn."""

import copy
import random
from typing import Any

from tests.sweep import options as o


def multiplied(draw: random.Random, told: list[str]) -> dict[str, Any]:
    """One of them, and how it runs. told: options that it took."""
    found: dict[str, Any] = {"kind": "tensor_recurrence", **copy.deepcopy(draw.choice(o.MATRICES))}
    found |= {k: copy.deepcopy(draw.choice(v)) for k, v in o.MATRIX.items() if draw.random() < 0.6}
    told += [f"matrices={found['update']}", *(f"matrices.{k}={found[k]}" for k in o.MATRIX if k in found)]
    return found
