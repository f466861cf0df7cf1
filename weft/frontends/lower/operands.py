"""What inputs are in lowering: those of the model, by name, and those of a block's body."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count
from math import isfinite
from typing import Any

import sympy as sp

from weft.ir import program as ir
from weft.ir.formula.evaluate import scalar

OF_STREAM = {"tokens": "i64", "types": "i64", "positions": "i64", "segments": "i64", "valid": "bool"}
"""The public inputs [batch length] that a stream can have, and their dtypes, in the order of `forward`. Where there are
several streams their names follow the stream's: source_tokens."""
OF_HEADS = {"targets": "i64", "labels": "i64", "seed": "i64"}
"""Those that a model has once, after them: of the heads, and the seed of dropout."""

Names = dict[str, Any]
"""What names stand for in a formula."""


def numbered(name: str) -> Iterator[str]:
    """The name, then the name and a number, from 2 on."""
    return chain([name], (f"{name}_{i}" for i in count(2)))


def finite(number: sp.Expr) -> bool:
    """Is it a number that a float holds?"""
    try:
        return isfinite(scalar(number))
    except OverflowError:  # an integer beyond every float
        return False


@dataclass
class Operand:
    """What one input of a block's body is: the running value ("carry"), a parameter ("param", or "common" to all
    layers), another stream, what an earlier call left ("state"), where tokens stand ("counted"), or something shared by
    all blocks."""

    kind: str
    key: str
    param: ir.Param | None = None
