"""What a spec may say and yet cannot mean: tables too short for their index, and what its blocks find."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sympy

from weft.errors import FormulaError, Path, Problem, SpecError
from weft.frontends.blocks.kind import BlockKind
from weft.frontends.resolve import Dims
from weft.frontends.schema import Model, Position, SubLayer
from weft.ir.formula import parse, symbol


def problems(model: Model, dims: Dims) -> list[Problem]:
    """Everything found, each at its value. Sizes and formulas that do not work out are told elsewhere."""
    return [*_positions(model, dims), *(p for block, path in blocks_of(model) for p in block.problems(dims, path))]


def _positions(model: Model, dims: Dims) -> Iterator[Problem]:
    longest = dims.runtime["seq"].max
    for i, position in enumerate(model.embed.positions):
        path: Path = ("embed", "positions", i)
        try:
            rows, index = dims.size(position.learned), _index(position, dims)
        except (FormulaError, SpecError):
            continue
        at, row = _worst(index, rows, longest)
        if not 0 <= row < rows:
            message = f"position {at} needs row {row} of a table of {rows} rows"
            yield Problem("W0402", message, (*path, "learned"), "learned: seq, or another index")


def _index(position: Position, dims: Dims) -> Any:
    names = {name: sympy.Integer(size) for name, size in dims.most.items()}
    return parse(position.index, names | {"i": symbol("i")})


def _worst(index: Any, rows: int, length: int) -> tuple[int, int]:
    """A position whose row lies outside the table, else the last: tried near both ends and near powers of two."""
    near = {p + d for e in range(length.bit_length()) for p in (1 << e, rows, length) for d in (-1, 0, 1)}
    found = (length - 1, 0)
    for at in sorted(n for n in near if 0 <= n < length):
        row = index.xreplace({symbol("i"): sympy.Integer(at)})
        if not row.is_Integer:
            continue
        found = (at, int(row))
        if not 0 <= found[1] < rows:
            break
    return found


def blocks_of(model: Model) -> Iterator[tuple[BlockKind, Path]]:
    """Every block with its path."""
    for name, block in model.blocks.items():
        yield block, ("blocks", name)
    for i, stage in enumerate(model.stack):
        for j, layer in enumerate(stage.layers):
            under = ("layer",) if stage.cycle is None else ("cycle", j)
            for k, step in enumerate(layer):
                if isinstance(step, SubLayer) and not isinstance(step.block, str):
                    yield step.block, ("stack", i, *under, k, "block")
