"""A Hugging Face config -> a spec as a person would write it, and the family whose table its weights are read by."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weft.errors import Place, Problem, SpecError, UsageError
from weft.frontends.emit_yaml import emit
from weft.frontends.hf.config.family import Architecture, ModelFamily
from weft.frontends.hf.config.options import notes, read
from weft.frontends.hf.families import FAMILIES, REFUSED
from weft.frontends.problems import located
from weft.frontends.suggest import did_you_mean
from weft.frontends.yaml_loader import MAX_BYTES, Document, decode, load

CONFIG = "config.json"
PAIR = re.compile(r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")
"""A character past the first 65,536 as JSON escapes it: in two halves, which no YAML reads."""
SECTIONS = (("weft", "name", "about"), ("dims", "runtime"), ("dtype",), ("blocks",),
            ("streams", "embed", "sublayer", "stack", "norm", "head"), ("init",), ("small",))  # fmt: skip
"""Keys that stand together in a spec; an empty line is between two groups."""


@dataclass(frozen=True)
class ImportedSpec:
    """A config that was read: its family, its options' values, the spec as plain values, what no spec says of it."""

    family: ModelFamily
    config: Mapping[str, Any]
    values: Mapping[str, Any]
    spec: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def architecture(self) -> Architecture:
        """The class of transformers that it is of."""
        return self.family.architectures[self.values["architecture"]]

    @property
    def text(self) -> str:
        """The spec file, its parts apart from each other."""
        head = [f"# Written by `weft import hf` from a config.json of {self.values['architecture']}."]
        head += [f"# {note}." for note in self.notes]
        parts = [
            emit({k: self.spec[k] for k in keys if k in self.spec}) for keys in SECTIONS if set(keys) & set(self.spec)
        ]
        return "\n".join(["\n".join(head) + "\n" + parts[0], *parts[1:]])


def import_config(path: str | os.PathLike[str]) -> ImportedSpec:
    """The spec of a config.json, or of the folder that holds one.

    UsageError where there is no such file; SpecError with everything wrong in it, each with its place."""
    path = os.fspath(path)
    if os.path.isdir(path):
        path = os.path.join(path, CONFIG)
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or 'cannot be read'}") from None
    if path.endswith((".safetensors", ".bin")):
        raise UsageError(f"{path} holds weights; the config is config.json beside it, or the folder of both")
    if not raw.strip():
        hint = "a folder of transformers has it as config.json"
        raise SpecError([Problem("W0005", "the file is empty, and no config", place=Place(path, 1, 1), hint=hint)])
    return _imported(load(PAIR.sub(_together, decode(raw, path)), path))


def _together(found: re.Match[str]) -> str:
    """The character that two escapes of JSON stand for, as YAML escapes it."""
    high, low = int(found[2], 16), int(found[3], 16)
    return f"{found[1]}\\U{0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00):08x}"


def import_values(config: Mapping[str, Any]) -> ImportedSpec:
    """The same for the values of a config.json, as a parser of JSON gives them."""
    return _imported(Document("<config>", dict(config)))


def _imported(document: Document) -> ImportedSpec:
    data = document.data
    if not isinstance(data, dict):
        raise _wrong(
            document, [Problem("W0105", "a config is a map of options to values", (), 'start with {"model_type"')]
        )
    family, problems = _family(data)
    if family is None:
        raise _wrong(document, problems)
    values, found = read(data, family.options, family.ignored, family.name)
    problems += found + _divided(values, family)
    if problems:
        raise _wrong(document, problems)
    values |= family.derived(values)
    values["architecture"] = (data.get("architectures") or [*family.architectures])[0]
    said = notes(values, family.options)
    if data.get("auto_map"):
        said.append(f"auto_map is left out: the model is what transformers' own {values['architecture']} computes")
    try:
        return ImportedSpec(family, data, values, family.spec(values), tuple(said))
    except SpecError as error:
        raise _wrong(document, [*error.problems]) from None


def _wrong(document: Document, problems: list[Problem]) -> SpecError:
    return SpecError(located(problems, document))


def _family(data: Mapping[str, Any]) -> tuple[ModelFamily | None, list[Problem]]:
    kind = data.get("model_type")
    if "model_type" not in data:
        known = ", ".join(FAMILIES)
        return None, [Problem("W0102", "missing option 'model_type'", (), f"one of {known}")]
    if not isinstance(kind, str) or kind not in FAMILIES:
        why = REFUSED.get(kind, "") if isinstance(kind, str) else ""
        hint = why or did_you_mean(str(kind)[:60], FAMILIES, "weft imports ", 40)
        return None, [Problem("W0104", f"model_type {str(kind)[:60]!r} is not imported", ("model_type",), hint)]
    family = FAMILIES[kind]
    named = data.get("architectures")
    if named is None or (isinstance(named, list) and len(named) == 1 and named[0] in family.architectures):
        return family, []
    said = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else str(named)
    hint = f"known: {', '.join(family.architectures)}"
    return family, [Problem("W0104", f"architectures: {said[:60]!r} is not imported", ("architectures",), hint)]


def _divided(values: Mapping[str, Any], family: ModelFamily) -> list[Problem]:
    """Sizes that do not go into each other."""
    problems: list[Problem] = []
    for small, large, *unless in family.divides:
        a, b = values.get(small), values.get(large)
        if a and b and b % a and not any(values.get(u) for u in unless):
            problems.append(
                Problem("W0402", f"{large} is {b}, no multiple of {small}, {a}", (large,), "change one of them")
            )
    kinds, layers = values.get("layer_types"), values.get("num_hidden_layers")
    if kinds and layers and len(kinds) != layers:
        message = f"layer_types names {len(kinds)} layers, and num_hidden_layers is {layers}"
        problems.append(Problem("W0402", message, ("layer_types",), "name every layer once"))
    return problems
