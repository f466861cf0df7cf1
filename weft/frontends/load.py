"""A spec file -> a validated model that knows where everything in it was written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from weft.errors import Path, Place, Problem, SpecError
from weft.frontends.extends import read_document
from weft.frontends.problems import located
from weft.frontends.resolve import Dims, resolve, settings, with_overrides
from weft.frontends.schema import Model
from weft.frontends.validation import describe, problems_of
from weft.frontends.yaml_loader import Document, load

if TYPE_CHECKING:
    from weft.frontends.schema import Model

VERSION = 1


@dataclass
class Loaded:
    """A model with overrides applied, its sizes, and the places of its values."""

    model: Model
    dims: Dims
    document: Document = field(default_factory=lambda: Document("<builder>"))

    @property
    def name(self) -> str:
        """The spec's file name, without its folder: what provenance may say."""
        return os.path.basename(self.document.name)

    def src(self, path: Path) -> str:
        """`spec.yaml:14`, the line of the value at `path`; empty for a model built in Python."""
        if not self.document.places:
            return ""
        place = self.document.place(path)
        name = os.path.basename(place.file).strip("<>")
        plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)  # it will stand in comments of code
        return f"{plain}:{place.line}"

    def located(self, error: SpecError) -> SpecError:
        """The same error with the places of its problems."""
        return SpecError(located(error.problems, self.document))


def load_spec(path: str | os.PathLike[str], sets: Iterable[str] = (), small: bool = False) -> Loaded:
    """Read, merge, check and size a spec file; SpecError with everything found wrong, each with its place."""
    return load_document(read_document(os.fspath(path)), sets, small)


def load_text(text: str, name: str = "spec.yaml", sets: Iterable[str] = (), small: bool = False) -> Loaded:
    """The same for a text; `extends` has no file to be relative to and is refused as an unknown file."""
    return load_document(load(text, name), sets, small)


def load_mapping(data: Mapping[str, Any], sets: Iterable[str] = (), small: bool = False) -> Loaded:
    """The same for the values of a spec file, as a parser of YAML or JSON gives them; `weft: 1` may be left out."""
    return load_document(Document("<builder>", {"weft": VERSION} | dict(data)), sets, small)


def load_model(model: Model, sets: Iterable[str] = (), small: bool = False) -> Loaded:
    """The same for a model built in Python."""
    return _sized(model, Document("<builder>"), sets, small)


def load_document(document: Document, sets: Iterable[str] = (), small: bool = False) -> Loaded:
    """Check a document against the schema, then `small:` and `--set`, then its dims."""
    problems = _version(document.data)
    if not isinstance(document.data, dict):
        raise SpecError(located(problems, document))
    data = document.data | {"weft": VERSION}
    try:
        model = Model.model_validate(data)
    except ValidationError as error:
        problems += problems_of(error, data, Model)
        problems += _dims_apart(data, problems)
        raise SpecError(located(problems, document)) from None
    if problems:
        raise SpecError(located(problems, document))
    return _sized(model, document, sets, small)


def _sized(model: Model, document: Document, sets: Iterable[str], small: bool) -> Loaded:
    changes = settings(sets, model.dims)
    places: dict[Path, Place] = {("dims", name): place for name, (_, place) in changes.items()}
    if small:
        places = {("dims", n): document.place(("small", n)) for n in model.small if document.places} | places
    document = Document(document.name, document.data, document.places | places, document.keys)
    try:
        _small_works(model, small)
        model = with_overrides(model, {name: value for name, (value, _) in changes.items()}, small)
        return Loaded(model, resolve(model), document)
    except SpecError as error:
        raise SpecError(located(error.problems, document)) from None


def _small_works(model: Model, asked: bool) -> None:
    """The `small:` map is checked also when nobody asks for it; its problems stand at its own keys."""
    if asked or not model.small:
        return
    resolve(model)  # what is wrong without it is told first
    try:
        resolve(with_overrides(model, small=True))
    except SpecError as error:
        in_small = [
            replace(p, path=("small", p.path[1])) if p.path[0] == "dims" and p.path[1] in model.small else p
            for p in error.problems
        ]
        raise SpecError(replace(p, message=f"{p.message} (with --small)") for p in in_small) from None


def _dims_apart(data: dict[str, Any], known: list[Problem]) -> list[Problem]:
    """What is wrong with the dims of a spec that is wrong elsewhere too, so that it is told at once."""
    dims = data.get("dims")
    if not isinstance(dims, dict) or any(type(size) not in (int, str) for size in dims.values()):
        return []
    if any(p.path[:1] in (("dims",), ("runtime",)) for p in known) or not {"batch", "seq"} <= set(dims):
        return []
    try:
        resolve(Model.model_construct(dims=dims, runtime={}, stack=[]))
    except SpecError as error:
        return list(error.problems)
    return []


def _version(data: Any) -> list[Problem]:
    if not isinstance(data, dict):
        return [Problem("W0105", "a spec is a map of keys to values", (), "start with `weft: 1`")]
    if "weft" not in data:
        return [Problem("W0101", "missing key 'weft', the version of the spec language", (), "write `weft: 1` first")]
    version = data["weft"]
    if version == VERSION and type(version) is int:
        return []
    newer = isinstance(version, int) and not isinstance(version, bool) and version > VERSION
    hint = "a newer weft reads this file" if newer else "write `weft: 1`"
    message = f"this weft reads version {VERSION} of the spec language, not {describe(version)}"
    return [Problem("W0101", message, ("weft",), hint)]
