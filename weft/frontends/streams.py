"""What the parts of a spec say of streams by name, and whether there are such streams and such lengths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from weft.errors import Path, Problem
from weft.frontends.problems import dotted
from weft.frontends.suggest import did_you_mean, nearest

if TYPE_CHECKING:
    from weft.frontends.schema import Embed, Model

TAKEN = frozenset({"batch", "classify", "embed", "head", "layers", "norm", "seq", "width"})
"""Names that parameters or dims have beside those of streams."""


def problems(model: Model) -> list[Problem]:
    """Everything found. Which streams a block may read is told in lowering."""
    return [*_lengths(model), *_runtime(model), *_embeds(model), *_stages(model), *_heads(model)]


def embed(model: Model, name: str) -> Embed:
    """The embedding of a stream, with the keys of those it is like, whose tables are their own affair."""
    own = model.sequences[name].embed
    keys, like = own.model_dump(exclude_unset=True, exclude={"like"}), own.like
    while like is not None:
        other = model.sequences[like].embed
        keys, like = other.model_dump(exclude_unset=True, exclude={"like", "tied"}) | keys, other.like
    return type(own).model_validate(keys)


def of_stage(model: Model, index: int) -> str:
    """The stream that a stage is on."""
    return model.stack[index].stream or next(iter(model.sequences))


def of_heads(model: Model) -> str:
    """The stream that the heads read."""
    return model.heads[0].stream or next(iter(model.sequences))


def _lengths(model: Model) -> Iterator[Problem]:
    if not model.streams:
        if "seq" not in model.dims:
            yield Problem("W0102", "dims: missing seq", ("dims",), "or give the lengths of `streams`")
        return
    first: dict[str, str] = {}
    for name, stream in model.streams.items():
        path: Path = ("streams", name, "length")
        if name in TAKEN:
            hint = "give the stream another name"
            yield Problem("W0107", f"'{name}' is a name of the language", path[:2], hint, on_key=True)
        if stream.length not in model.dims:
            hint = did_you_mean(stream.length, model.dims, "dims: ")
            yield Problem("W0202", f"unknown dim '{stream.length}'", path, hint)
        elif stream.length in ("batch", "width"):
            yield Problem("W0402", f"{stream.length} is no length of a stream", path, "a dim of its own")
        elif stream.length in first:
            message = f"{stream.length} is the length of '{first[stream.length]}' already"
            yield Problem("W0402", message, path, "a dim of its own; two may have the same size")
        first.setdefault(stream.length, name)


def _runtime(model: Model) -> Iterator[Problem]:
    known = model.runtime_dims
    for name in model.runtime:
        if name not in known:
            near = nearest(name, known)
            message = f"runtime.{name}: '{name}' is not one of {', '.join(known)}"
            hint = f"did you mean '{near}'?" if near else ""
            yield Problem("W0104", message, ("runtime", name), hint, on_key=True)


def _embeds(model: Model) -> Iterator[Problem]:
    if model.streams and "embed" in model.model_fields_set:
        message = "each stream has an embedding of its own"
        yield Problem("W0403", message, ("embed",), "write it as `streams.<name>.embed`", on_key=True)
    for name, stream in model.sequences.items():
        path: Path = ("streams", name, "embed") if model.streams else ("embed",)
        for key in ("like", "tied"):
            other = getattr(stream.embed, key)
            if other is None:
                continue
            yield from _unknown(model, other, (*path, key))
            if other in _before(model, name, key):
                message = f"'{name}' has its embedding from itself"
                yield Problem("W0402", message, (*path, key), f"leave out `{key}` in one of them")


def _before(model: Model, name: str, key: str) -> set[str]:
    """The stream and those that get their embedding from it, where that goes round."""
    seen: list[str] = [name]
    while (other := getattr(model.sequences[seen[-1]].embed, key)) in model.sequences and other not in seen:
        seen.append(other)
    return {getattr(model.sequences[name].embed, key)} if other == name else set()


def _stages(model: Model) -> Iterator[Problem]:
    for i, stage in enumerate(model.stack):
        yield from _named(model, stage.stream, ("stack", i))


def _heads(model: Model) -> Iterator[Problem]:
    listed = isinstance(model.head, list)
    for i, head in enumerate(model.heads):
        path: Path = ("head", i) if listed else ("head",)
        yield from _named(model, head.stream, path)
        if head.stream != model.heads[0].stream:
            yield Problem("W0402", "the heads read different streams", (*path, "stream"), "one stream for all heads")


def _named(model: Model, name: str | None, path: Path) -> Iterator[Problem]:
    """A stage or a head says which stream it is on, where there are several."""
    if name is not None:
        yield from _unknown(model, name, (*path, "stream"))
    elif len(model.sequences) > 1:
        hint = f"one of {', '.join(model.sequences)}"
        yield Problem("W0102", f"missing key 'stream' in {dotted(path)}", path, hint)


def _unknown(model: Model, name: str, path: Path) -> Iterable[Problem]:
    if name in model.sequences:
        return []
    return [Problem("W0405", f"no stream is called '{name}'", path, did_you_mean(name, model.sequences, "streams: "))]
