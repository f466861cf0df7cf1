"""Documents packed in rows, each against itself alone, and what is padded against the rest. Imports torch."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from weft.codegen.check.calling import call
from weft.codegen.check.comparing import Comparison, compare
from weft.codegen.check.decode import grown, ops, positional
from weft.ir.library import Places
from weft.ir.program import Program


def documents(program: Program, module: Any, inputs: Mapping[str, Tensor]) -> list[Comparison]:
    """The results of each document of a row, and of its tokens before and behind the padding, alone and in the row.

    [] where a row is one sequence, or where there are other streams beside it."""
    counted = [op for op in ops(program.graph) if isinstance(op, Places)]
    tokens = grown(program, "tokens") if len(program.growing) == 1 else None
    if not counted or tokens is None or len(program.streams) > 1:
        return []
    align = program.runtime[program.growing[0]].align
    moving = [k for k in inputs if program.growing[0] in program.input(k).dims]
    with torch.no_grad():
        whole, alone = call(program, module, inputs), dict[str, list[Tensor]]()
        packed: dict[str, list[Tensor]] = {}
        for row, own in _pieces(inputs, counted[0]):
            if (own.stop - own.start) % align:
                continue
            one = {k: x[row : row + 1, own] if k in moving else _row(x, row) for k, x in inputs.items()}
            made = call(program, module, one)
            for k in positional(program):
                alone.setdefault(k, []).append(made[k][0])
                packed.setdefault(k, []).append(whole[k][row, own])
    got, want = ({k: torch.cat(ys) for k, ys in of.items()} for of in (packed, alone))
    return [compare("in rows = alone", "f64", got, want)] if got else []


def _row(x: Tensor, row: int) -> Tensor:
    return x[row : row + 1] if x.dim() else x


def _pieces(inputs: Mapping[str, Tensor], op: Places) -> Iterator[tuple[int, slice]]:
    """Each document of each row, or of a row without documents what is left of it without padding at its ends."""
    segments, valid = inputs.get("segments"), inputs.get("valid")
    like = segments if segments is not None else valid
    assert like is not None
    for row in range(like.shape[0]):
        cuts = [0, like.shape[1]]
        if op.documents and segments is not None:
            own = segments[row]
            cuts = [0, *(int(i) + 1 for i in (own[1:] != own[:-1]).nonzero()), like.shape[1]]
        for start, stop in pairwise(cuts):
            there = torch.arange(start, stop)
            there = there if valid is None or not op.padding else there[valid[row, start:stop]]
            if len(there):
                yield row, slice(int(there[0]), int(there[-1]) + 1)
