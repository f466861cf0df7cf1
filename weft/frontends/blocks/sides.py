"""The two sides of an attention: the dims of its queries and keys, and what keys and values are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from weft.errors import Path, Problem, SpecError
from weft.frontends.blocks.memory.behind import Keys, remembered
from weft.frontends.suggest import did_you_mean

if TYPE_CHECKING:
    from weft.frontends.blocks.attention import Attention
    from weft.frontends.lower.scope import Scope
    from weft.ir.types import Val


@dataclass(frozen=True)
class Axes:
    """The dims of one attention block. `query` is "heads", or "kv_heads group" when key heads are shared; `source` is
    the length of what keys are made of, `longest` its most, `key` the name it has among scores; `past` that of the rows
    before the queries, where keys begin there."""

    query: str
    keys: str
    head: str
    value: str
    key: str
    source: str
    longest: int
    past: str


def keys_of(s: Scope, x: Val, block: Attention, stem: str, path: Path) -> Keys:
    """What keys and values are made of: x, those before it too, or another stream."""
    other = context_of(s, block, path)
    own, length = other == s.stream, s.low.rows(other)
    more = s.low.among[other].more if other in s.low.among else 0
    plain = Keys(x if own else s.other(other), length, s.low.dims.most[s.low.length(other)] + more, own=own)
    if other != s.stream or (behind := remembered(s, x, stem)) is None:
        return plain
    for key in ("plan", "globals"):
        if getattr(block, key) is not None:
            message = f"`{key}` is for whole sequences, and the memory of '{s.stream}' for segments"
            s.low.tell(Problem("W0403", message, (*path, key), "leave one of them out"))
            return plain
    return behind


def context_of(s: Scope, block: Attention, path: Path) -> str:
    """The stream that keys and values come from."""
    other, where = block.context or s.stream, (*path, "context")
    streams, model = s.low.model.sequences, s.low.model
    if other not in streams:
        raise SpecError(
            [Problem("W0405", f"no stream is called '{other}'", where, did_you_mean(other, streams, "streams: "))]
        )
    if streams[s.stream].once and not streams[other].once:
        message = f"'{s.stream}' is read whole before decoding, but '{other}' grows with each step"
        raise SpecError.at(where, "W0405", message, f"leave out `once` of '{s.stream}', or give '{other}' it too")
    stages = [stage.stream or s.stream for stage in model.stack]
    if other != s.stream and other in stages and other not in stages[: s.low.stage]:
        message = f"the stages of '{other}' stand after this one, which reads what they make"
        raise SpecError.at(where, "W0405", message, "move them before it")
    return other


def axes_of(s: Scope, block: Attention, path: Path, keys: Keys) -> Axes:
    low, source = s.low, keys.length
    avoid, of = (*s.space, source), (source, keys.longest, keys.past)
    heads = low.axis(block.heads, "heads", (*path, "heads"), avoid)
    head = low.axis(block.head, "head", (*path, "head"), (*avoid, heads))
    value = head if block.value is None else low.axis(block.value, "value", (*path, "value"), (*avoid, heads))
    key = low.mint("key", low.sizes[source], (*avoid, heads, head, value))
    if block.kv_heads is None:
        return Axes(heads, heads, head, value, key, *of)
    kv = low.axis(block.kv_heads, "kv_heads", (*path, "kv_heads"), (*avoid, heads, head, value))
    many, few = low.number(heads), low.number(kv)
    if many % few:
        raise SpecError.at(
            (*path, "kv_heads"), "W0402", f"{few} key heads do not divide {many} heads", "change one of them"
        )
    group = low.mint("group", many // few, (*avoid, kv, head, value, key))
    return Axes(f"{kv} {group}", kv, head, value, key, *of)
