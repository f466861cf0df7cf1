"""Problems of a spec: the table of codes, their places, and how they are printed."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from weft.errors import Path, Place, Problem, SpecError
from weft.frontends.yaml_loader import Document

CODES = {
    "W0001": "the file is not YAML (or JSON)",
    "W0002": "the file is too large: over 1 MiB, 32 levels or 10,000 values",
    "W0003": "the file is not UTF-8 text",
    "W0004": "a control or direction character stands in the file",
    "W0005": "the file is empty",
    "W0006": "the file holds a second document",
    "W0007": "a key stands twice in one map",
    "W0008": "an anchor or alias; reuse goes by named blocks and `extends`",
    "W0009": "a tag; values are plain",
    "W0010": "a key that is not a plain name",
    "W0011": "a number too long or too large to hold",
    "W0012": "`extends` names a file that cannot be used",
    "W0101": "`weft: 1`, the version of the language, is missing or another",
    "W0102": "a required key is missing",
    "W0103": "an unknown key",
    "W0104": "a value that is not one of the choices",
    "W0105": "a value of the wrong type",
    "W0106": "a number out of range, or a text or list too short or too long",
    "W0107": "a name that is not lower-case letters, digits and _",
    "W0108": "keys that do not go together",
    "W0201": "an expression over dims that cannot be worked out",
    "W0202": "an unknown dim",
    "W0203": "a dim that depends on itself",
    "W0204": "a size outside 1 .. 2**31 - 1",
    "W0205": "a run-time size over its maximum or off its alignment",
    "W0301": "a formula that the parser refuses",
    "W0302": "an attention pattern that the parser refuses",
    "W0401": "a block name that is not defined",
    "W0402": "sizes that do not fit each other",
    "W0403": "parts of a spec that do not go together",
    "W0404": "a spec that cannot become a graph",
    "W0405": "a stream that is not defined, or cannot be read there",
}
"""Every code a bad spec can get, and what it means in a line."""

WARNINGS = {
    "W0501": "something that nothing in the spec reads",
    "W0502": "experts that are full sooner in a run than in its steps",
    "W0503": "a block that sees nothing, or what is to be predicted",
    "W0504": "a cell's output that reads its states before the step alone",
    "W0505": "an attention that looks further back than the memory keeps, without end",
}
"""Every code of what is no error and yet probably not meant."""


def located(problems: Iterable[Problem], document: Document) -> list[Problem]:
    """The problems with their places, in order of place, each told once."""
    out: dict[tuple[Place, str], Problem] = {}
    for problem in problems:
        if problem.place is None:
            problem = replace(problem, place=_place(problem, document))
        assert problem.place is not None
        out.setdefault((problem.place, problem.message), problem)
    return [out[key] for key in sorted(out, key=lambda key: (key[0].file != document.name, key[0]))]


def _place(problem: Problem, document: Document) -> Place:
    place = document.place(problem.path, problem.on_key)
    if problem.on_key or not (problem.offset or problem.width) or problem.path not in document.places:
        return place
    # A formula's own columns hold only when it stands in one line as typed: plain, or quoted without escapes.
    typed = place.text[place.col - 1 :]
    quoted = typed[:1] in ("'", '"')
    if typed[:1] in ("|", ">") or "\\" in typed[: place.width]:
        return place
    col = place.col + problem.offset + quoted
    end = place.col + place.width
    return replace(place, col=min(col, end), width=max(1, min(problem.width or 1, end - col)))


def dotted(path: Path) -> str:
    """A path as people write it: `stack[0].layer[1].block`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return visible(text.lstrip("."))[:120] or "the spec"


def visible(text: str) -> str:
    """The text with everything that a terminal would act on written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def render(error: SpecError) -> str:
    """Every problem as `file:line:col: error[code]: message`, its source line and a caret; then how many."""
    lines: list[str] = []
    for problem in error.problems:
        place = problem.place or Place("<spec>", 1, 1)
        lines.append(_line(as_json(replace(problem, place=place)), "error"))
        lines += _excerpt(place) if place.text.strip() else []
    count = len(error.problems)
    return "\n".join([*lines, f"{count} error{'s' if count != 1 else ''}"])


def warned(found: Iterable[Mapping[str, Any]]) -> str:
    """A line for each warning that `as_json` made data of."""
    return "\n".join(_line(one, "warning") for one in found)


def _line(one: Mapping[str, Any], kind: str) -> str:
    hint = f"; {one['hint']}" if one["hint"] else ""
    where = f"{visible(one['file'])}:{one['line']}:{one['col']}"
    return f"{where}: {kind}[{one['code']}]: {visible(one['message'] + hint)}"


def _excerpt(place: Place, room: int = 100) -> list[str]:
    start = max(0, place.col - 1 - room // 2) if place.col + min(place.width, room // 2) > room else 0
    shown = place.text[start : start + room]
    here = place.col - 1 - start
    before, under = visible(shown[:here].expandtabs(1)), visible(shown[here : here + place.width].expandtabs(1))
    number = f"{place.line:>5}"
    carets = "^" * max(1, _columns(under))
    return [
        f"{number} | {visible(shown.expandtabs(1)).rstrip()}",
        f"{' ' * len(number)} | {' ' * _columns(before)}{carets}",
    ]


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def as_json(problem: Problem) -> dict[str, Any]:
    """One problem as data: code, message, hint, file, line, column, width and path."""
    place = problem.place or Place("", 1, 1)
    return {
        "code": problem.code,
        "message": problem.message,
        "hint": problem.hint,
        "file": place.file,
        "line": place.line,
        "col": place.col,
        "width": place.width,
        "path": list(problem.path),
    }
