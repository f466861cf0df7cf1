"""pydantic's errors -> problems in the words of the spec, each at the path of the value it is about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from weft.errors import FormulaError, Path, Problem
from weft.frontends.problems import dotted
from weft.frontends.suggest import did_you_mean, nearest

if TYPE_CHECKING:
    from pydantic import ValidationError

_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "dict_type": "a map",
    "model_type": "a map",
    "model_attributes_type": "a map",
    "list_type": "a list",
    "none_required": "nothing",
}
_RANGES = {
    "greater_than": ("must be over {gt}", "gt"),
    "greater_than_equal": ("must be at least {ge}", "ge"),
    "less_than": ("must be under {lt}", "lt"),
    "less_than_equal": ("must be at most {le}", "le"),
    "too_short": ("needs at least {min_length} entry", "min_length"),
    "string_too_short": ("may not be empty", "min_length"),
    "string_too_long": ("has more than {max_length} characters", "max_length"),
    "too_long": ("has more than {max_length} entries", "max_length"),
}


def problems_of(error: ValidationError, data: Any, model: type, root: Path = ()) -> list[Problem]:
    """One problem per pydantic error.

    `data` is what was validated, `model` the class it was validated as, `root` where the data lies in the spec.
    """
    return [_problem(e, data, model, root) for e in error.errors(include_url=False)]


def _problem(e: Any, data: Any, model: type, root: Path) -> Problem:
    kind, context, value = e["type"], e.get("ctx", {}), e["input"]
    inner, on_key = _path(e["loc"], data, kind)
    path = (*root, *inner)
    name = dotted(path)
    if kind == "invalid_key":
        return Problem("W0010", f"a key in {dotted(path[:-1])} is a text, not {e['loc'][-1]!r:.60}", path[:-1])
    if isinstance(value, type):
        made = f"{getattr(value, 'called', '') or value.__name__}(...)"
        return Problem("W0105", f"{name}: expected a value, found {describe(value)}", path, f"make one of it: {made}")
    if kind == "missing":
        return Problem("W0102", f"missing key '{path[-1]}' in {dotted(path[:-1])}", path[:-1], f"add `{path[-1]}: ...`")
    if kind == "extra_forbidden":
        hint = did_you_mean(str(path[-1]), sorted(_keys(model, data, inner[:-1])), "keys: ")
        return Problem("W0103", f"unknown key '{path[-1]}' in {dotted(path[:-1])}", path, hint, on_key=True)
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return _tag_problem(path, context, _classes(model, data, inner))
    if kind in ("literal_error", "enum"):
        words = re.findall(r"'([^']*)'", context["expected"]) or [context["expected"]]
        found = f"'{path[-1]}'" if on_key else describe(value)
        near = nearest(value if isinstance(value, str) else "", words)
        hint = f"did you mean '{near}'?" if near else ""
        return Problem("W0104", f"{name}: {found} is not one of {', '.join(words)}", path, hint, on_key=on_key)
    if kind in _TYPES:
        return Problem(
            "W0105", f"{name}: expected {_TYPES[kind]}, found {describe(value)}", path, _type_hint(kind, value)
        )
    if kind in _RANGES:
        text, key = _RANGES[kind]
        bound = text.format(**{key: format(context[key], "g")})
        return Problem("W0106", f"{name}: {describe(value)} {bound}", path, on_key=on_key)
    if kind == "string_pattern_mismatch":
        word = path[-1] if on_key else value
        hint = "lower-case letters, digits and _, a letter first"
        return Problem("W0107", f"'{str(word)[:60]}' is not a name", path, hint, on_key=on_key)
    return _own_problem(e, path, on_key)


def _own_problem(e: Any, path: Path, on_key: bool) -> Problem:
    """A rule of the schema's own: a ValueError from a validator, or a custom error."""
    cause = e.get("ctx", {}).get("error")
    if isinstance(cause, FormulaError):
        return Problem("W0301", f"{dotted(path)}: {cause.message}", path, cause.hint, cause.column - 1)
    message = str(cause) if cause is not None else e["msg"]
    if e["type"] == "form":
        return Problem("W0105", f"{dotted(path)}: {message}, found {describe(e['input'])}", path, on_key=on_key)
    code = e["type"] if re.fullmatch(r"W\d{4}", e["type"]) else "W0108"
    return Problem(code, f"{dotted(path)}: {message}", path, on_key=on_key)


