"""A pool as numbers for the surrogate: one row a configuration, every column scaled to [0, 1].

Sizes act by their ratio, so positive knobs with a wide or long range become log2. How often 2 divides a size decides
alignment and bank conflicts whatever the size is, so it is a column of its own where it says something new. A knob of
words becomes one column a word. What the compiler knows (`Pool.features`) is appended, in logarithms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from weft.autotune.types import Pool, Value

Matrix = NDArray[np.float64]
Column = NDArray[np.float64]


def encode(pool: Pool) -> Matrix:
    """[configurations, columns]; constant columns and copies of earlier ones are left out."""
    names = list(pool.configs[0]) if pool.configs else []
    columns = [c for name in names for c in knob([config[name] for config in pool.configs])]
    columns += [_compressed(np.asarray(values, dtype=float)) for values in pool.features.values()]
    kept = _distinct(columns)
    return np.stack(kept, axis=1) if kept else np.zeros((len(pool), 1))


def knob(values: Sequence[Value]) -> list[Column]:
    """The columns of one knob; `values` holds its value in every configuration."""
    if any(isinstance(v, str) for v in values):
        words = sorted({repr(v) for v in values})
        return [np.array([repr(v) == word for v in values], dtype=float) for word in words[1:] or words]
    missing = np.array([v is None for v in values])
    known = sorted({float(v) for v in values if v is not None and not isinstance(v, str)})
    if not known:
        return []
    middle = known[len(known) // 2]
    numbers = np.array([middle if v is None or isinstance(v, str) else float(v) for v in values])
    columns = [missing.astype(float)] if missing.any() else []
    if known[0] > 0 and (len(known) > 2 or known[-1] / known[0] >= 4):
        columns.append(np.log2(numbers))
        if len(known) > 2 and all(n == round(n) for n in known):
            columns.append(_twos(numbers))
    else:
        columns.append(numbers)
    return columns


def _twos(numbers: Column) -> Column:
    """How often 2 divides each number."""
    whole = numbers.astype(np.int64)
    return np.log2((whole & -whole).astype(float))


def _compressed(numbers: Column) -> Column:
    finite = np.where(np.isfinite(numbers), numbers, 0.0)
    return np.sign(finite) * np.log1p(np.abs(finite))


def _distinct(columns: Iterable[Column]) -> list[Column]:
    kept: list[Column] = []
    for column in columns:
        low, high = column.min(), column.max()
        if high > low:
            scaled = (column - low) / (high - low)
            if not any(np.allclose(scaled, other) or np.allclose(scaled, 1 - other) for other in kept):
                kept.append(scaled)
    return kept
