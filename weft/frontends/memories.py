"""What a spec says of a memory across segments, and whether that can be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from weft.errors import Path, Problem
from weft.frontends import streams
from weft.frontends.suggest import did_you_mean

if TYPE_CHECKING:
    from weft.frontends.schema import Model


def stream_of(model: Model) -> str | None:
    """The stream that has the memory; None where there is none."""
    return None if model.memory is None else model.memory.stream or next(iter(model.sequences))


def problems(model: Model) -> list[Problem]:
    """Everything found. What blocks can do with it is told in lowering."""
    return [] if model.memory is None else [*_stream(model), *_positions(model), *_rows(model)]


def _rows(model: Model) -> Iterator[Problem]:
    """A segment begins where the one before it ended, in the same document and at the next position."""
    assert model.memory is not None
    name = stream_of(model)
    if name in model.sequences and model.sequences[name].rows.model_fields_set:
        path: Path = ("streams", name, "rows") if model.streams else ("rows",)
        message = "a row is a segment of one long sequence, of which the memory keeps the last rows"
        message = message if model.memory.carried else "memory tokens stand before those of the row, and are none of it"
        yield Problem("W0403", message, path, "leave out `rows`, or the memory", on_key=True)


def _stream(model: Model) -> Iterator[Problem]:
    assert model.memory is not None
    name, path = model.memory.stream, ("memory", "stream")
    if name is None and len(model.sequences) > 1:
        hint = f"one of {', '.join(model.sequences)}"
        yield Problem("W0102", "missing key 'stream' in memory", ("memory",), hint)
    elif name is not None and name not in model.sequences:
        hint = did_you_mean(name, model.sequences, "streams: ")
        yield Problem("W0405", f"no stream is called '{name}'", path, hint)
    elif model.memory.carried and model.sequences[name or next(iter(model.sequences))].once:
        message = f"'{name}' is read whole, so there is no segment before it to remember"
        yield Problem("W0405", message, path, "name a stream that grows, or leave out its `once`")


def _positions(model: Model) -> Iterator[Problem]:
    """A table of positions starts anew with each segment: a row of the memory would have that of another one."""
    name = stream_of(model)
    if model.memory is None or model.memory.of == "tokens":  # a table counts the tokens of each segment
        return
    if name not in model.sequences or any(s.embed.like not in (None, *model.sequences) for s in model.streams.values()):
        return
    path: Path = ("streams", name, "embed") if model.streams else ("embed",)
    if streams.embed(model, name).positions:
        message = "learned positions start anew in each segment, and rows of the memory have those of another one"
        where = (*path, "positions") if model.sequences[name].embed.positions else path
        yield Problem(
            "W0403", message, where, "leave them out, and give the attention `relative` or `rotary` positions"
        )
