"""What is no error in a spec and yet probably not meant: warnings, problems with codes from W0501 on.

`weft check` prints each to stderr, `file:line:col: warning[code]: message; way out`, exits 0 all the same, and holds
them in --json under "warnings". To add one: a function here, or in a block's `warnings`, that yields it, and a line in
`problems.WARNINGS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from weft.errors import FormulaError, Problem
from weft.frontends.blocks import Attention
from weft.frontends.meaning import blocks_of
from weft.frontends.memories import stream_of
from weft.frontends.resolve import Dims
from weft.frontends.schema import LanguageHead, Model, SubLayer
from weft.frontends.streams import of_heads
from weft.ir.pattern import max_distance
from weft.ir.pattern.pattern import Pattern

NAMED = frozenset({"batch", "width"})
"""Dims that every model has, whether a value names them or not."""


def warnings(model: Model, dims: Dims) -> list[Problem]:
    """Everything found, each at its value; places are the front door's to fill in."""
    predicts = all(isinstance(head, LanguageHead) for head in model.heads)
    own = model.sequences[of_heads(model)].length
    blocks = blocks_of(model)
    found = (p for block, path, at in blocks for p in block.warnings(dims.on(at), path, predicts and at == own))
    memory = [*_beyond_memory(model, dims), *(_foreseen(model) if predicts else [])]
    return [*_unused_blocks(model), *_unused_dims(model), *found, *memory]


def _foreseen(model: Model) -> Iterator[Problem]:
    """Memory tokens that show a token what is to be predicted."""
    if model.memory is not None and model.memory.sees == "all" and stream_of(model) == of_heads(model):
        message = "memory tokens see all tokens, which see them; targets that are the next tokens would be seen"
        yield Problem("W0503", message, ("memory", "sees"), "a model of masked tokens is meant so")


def _beyond_memory(model: Model, dims: Dims) -> Iterator[Problem]:
    """Attention that looks back without end, where a memory keeps so many rows."""
    if model.memory is None or model.memory.of != "hidden" or (stream := stream_of(model)) is None:
        return
    length = model.sequences[stream].length
    for block, path, at in blocks_of(model):
        if not isinstance(block, Attention) or block.context is not None or block.pattern is None or at != length:
            continue
        try:
            keep, pattern = dims.size(model.memory.keep), Pattern.parse(block.pattern, dims.on(at).named)
            reach = max_distance(pattern, heads=dims.size(block.heads))
        except FormulaError:
            continue  # told as a problem
        if reach is None:
            message = (
                f"it looks back without end and the memory keeps {keep} rows, so what a row sees depends on where "
            )
            hint = f"`0 <= q - k <= {keep}` sees the same in segments of any lengths"
            yield Problem("W0505", f"{message}its segment begins", (*path, "pattern"), hint)


def _unused_blocks(model: Model) -> Iterator[Problem]:
    steps = [step for stage in model.stack for step in stage.steps]
    used = [step.block if isinstance(step, SubLayer) else step for step in steps]
    for name in model.blocks:
        if name not in used:
            yield Problem("W0501", f"the block '{name}' is not used", ("blocks", name), on_key=True)


def _unused_dims(model: Model) -> Iterator[Problem]:
    """Dims that no value names, defaults included."""
    words = NAMED.union(
        model.runtime_dims, *map(_words, _values(model, "dims")), *(_words(v) for v in model.dims.values())
    )
    for name in model.dims:
        if name not in words:
            yield Problem("W0501", f"no value of this spec reads the dim '{name}'", ("dims", name), on_key=True)


def _values(part: Any, *but: str) -> Iterator[Any]:
    """All values of a part but these keys; those left at their defaults too."""
    if hasattr(type(part), "model_fields"):
        for key in type(part).model_fields:
            if key not in but:
                yield from _values(getattr(part, key))
    elif isinstance(part, dict):
        yield from (x for v in part.values() for x in _values(v))
    elif isinstance(part, list | tuple):
        yield from (x for v in part for x in _values(v))
    else:
        yield part


def _words(value: Any) -> set[str]:
    return set(re.findall(r"[a-z][a-z0-9_]*", value)) if isinstance(value, str) else set()
