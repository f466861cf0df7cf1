"""A pack: keys and rows in one file that can be shipped, merged and checked. Data only: nothing in it is executed, and
a configuration from it is used only where the space at hand would have proposed it.

    {"schema":"weft.pack/1","sha256":<of all that follows>,"keys":2,"rows":340}
    {"provenance":[{"by":"weft 0.1.0","date":"2026-11-20","note":""}]}
    {"key":{..},"softs":{..}}
    {"cfg":{..},..}            the rows of that key, and so on

The same content is the same bytes. Merging is the union of sets: in any order, any number of times.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from weft import outputs
from weft.cache import files
from weft.cache.canonical import canonical, is_text
from weft.cache.index import Index
from weft.cache.key import Key, KeyInvalid, Soft
from weft.cache.lines import MOST_LINE
from weft.cache.row import Row, RowInvalid
from weft.cache.summary import Summary, summarise
from weft.errors import PackError

PACK_SCHEMA = "weft.pack/1"
MOST_PACK = 1 << 28  # bytes
_MOST_PROBLEMS = 50
Provenance = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Entry:
    """The rows of one key, sorted and each once, and what the soft parts they name are."""

    key: Key
    rows: tuple[Row, ...]
    softs: Mapping[str, Soft] = field(default_factory=dict[str, Soft])

    @classmethod
    def of(cls, key: Key, rows: Iterable[Row], softs: Mapping[str, Soft]) -> Entry:
        """In the one order there is, with the soft parts that its rows name."""
        unique = {row.text: row for row in rows}
        used = sorted({row.soft for row in unique.values()} & softs.keys())
        return cls(key, tuple(unique[text] for text in sorted(unique)), {name: softs[name] for name in used})

    def __or__(self, other: Entry) -> Entry:
        return Entry.of(self.key, (*self.rows, *other.rows), {**self.softs, **other.softs})


@dataclass(frozen=True)
class Pack:
    """Entries by key id. provenance: who made it of what, a set. name: for messages, no part of the content."""

    entries: Mapping[str, Entry] = field(default_factory=dict[str, Entry])
    provenance: frozenset[Provenance] = frozenset()
    name: str = field(default="pack", compare=False)
    version = 0

    @classmethod
    def of(cls, entries: Iterable[Entry], **provenance: str) -> Pack:
        """A pack of entries, with one statement of provenance such as by=, date=, note=."""
        said = frozenset({tuple(sorted(provenance.items()))}) if provenance else frozenset[Provenance]()
        return cls({e.key.id: e for e in sorted(entries, key=lambda e: e.key.id)}, said)

    def __or__(self, other: Pack) -> Pack:
        """Both together."""
        ids = sorted({*self.entries, *other.entries})
        entries = {name: _both(self.entries.get(name), other.entries.get(name)) for name in ids}
        return Pack(entries, self.provenance | other.provenance, self.name)

    def winners(self, keep: int = 1) -> Pack:
        """Only the rows of the best configurations of every key and soft part."""
        kept: list[Entry] = []
        for entry in self.entries.values():
            tops = self.summary(entry.key).tops
            won = {repr(best.cfg) for found in tops.values() for best in found[:keep]}
            rows = [row for row in entry.rows if row.winnable and repr(row.cfg) in won]
            if rows:
                kept.append(Entry.of(entry.key, rows, entry.softs))
        return replace(Pack.of(kept), provenance=self.provenance, name=self.name)

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(len(entry.rows) for entry in self.entries.values())

    # As bytes

    def text(self) -> bytes:
        """The file."""
        out = [canonical({"provenance": sorted(map(dict, self.provenance), key=canonical)})]
        for _, entry in sorted(self.entries.items()):
            softs = {name: soft.flat() for name, soft in entry.softs.items()}
            out.append(canonical({"key": entry.key.flat(), "softs": softs}))
            out += [row.text for row in entry.rows]
        body = "".join(f"{line}\n" for line in out).encode()
        sha = hashlib.sha256(body).hexdigest()
        head = {"schema": PACK_SCHEMA, "sha256": sha, "keys": len(self.entries), "rows": self.rows}
        return f"{canonical(head)}\n".encode() + body

    @cached_property
    def sha256(self) -> str:
        """Of everything after the first line: equal where the content is."""
        return hashlib.sha256(self.text().split(b"\n", 1)[1]).hexdigest()

    # As a source of the ladder

    @cached_property
    def _index(self) -> Index:
        return Index(entry.key for entry in self.entries.values())

    @cached_property
    def _summaries(self) -> dict[str, Summary]:
        return {}

    def index(self) -> Index:
        """All keys side by side."""
        return self._index

    def key(self, name: str) -> Key | None:
        """The key of an id."""
        found = self.entries.get(name)
        return found.key if found else None

    def summary(self, key: Key) -> Summary:
        """The best of a key; empty where the pack lacks it."""
        if key.id not in self._summaries:
            entry = self.entries.get(key.id)
            self._summaries[key.id] = summarise(entry.rows, entry.softs) if entry else Summary()
        return self._summaries[key.id]

    def watched(self, key: Key, asked: Key | None) -> tuple[str, ...]:
        """Nothing: a pack in memory does not change."""
        return ()


def _both(a: Entry | None, b: Entry | None) -> Entry:
    found = a | b if a and b else a or b
    assert found is not None
    return found


class _PackReader:
    """Takes the lines of a pack in, one after another, and notes what is wrong with them."""

    def __init__(self) -> None:
        self.problems: list[tuple[int, str]] = []
        self.provenance: frozenset[Provenance] = frozenset()
        self.parts: list[tuple[Key, dict[str, Soft], list[Row]]] = []
        self._lost = False

    def wrong(self, line: int, message: str) -> None:
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append((line, message))

    def take(self, number: int, line: bytes) -> None:
        """One line after the first."""
        data = _json(line)
        try:
            if not isinstance(data, dict):
                self.wrong(number, "not a JSON object")
            elif data.keys() == {"provenance"}:
                self.provenance |= _provenance(data["provenance"])
            elif "key" in data:
                self._lost = True
                softs = {s.id: s for s in map(Soft.parse, _object(data.get("softs", {})).values())}
                self.parts.append((Key.parse(data["key"]), softs, []))
                self._lost = False
            elif not self.parts and not self._lost:
                self.wrong(number, "a row before the first key")
            elif not self._lost:
                self.parts[-1][2].append(Row.parse(data))
        except (KeyInvalid, RowInvalid) as error:
            self.wrong(number, str(error))

    def pack(self, name: str) -> Pack:
        entries: dict[str, Entry] = {}
        for key, softs, rows in self.parts:
            made = Entry.of(key, rows, softs)
            entries[key.id] = entries[key.id] | made if key.id in entries else made
        return Pack(dict(sorted(entries.items())), self.provenance, name)


def parse(data: bytes, name: str = "pack") -> tuple[Pack, list[tuple[int, str]]]:
    """The pack of these bytes, and all that is wrong with them as (line, message). Never raises.

    Nothing of a pack is used whose hash does not match; lines that are no rows of today are left out."""
    reader = _PackReader()
    first, _, body = data.partition(b"\n")
    head = _json(first)
    if not isinstance(head, dict) or head.get("schema") != PACK_SCHEMA:
        return Pack(name=name), [(1, f'not a pack: the first line has no "schema":"{PACK_SCHEMA}"')]
    if head.get("sha256") != hashlib.sha256(body).hexdigest():
        reader.wrong(1, "the hash does not match: the file was cut, damaged or edited")
    for number, line in enumerate(body.split(b"\n"), 2):
        if line:
            reader.take(number, line)
    if reader.problems and reader.problems[0][0] == 1:
        return Pack(name=name), reader.problems
    made = reader.pack(name)
    if (head.get("keys"), head.get("rows")) != (len(made.entries), made.rows) and not reader.problems:
        reader.wrong(
            1, f"says {head.get('keys')} keys and {head.get('rows')} rows, has {len(made.entries)}, {made.rows}"
        )
    return made, reader.problems


def load(path: str) -> bytes:
    """The bytes of a pack's file; PackError where there is none."""
    try:
        return files.read_given(path, MOST_PACK)
    except OSError as error:
        raise PackError(path, [(0, error.strerror or str(error))]) from None


def read(path: str, sha256: str = "") -> Pack:
    """The pack in a file; PackError lists all that is wrong with it, that it is not the one of that hash included."""
    found, problems = parse(load(path), path)
    if not problems and sha256 and found.sha256 != sha256:
        problems = [(1, f"has the hash {found.sha256}, not {sha256}")]
    if problems:
        raise PackError(path, problems)
    return found


def save(path: str, given: bytes) -> None:
    """Write a file for others to read, replaced as a whole; UsageError where it cannot be written."""
    outputs.write(path, given)


def _json(line: bytes) -> Any:
    if len(line) > MOST_LINE * 4:
        return None
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _object(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise KeyInvalid("field 'softs' is not an object")
    return data


def _provenance(data: Any) -> frozenset[Provenance]:
    if not isinstance(data, list) or len(data) > 1000:
        raise RowInvalid("field 'provenance' is not a list")
    for item in data:
        if not isinstance(item, dict) or not all(is_text(k, 40) and is_text(v, 500) for k, v in item.items()):
            raise RowInvalid("field 'provenance' is not a list of objects of texts")
    return frozenset(tuple(sorted(item.items())) for item in data)
