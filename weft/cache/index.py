"""All keys of a source side by side, as small integers, so that the nearest to a wanted one is found among a thousand
in a millisecond. Derived: a key that is picked is read again in full and its hash compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from weft.cache.canonical import canonical
from weft.cache.key import HARD, Key

_AT = {name: i for i, name in enumerate(HARD)}


class Index:
    """Keys by id; a column per hard field, and per field the table of its values."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self.tables: list[list[Any]] = [[] for _ in HARD]
        self.rows: dict[str, list[int]] = {}
        self._places: list[dict[str, int]] | None = None
        for key in keys:
            self.add(key)

    def add(self, key: Key) -> None:
        """Take a key in."""
        if self._places is None:
            self._places = [{canonical(v): i for i, v in enumerate(table)} for table in self.tables]
        flat = key.flat()
        row: list[int] = []
        for name, table, places in zip(HARD, self.tables, self._places):
            spelled = canonical(flat[name])
            if spelled not in places:
                places[spelled] = len(table)
                table.append(flat[name])
            row.append(places[spelled])
        self.rows[key.id] = row

    def forget(self, ids: Iterable[str]) -> None:
        """Drop keys that are no longer there."""
        for name in ids:
            self.rows.pop(name, None)

    def groups(self, key: Key) -> dict[frozenset[str], list[str]]:
        """The ids of the keys here by the fields in which they are not like the wanted one."""
        flat = key.flat()
        wanted = [table.index(flat[f]) if flat[f] in table else -1 for f, table in zip(HARD, self.tables)]
        varying = [i for i, table in enumerate(self.tables) if len(table) > 1 or wanted[i] < 0]
        found: dict[tuple[int, ...], list[str]] = {}
        for name, row in self.rows.items():
            found.setdefault(tuple([i for i in varying if row[i] != wanted[i]]), []).append(name)
        return {frozenset(HARD[i] for i in at): names for at, names in found.items()}

    def value(self, name: str, field: str) -> Any:
        """A field of a key that is here; what the file says of it, unchecked."""
        at = _AT[field]
        return self.tables[at][self.rows[name][at]]

    def data(self) -> dict[str, Any]:
        """As JSON data; a field that all keys share has no column."""
        columns = dict(zip(HARD, zip(*self.rows.values())))
        kept = {name: columns[name] for name, table in zip(HARD, self.tables) if len(table) > 1 and columns}
        return {"tables": dict(zip(HARD, self.tables)), "ids": list(self.rows), "columns": kept}

    @classmethod
    def parse(cls, data: Any) -> Index | None:
        """Of data from a file; None when it is no index of today's fields."""
        try:
            tables, names, given = data["tables"], data["ids"], data["columns"]
            if tables.keys() != set(HARD) or not all(isinstance(table, list) for table in tables.values()):
                return None
            columns = [given.get(name) or [0] * len(names) for name in HARD]
            if any(len(column) != len(names) for column in columns):
                return None
            if any(min(c) < 0 or max(c) >= len(tables[name]) for name, c in zip(HARD, columns) if names):
                return None
            made = cls()
            made.tables = [tables[name] for name in HARD]
            made.rows = dict(zip(names, map(list, zip(*columns))))
            return made
        except (AttributeError, KeyError, TypeError):
            return None