def _tag_problem(path: Path, context: Any, classes: list[Any]) -> Problem:
    words = sorted({tag for cls in classes for tag in _tags(cls)})
    expected = re.findall(r"'([^']*)'", context.get("expected_tags", "")) or words
    if "tag" not in context:
        return Problem("W0102", f"missing key 'kind' in {dotted(path)}", path, f"one of {', '.join(expected)}")
    near = nearest(context["tag"], expected)
    hint = f"did you mean '{near}'?" if near else ""
    message = f"{dotted(path)}: '{context['tag'][:60]}' is not one of {', '.join(expected)}"
    return Problem("W0104", message, (*path, "kind"), hint)


def _path(loc: tuple[Any, ...], data: Any, kind: str) -> tuple[Path, bool]:
    """pydantic's loc without the tags of unions, which are no keys of the data; and whether it means a key itself."""
    path: list[str | int] = []
    on_key = False
    for i, step in enumerate(loc):
        if step == "[key]":
            on_key = True
        elif _holds(data, step):
            path.append(step)
            data = data[step]
        elif kind == "missing" and i == len(loc) - 1:
            path.append(step)
    return tuple(path), on_key


def _holds(data: Any, step: Any) -> bool:
    if isinstance(data, dict):
        return step in data
    return isinstance(data, list) and isinstance(step, int) and step < len(data)


def describe(value: Any) -> str:
    """What was found, in a few words."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value!r}"
    if isinstance(value, str):
        return f"'{value[:60]}'" + ("..." if len(value) > 60 else "")
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return "a list" if isinstance(value, list) else "a map" if isinstance(value, dict) else type(value).__name__


def _type_hint(kind: str, value: Any) -> str:
    if not isinstance(value, str):
        return ""
    word = value.lower()
    if kind == "bool_type" and word in ("yes", "on", "y", "no", "off", "n", "true", "false"):
        return f"write {'true' if word in ('yes', 'on', 'y', 'true') else 'false'}"
    if kind in ("int_type", "float_type"):
        plain = value.replace("_", "").replace(",", "")
        if re.fullmatch(r"[-+]?[0-9]{1,18}", plain):
            return f"write {int(plain)}"
        if re.fullmatch(r"[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?", plain):
            return f"write {plain}, without quotes"
    return ""


def _keys(model: type, data: Any, path: Path) -> set[str]:
    return {name for cls in _classes(model, data, path) for name in cls.model_fields}


def _classes(model: type, data: Any, path: Path) -> list[Any]:
    """The schema's classes that the value at `path` may be, narrowed by its `kind` or by the keys they need."""
    found: list[Any] = [model]
    for step in path:
        data = data[step] if _holds(data, step) else None
        found = [inner for kind in found for inner in _step(kind, step)]
    found = [c for kind in found for c in _flat(kind) if hasattr(c, "model_fields")]
    kind = data.get("kind") if isinstance(data, dict) else None
    exact = [c for c in found if kind in _tags(c)]
    return exact or [c for c in found if isinstance(data, dict) and _needed(c) <= set(data)] or found


def _needed(cls: Any) -> set[str]:
    return {name for name, field in cls.model_fields.items() if field.is_required()}


def _step(kind: Any, step: str | int) -> Iterator[Any]:
    for option in _flat(kind):
        if hasattr(option, "model_fields"):
            if step in option.model_fields:
                yield option.model_fields[step].annotation
        elif get_origin(option) is list and isinstance(step, int):
            yield get_args(option)[0]
        elif get_origin(option) is dict:
            yield get_args(option)[1]


def _flat(kind: Any) -> Iterator[Any]:
    """The members of a union, through Annotated; a plain type is its only member."""
    if get_origin(kind) is Annotated:
        yield from _flat(get_args(kind)[0])
    elif hasattr(kind, "__args__") and get_origin(kind) not in (list, dict, Literal, tuple):
        for option in get_args(kind):
            yield from _flat(option)
    else:
        yield kind


def _tags(cls: Any) -> tuple[str, ...]:
    field = cls.model_fields.get("kind")
    return get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()
