"""Strict YAML: text -> plain values that know their file, line and column.

Only scalars, lists and maps are built, straight from the parser's events: no tags, anchors, aliases or merge keys,
nothing constructed by name. `true` and `false` are the only booleans, `null`, `~` and nothing the only nulls, `1e-3` is
a number, and `no`, `012`, `1:30` and `1_0` stay the text that was typed. A JSON file is read by the same rules.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from weft.errors import Path, Place, Problem, SpecError

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 10_000
MAX_DIGITS = 18

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}
# C0 and C1 controls but tab and line feed, Unicode line breaks, directional overrides, lone surrogates, a BOM inside.
_UNWANTED = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)
_BREAK = re.compile(r"\r\n|\r|\n")


@dataclass
class Document:
    """Plain values with the place of every value and of every key, by path."""

    name: str
    data: Any = None
    places: dict[Path, Place] = field(default_factory=dict)
    keys: dict[Path, Place] = field(default_factory=dict)

    def place(self, path: Path, on_key: bool = False) -> Place:
        """The place of the value (or key) at `path`, else of the nearest thing around it."""
        while path:
            if on_key and path in self.keys:
                return self.keys[path]
            if path in self.places:
                return self.places[path]
            path, on_key = path[:-1], True
        return self.places.get((), Place(self.name, 1, 1))


def load(text: str, name: str) -> Document:
    """Read one document; raises SpecError with every problem up to the first that stops the parser."""
    return _YamlReader(text, name).document()


def decode(raw: bytes, name: str) -> str:
    """UTF-8 text of a spec file of at most 1 MiB; a leading byte order mark is dropped."""
    if len(raw) > MAX_BYTES:
        raise SpecError([Problem("W0002", "the file is larger than 1 MiB", place=Place(name, 1, 1))])
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        good = raw[: error.start].decode("utf-8", "replace")
        lines = _BREAK.split(good)
        at = Place(name, len(lines), len(lines[-1]) + 1, 1, lines[-1])
        raise SpecError([Problem("W0003", "the file is not UTF-8 text", hint="save it as UTF-8", place=at)]) from None


class _Stop(Exception):
    """Reading cannot go on; the problem is already noted."""


class _Events:
    """Events in order, of which some can be given back."""

    def __init__(self, events: Iterator[Any]) -> None:
        self.events, self.waiting = events, list[Any]()

    def __iter__(self) -> "_Events":
        return self

    def __next__(self) -> Any:
        return self.waiting.pop() if self.waiting else next(self.events)

    def back(self, events: list[Any]) -> None:
        self.waiting += reversed(events)


class _YamlReader:
    def __init__(self, text: str, name: str):
        import yaml  # `weft --help` reads none

        self.name = name
        self.lines = _BREAK.split(text)
        self.document_ = Document(name)
        self.problems: list[Problem] = []
        self.nodes = 0
        # JSON may be indented with tabs, which YAML forbids; a tab inside a JSON string is not JSON either.
        self.text = text.replace("\t", " ") if text.lstrip()[:1] in ("{", "[") else text
        self.yaml = yaml

    def document(self) -> Document:
        try:
            self.refuse_unwanted()
            self.events = _Events(self.stream())
            self.body()
        except _Stop:
            pass
        if self.problems:
            raise SpecError(sorted(self.problems, key=lambda p: p.place or Place("", 0, 0)))
        return self.document_

    def stop(self, code: str, message: str, place: Place, hint: str = "") -> None:
        self.note(code, message, place, hint)
        raise _Stop

    def note(self, code: str, message: str, place: Place, hint: str = "") -> None:
        self.problems.append(Problem(code, message, place=place, hint=hint))

    def at(self, line: int, col: int, width: int = 1) -> Place:
        text = self.lines[line] if line < len(self.lines) else ""
        return Place(self.name, line + 1, col + 1, max(1, width), text)

    def span(self, event: Any) -> Place:
        start, end = event.start_mark, event.end_mark
        text = self.lines[start.line] if start.line < len(self.lines) else ""
        stop = end.column if end.line == start.line else len(text.rstrip())
        return self.at(start.line, start.column, stop - start.column)

    def refuse_unwanted(self) -> None:
        for i, line in enumerate(self.lines):
            for found in _UNWANTED.finditer(line):
                code = f"U+{ord(found[0]):04X}"
                self.note(
                    "W0004", f"the character {code} may not stand in a spec", self.at(i, found.start()), "delete it"
                )
        if self.problems:
            raise _Stop

    def stream(self) -> Iterator[Any]:
        loader = getattr(self.yaml, "CSafeLoader", self.yaml.SafeLoader)
        try:
            yield from self.yaml.parse(self.text, Loader=loader)
        except self.yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            message = " ".join(str(p) for p in (error.context, error.problem) if p)
            place = self.at(mark.line, mark.column) if mark else self.at(0, 0)
            self.stop("W0001", f"not YAML: {message}", place, _syntax_hint(message, place))
        except self.yaml.YAMLError as error:
            self.stop("W0001", f"not YAML: {str(error).splitlines()[0]}", self.at(0, 0))

    def body(self) -> None:
        next(self.events)  # the start of the stream
        event = next(self.events)
        if isinstance(event, self.yaml.StreamEndEvent):
            self.stop(
                "W0005", "the file is empty", self.at(0, 0), "`weft new sparse -o my.yaml` writes one to start from"
            )
        self.document_.data = self.value(next(self.events), (), 0)
        next(self.events)  # the end of the document
        event = next(self.events)
        if not isinstance(event, self.yaml.StreamEndEvent):
            self.stop("W0006", "a second document starts here", self.span(event), "one file holds one spec")

    def value(self, event: Any, path: Path, depth: int) -> Any:
        place = self.span(event)
        self.nodes += 1
        if self.nodes > MAX_NODES:
            self.stop("W0002", f"more than {MAX_NODES:,} values", place)
        if depth > MAX_DEPTH:
            self.stop("W0002", f"nested deeper than {MAX_DEPTH} levels", place)
        self.document_.places[path] = place
        if isinstance(event, self.yaml.AliasEvent):
            self.note("W0008", f"aliases are not part of a spec: *{event.anchor}", place, _REUSE)
            return None
        if event.anchor is not None:
            self.note("W0008", f"anchors are not part of a spec: &{event.anchor}", place, _REUSE)
        if event.tag is not None:
            self.note("W0009", f"tags are not part of a spec: {event.tag}", place, "write the plain value")
        if isinstance(event, self.yaml.MappingStartEvent):
            return self.mapping(path, depth, bool(event.flow_style))
        if isinstance(event, self.yaml.SequenceStartEvent):
            return self.sequence(path, depth)
        return self.scalar(event, place)

    def sequence(self, path: Path, depth: int) -> list[Any]:
        items: list[Any] = []
        for event in self.events:
            if isinstance(event, self.yaml.SequenceEndEvent):
                break
            items.append(self.value(event, (*path, len(items)), depth + 1))
        return items

    def mapping(self, path: Path, depth: int, flow: bool) -> dict[str, Any]:
        """flow: it stands in braces, where a comma ends a value that is not quoted."""
        items: dict[str, Any] = {}
        for event in self.events:
            if isinstance(event, self.yaml.MappingEndEvent):
                break
            place = self.span(event)
            if not isinstance(event, self.yaml.ScalarEvent) or event.anchor or event.tag:
                self.stop("W0010", "a key must be a plain name", place, "write `name: value`")
            key = event.value
            at = (*path, key)
            if key in items:
                first = self.document_.keys[at].line
                message = f"key '{key}' stands twice: first on line {first}, again on line {place.line}"
                self.note("W0007", message, place, "remove one of them")
                self.value(next(self.events), (*path, key, "again"), depth + 1)
                continue
            self.document_.keys[at] = place
            event = next(self.events)
            items[key] = self.value(event, at, depth + 1)
            if flow and isinstance(items[key], str) and event.implicit[0] and _open(event.value) > 0:
                items[key] = self.cut_off(event)
        return items

    def cut_off(self, event: Any) -> str:
        """A formula that commas have cut into pieces, of which all but the first are read as keys: put together. One
        that nothing closes is left as it was."""
        pieces, read = [event.value], list[Any]()
        while _open(", ".join(pieces)) > 0:
            for _ in "key", "value":
                read.append(next(self.events))
                if not isinstance(read[-1], self.yaml.ScalarEvent) or (len(read) % 2 == 0 and read[-1].value):
                    self.events.back(read)
                    return event.value
            pieces.append(read[-2].value)
        text = ", ".join(pieces)
        way = f'write "{text[:60]}"'
        self.note("W0001", "inside { } a comma ends a value that is not quoted", self.span(event), way)
        return text

    def scalar(self, event: Any, place: Place) -> Any:
        text = event.value
        unwanted = _UNWANTED.search(text)
        if unwanted:
            self.note("W0004", f"the character U+{ord(unwanted[0]):04X} may not stand in a spec", place, "delete it")
        if not event.implicit[0]:
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INT.fullmatch(text):
            if len(text.lstrip("+-")) > MAX_DIGITS:
                self.note("W0011", f"a number of more than {MAX_DIGITS} digits", place)
                return 0
            return int(text)
        if _FLOAT.fullmatch(text):
            number = float(text) if len(text) <= 64 else float("inf")
            if number in (float("inf"), float("-inf")):
                self.note("W0011", "a number too large to hold", place)
                return 0.0
            return number
        return text


def _open(text: str) -> int:
    """How many parentheses a text leaves open."""
    return text.count("(") - text.count(")")


_REUSE = "name the block under `blocks:` and use its name, or use `extends:`"


def _syntax_hint(message: str, place: Place) -> str:
    here = place.text[place.col - 1 : place.col]
    if here == "\t":
        return "indent with spaces, not tabs"
    if here in ("`", "@", "%"):
        return f"quote a value that starts with {here}"
    if "mapping values are not allowed" in message:
        return "quote a value that holds ': '"
    if "block mapping" in message or "block collection" in message:
        return "line it up with the keys above, or quote the value"
    if "expected node content" in message or "flow" in message:
        return "a bracket or brace is not closed"
    return ""
