"""All keys of a source side by side, as small integers, so that the nearest to a wanted one is found among a thousand
in a millisecond. Derived: a key that is picked is read again in full and its hash compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from weft.cache.canonical import canonical, is_count
from weft.cache.key import HARD, Key

_WIDTH = len(HARD)


class Index:
    """Keys by id; a column per hard field, and per field the table of its values."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self.tables: list[list[Any]] = [[] for _ in HARD]
        self.rows: dict[str, list[int]] = {}
        self._places: list[dict[str, int]] = [{} for _ in HARD]
        for key in keys:
            self.add(key)

    def add(self, key: Key) -> None:
        """Take a key in."""
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

    def differing(self, key: Key) -> list[tuple[str, list[int]]]:
        """Every key here with the positions in HARD where it is not like the wanted one."""
        flat = key.flat()
        wanted = [places.get(canonical(flat[name]), -1) for name, places in zip(HARD, self._places)]
        return [
            (found, [i for i, (a, b) in enumerate(zip(row, wanted)) if a != b]) if row != wanted else (found, [])
            for found, row in self.rows.items()
        ]

    def value(self, found: str, field: str) -> Any:
        """A field of a key that is here."""
        at = HARD.index(field)
        return self.tables[at][self.rows[found][at]]

    def data(self) -> dict[str, Any]:
        """As JSON data."""
        return {"fields": list(HARD), "tables": self.tables, "rows": self.rows}

    @classmethod
    def parse(cls, data: Any) -> Index | None:
        """Of data from a file; None when it is no index of today's fields."""
        if not isinstance(data, dict) or data.get("fields") != list(HARD):
            return None
        tables, rows = data.get("tables"), data.get("rows")
        if not isinstance(tables, list) or len(tables) != _WIDTH or not isinstance(rows, dict):
            return None
        if not all(isinstance(t, list) for t in tables) or not _fits(rows, [len(t) for t in tables]):
            return None
        made = cls()
        made.tables, made.rows = tables, rows
        made._places = [{canonical(v): i for i, v in enumerate(table)} for table in tables]
        return made


def _fits(rows: Mapping[Any, Any], sizes: list[int]) -> bool:
    if not all(isinstance(row, list) and len(row) == _WIDTH for row in rows.values()):
        return False
    return all(is_count(max(column)) and max(column) < n for column, n in zip(zip(*rows.values()), sizes))
