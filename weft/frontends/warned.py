"""What is no error in a spec and yet probably not meant: warnings, problems with codes from W0501 on.

`weft check` prints each to stderr, `file:line:col: warning[code]: message; way out`, exits 0 all the same, and holds
them in --json under "warnings". To add one: a function here that yields them, and a line in `problems.WARNINGS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from weft.errors import FormulaError, Problem
from weft.frontends.meaning import blocks_of
from weft.frontends.resolve import Dims
from weft.frontends.schema import Attention, ClassifyHead, LanguageHead, Model, Moe, Recurrence, SubLayer

NAMED = frozenset({"batch", "seq", "width"})
"""Dims that every model has, whether a value names them or not."""


def warnings(model: Model, dims: Dims) -> list[Problem]:
    """Everything found, each at its value; places are the front door's to fill in."""
    idle = *_unused_blocks(model), *_unused_dims(model)
    return [*idle, *_capacities(model, dims), *_patterns(model, dims), *_lags(model)]


def _unused_blocks(model: Model) -> Iterator[Problem]:
    steps = [step for stage in model.stack for layer in stage.layers for step in layer]
    used = [step.block if isinstance(step, SubLayer) else step for step in steps]
    for name in model.blocks:
        if name not in used:
            yield Problem("W0501", f"the block '{name}' is not used", ("blocks", name), on_key=True)


def _unused_dims(model: Model) -> Iterator[Problem]:
    """Dims that no value names, defaults included."""
    words = NAMED.union(*map(_words, _values(model, "dims")), *(_words(v) for v in model.dims.values()))
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


def _capacities(model: Model, dims: Dims) -> Iterator[Problem]:
    """Experts that may be full sooner in a short run than in the steps that make it."""
    from weft.frontends.capacity import SEQ, capacity, drops

    longest = dims.runtime["seq"].max
    for block, path in blocks_of(model):
        if not isinstance(block, Moe) or not drops(block, dims):
            continue
        found = capacity(block, dims)
        if not isinstance(found, int) and SEQ in found.free_symbols:
            most = found.xreplace({SEQ: longest})
            message = (
                "an expert's capacity depends on seq: a run has that of its own length, prefill and step that of the "
                f"longest ({most} at {longest}), so a shorter run may drop more tokens"
            )
            yield Problem("W0502", message, (*path, "capacity" if block.capacity is not None else "capacity_factor"))


def _patterns(model: Model, dims: Dims) -> Iterator[Problem]:
    """Attention that sees nothing, and attention that shows a language head what it is to predict."""
    from weft.ir.pattern import Pattern, is_causal, rows_seeing_nothing

    language = any(isinstance(head, LanguageHead) for head in model.heads)
    classify = any(isinstance(head, ClassifyHead) for head in model.heads)
    longest = dims.runtime["seq"].max
    for block, path in blocks_of(model):
        if not isinstance(block, Attention) or block.pattern is None:
            continue
        where = (*path, "pattern")
        try:
            heads, pattern = dims.size(block.heads), Pattern.parse(block.pattern, dict(dims.most))
        except FormulaError:
            continue  # told as a problem
        if rows_seeing_nothing(pattern, longest, heads) == ((0, longest),):
            yield Problem("W0503", "no query sees a key, so this attention gives 0", where)
        elif language and not classify and not is_causal(pattern, longest, heads):
            message = "a token sees later ones; targets that are the next tokens would be seen, not predicted"
            yield Problem("W0503", message, where, "a model of masked tokens is meant so")


def _lags(model: Model) -> Iterator[Problem]:
    """Cells whose output reads states as they were before the step, and no state as it is after it."""
    for block, path in blocks_of(model):
        if isinstance(block, Recurrence) and (old := _old_states(block)):
            said, way = ", ".join(old), ", ".join(f"next({name})" for name in old)
            message = f"the output reads {said} as before this step, so it lags by one position"
            yield Problem("W0504", message, (*path, "output"), f"write {way} for the value after it")


def _old_states(block: Recurrence) -> list[str]:
    """The states that the output reads; none where it reads a new value too, by `next` or as a let or a part of it."""
    from weft.ir.formula import parse, symbol

    names = ["x", "mask", *block.inputs, *block.parameters, *block.state, *block.let]
    after = {name: symbol(f"next {name}") for name in block.state}
    try:
        lets = {symbol(name): parse(text, names) for name, text in block.let.items()}
        updates = [parse(text, names) for text in block.update.values()]
        read = [parse(block.output, names, forms={"next": after})]
    except FormulaError:
        return []  # told as a problem
    for e in read:
        read += [lets[s] for s in sorted(e.free_symbols & lets.keys(), key=str) if lets[s] not in read]
    seen: set[Any] = set().union(*(e.free_symbols for e in read))
    new = seen & set(after.values()) or any(e.has(u) for e in read for u in updates if u.args or u in lets)
    return [] if new else [name for name in block.state if symbol(name) in seen]
