"""`weft explain SPEC --resolved`: every value a spec stands for, defaults included, and where each comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weft.errors import Path
from weft.frontends.emit_yaml import emit
from weft.frontends.load import Loaded
from weft.frontends.problems import dotted


@dataclass(frozen=True)
class ResolvedValue:
    """One value: its path as people write it, its text, and its origin: "spec.yaml:14", "--set" or "default"."""

    path: str
    value: str
    origin: str


def resolved(spec: Loaded) -> list[ResolvedValue]:
    """Every value of the model in the order of the language; dims as the numbers they come to."""
    rows: list[ResolvedValue] = []
    _walk(spec, spec.model.model_dump(exclude={"dims", "small"}), (), rows)
    runtime = spec.model.runtime_dims
    dims = [_dim(spec, name, spec.dims.values[name] if name in runtime else n) for name, n in spec.dims.most.items()]
    at = next((i for i, row in enumerate(rows) if not row.path.startswith(("weft", "name", "about"))), len(rows))
    return [*rows[:at], *dims, *rows[at:]]


def _dim(spec: Loaded, name: str, size: int) -> ResolvedValue:
    written = spec.model.dims[name]
    shown = str(size) if isinstance(written, int) else f"{size} = {written}"
    return ResolvedValue(f"dims.{name}", shown, _origin(spec, ("dims", name)))


def _walk(spec: Loaded, value: Any, path: Path, rows: list[ResolvedValue]) -> None:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            _walk(spec, inner, (*path, key), rows)
    elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
        for i, inner in enumerate(value):
            _walk(spec, inner, (*path, i), rows)
    elif value is not None and value not in ({}, []):
        rows.append(ResolvedValue(dotted(path), _text(value), _origin(spec, path)))


def _origin(spec: Loaded, path: Path) -> str:
    place = spec.document.places.get(path)
    if place is None:
        return "default" if spec.document.places else "builder"
    return place.file if place.file == "--set" else spec.src(path)


def _text(value: Any) -> str:
    if not isinstance(value, bool | int | float | str | list):
        return type(value).__name__  # the module of an opaque block
    return emit({"x": value}).removeprefix("x: ").rstrip("\n")
