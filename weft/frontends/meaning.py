"""What a spec may say and yet cannot mean: tables too short for their index, and what its blocks find."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sympy

from weft.errors import FormulaError, Path, Problem, SpecError
from weft.frontends import streams
from weft.frontends.blocks.kind import BlockKind
from weft.frontends.resolve import Dims
from weft.frontends.schema import Model, Position, Step, SubLayer
from weft.ir.formula import parse, symbol


def problems(model: Model, dims: Dims) -> list[Problem]:
    """Everything found, each at its value. Sizes and formulas that do not work out are told elsewhere."""
    found = (p for block, path, at in blocks_of(model) for p in block.problems(dims.on(at), path))
    return [*(p for name in model.sequences for p in _positions(model, dims, name)), *found]


def _positions(model: Model, dims: Dims, stream: str) -> Iterator[Problem]:
    longest = dims.on(model.sequences[stream].length).longest
    home: Path = ("streams", stream, "embed") if model.streams else ("embed",)
    for i, position in enumerate(streams.embed(model, stream).positions):
        path: Path = (*home, "positions", i)
        try:
            rows, index = dims.size(position.learned), _index(position, dims)
        except (FormulaError, SpecError):
            continue
        at, row = _worst(index, rows, longest)
        if not 0 <= row < rows:
            message = f"position {at} needs row {row} of a table of {rows} rows"
            hint = f"learned: {model.sequences[stream].length}, or another index"
            yield Problem("W0402", message, (*path, "learned"), hint)


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


def blocks_of(model: Model) -> Iterator[tuple[BlockKind, Path, str]]:
    """Every block with its path and the length of a stream that it is on; a named one once for each."""
    stages = [model.sequences[streams.of_stage(model, i)].length for i in range(len(model.stack))]
    for name, block in model.blocks.items():
        used = [at for at, stage in zip(stages, model.stack) if any(_named(step) == name for step in stage.steps)]
        for at in dict.fromkeys(used or stages[:1]):
            yield block, ("blocks", name), at
    for i, (stage, at) in enumerate(zip(model.stack, stages)):
        for where, step in stage.placed:
            if isinstance(step, SubLayer) and not isinstance(step.block, str):
                yield step.block, ("stack", i, *where, "block"), at


def _named(step: Step) -> str | None:
    """The name of the block that a step names."""
    found = step.block if isinstance(step, SubLayer) else step
    return found if isinstance(found, str) else None
