"""Plain values -> YAML that the strict loader reads back as the same values, laid out for people.

Maps and lists stand in blocks; those of a few plain values stand in one line. A text is quoted only where the loader
would otherwise read something else.
"""

import json
import math
import re
from typing import Any

WIDTH = 110
# A name or a formula, which may begin with a factor: `4*width`, `0.02/sqrt(2*layers)`.
_PLAIN = re.compile(r"(?:[0-9.]+[*/])?[A-Za-z_][A-Za-z0-9_ .*/+()<>=%-]*(?<! )")
_PLAIN_IN_BLOCK = re.compile(r"(?:[0-9.]+[*/])?[A-Za-z_][A-Za-z0-9_ .,*/+()<>=%-]*(?<! )")
# The last six are booleans to other YAML readers.
_SPECIAL = ("true", "false", "null", "yes", "no", "on", "off", "y", "n")


def emit(data: dict[str, Any]) -> str:
    """One YAML document; ValueError for a value that a spec cannot hold."""
    return "\n".join(_map(data, 0)) + "\n"


def _map(data: dict[str, Any], indent: int) -> list[str]:
    lines: list[str] = []
    for key, value in data.items():
        lines += _entry(f"{' ' * indent}{_text(key, flow=False)}:", value, indent)
    return lines


def _entry(head: str, value: Any, indent: int) -> list[str]:
    if not isinstance(value, dict | list):
        return [f"{head} {_scalar(value, flow=False)}"]
    short = _flow(value)
    if short is not None and len(head) + 1 + len(short) <= WIDTH:
        return [f"{head} {short}"]
    body = _map(value, indent + 2) if isinstance(value, dict) else _list(value, indent + 2)
    return [head, *body]


def _list(items: list[Any], indent: int) -> list[str]:
    lines: list[str] = []
    for item in items:
        dash = " " * indent + "-"
        if isinstance(item, dict) and item and (_flow(item) is None or len(_flow(item) or "") > WIDTH - indent - 2):
            first, *rest = _map(item, indent + 2)
            lines += [f"{dash} {first.lstrip()}", *rest]
        elif isinstance(item, list):
            lines.append(f"{dash} {_flow(item, nested=True)}")
        else:
            lines += _entry(dash, item, indent)
    return lines


def _flow(value: Any, nested: bool = False) -> str | None:
    """One line, for values whose parts are plain values; any value when `nested`."""
    parts = value.values() if isinstance(value, dict) else value
    if not nested and any(isinstance(part, dict | list) and part for part in parts):
        return None

    def one(part: Any) -> str:
        return _flow(part, nested=True) or "" if isinstance(part, dict | list) else _scalar(part, flow=True)

    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(key, flow=True)}: {one(part)}" for key, part in value.items()) + "}"
    return "[" + ", ".join(one(part) for part in value) + "]"


def _scalar(value: Any, flow: bool) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} cannot stand in a spec")
    if isinstance(value, int | float):
        return repr(value).replace("e-0", "e-")
    if isinstance(value, str):
        return _text(value, flow)
    raise ValueError(f"a {type(value).__name__} cannot stand in a spec")


def _text(value: str, flow: bool) -> str:
    plain = (_PLAIN if flow else _PLAIN_IN_BLOCK).fullmatch(value)
    return value if plain and value.lower() not in _SPECIAL else json.dumps(value, ensure_ascii=False)
