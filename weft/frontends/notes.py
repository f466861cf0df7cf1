"""What is no error in a spec and yet probably not meant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from weft.errors import FormulaError
from weft.frontends.meaning import blocks_of
from weft.frontends.resolve import Dims
from weft.frontends.schema import Attention, ClassifyHead, LanguageHead, Model, Moe, SubLayer

NAMED = frozenset({"batch", "seq", "width"})
"""Dims that every model has, whether a value names them or not."""


def notes(model: Model, dims: Dims) -> list[str]:
    """A sentence each, the place first."""
    return [*_unused_blocks(model), *_unused_dims(model), *_capacities(model, dims), *_patterns(model, dims)]


def _unused_blocks(model: Model) -> Iterator[str]:
    steps = [step for stage in model.stack for layer in stage.layers for step in layer]
    used = [step.block if isinstance(step, SubLayer) else step for step in steps]
    yield from (f"the block '{name}' is not used" for name in model.blocks if name not in used)


def _unused_dims(model: Model) -> Iterator[str]:
    """Dims that no value names, defaults included."""
    words = NAMED.union(*map(_words, _values(model, "dims")), *(_words(v) for v in model.dims.values()))
    yield from (f"dims.{name}: no value of this spec reads it" for name in model.dims if name not in words)


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


def _capacities(model: Model, dims: Dims) -> Iterator[str]:
    """Experts that may be full sooner in a short run than in the steps that make it."""
    from weft.frontends.capacity import SEQ, capacity, drops

    longest = dims.runtime["seq"].max
    for block, path in blocks_of(model):
        if not isinstance(block, Moe) or not drops(block, dims):
            continue
        found = capacity(block, dims)
        if not isinstance(found, int) and SEQ in found.free_symbols:
            most = found.xreplace({SEQ: longest})
            yield (
                f"{'.'.join(map(str, path))}: an expert's capacity depends on seq: a run has that of its own length, "
                f"prefill and step that of the longest ({most} at {longest}), so a shorter run may drop more tokens"
            )


def _patterns(model: Model, dims: Dims) -> Iterator[str]:
    """Attention that sees nothing, and attention that shows a language head what it is to predict."""
    from weft.ir.pattern import Pattern, is_causal, rows_seeing_nothing

    language = any(isinstance(head, LanguageHead) for head in model.heads)
    classify = any(isinstance(head, ClassifyHead) for head in model.heads)
    longest = dims.runtime["seq"].max
    for block, path in blocks_of(model):
        if not isinstance(block, Attention) or block.pattern is None:
            continue
        where = ".".join(map(str, (*path, "pattern")))
        try:
            heads, pattern = dims.size(block.heads), Pattern.parse(block.pattern, dict(dims.most))
        except FormulaError:
            continue  # told as a problem
        if rows_seeing_nothing(pattern, longest, heads) == ((0, longest),):
            yield f"{where}: no query sees a key, so this attention gives 0"
        elif language and not classify and not is_causal(pattern, longest, heads):
            yield (
                f"{where}: a token sees later ones; targets that are the next tokens would be seen, not predicted "
                "(a model of masked tokens is meant so)"
            )
