"""Which sources a lookup asks: the user's own store, packs, what ships with weft; or one frozen snapshot alone."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

from weft.cache import files, pack
from weft.cache.index import Index
from weft.cache.key import Key
from weft.cache.ladder import Ladder
from weft.cache.pack import Entry, Pack
from weft.cache.place import say_once
from weft.cache.search import ResultSource
from weft.cache.store import Store
from weft.cache.summary import Summary
from weft.errors import PackError

PRETUNED = Path(__file__).parent / "pretuned"
SUFFIX = ".weftpack"


class Pretuned:
    """The packs in the folders of a folder, one folder per GPU; read when first asked. A damaged one is left out."""

    name = "pretuned"
    version = 0

    def __init__(self, folder: str | os.PathLike[str] = PRETUNED) -> None:
        self.folder = os.fspath(folder)

    @cached_property
    def pack(self) -> Pack:
        """All of them as one."""
        made = Pack(name=self.name)
        for path in self.paths():
            try:
                made |= pack.read(path)
            except PackError as error:
                say_once(path, f"{path} is not used; weft cache verify tells why: {error.problems[0][1]}")
        return made

    def paths(self) -> list[str]:
        """The packs there are."""
        found: list[str] = []
        with suppress(OSError):
            for gpu in files.names(self.folder):
                inner = os.path.join(self.folder, gpu)
                if os.path.isdir(inner):
                    found += [os.path.join(inner, name) for name in files.names(inner) if name.endswith(SUFFIX)]
        return found

    def index(self) -> Index:
        """All keys side by side."""
        return self.pack.index()

    def key(self, name: str) -> Key | None:
        """The key of an id."""
        return self.pack.key(name)

    def summary(self, key: Key) -> Summary:
        """The best of a key."""
        return self.pack.summary(key)

    def watched(self, key: Key, asked: Key | None) -> tuple[str, ...]:
        """Nothing: what ships with weft stays as it is."""
        return ()


_frozen: list[Ladder] = []


def ladder(
    store: Store | None = None, packs: Sequence[ResultSource] = (), pretuned: ResultSource | None = None
) -> Ladder:
    """The ladder over the store (default: the user's), then packs, then what ships with weft.

    Within `frozen` it is the snapshot's, whatever is asked for."""
    if _frozen:
        return _frozen[-1]
    return Ladder((store or Store(), *packs, pretuned or Pretuned()))


@contextmanager
def frozen(snapshot: Pack) -> Generator[Ladder]:
    """While this lasts, every `ladder` of this process answers from the snapshot only: all ranks that load the same
    bytes (`Pack.sha256`) choose the same configurations, whatever others write meanwhile."""
    made = Ladder((snapshot,))
    _frozen.append(made)
    try:
        yield made
    finally:
        _frozen.remove(made)


def snapshot(store: Store, keys: Iterable[Key] | None = None, keep: int = 4) -> Pack:
    """The winners of a store as a pack, some per key in case a space refuses the first."""
    return export(store, keys).winners(keep)


def export(store: Store, keys: Iterable[Key] | None = None, **provenance: str) -> Pack:
    """The rows of a store, or of some of its keys, as a pack."""
    chosen = store.known() if keys is None else keys
    return Pack.of((Entry.of(key, store.rows(key), store.softs(key)) for key in chosen), **provenance)


def take(store: Store, given: Pack) -> tuple[int, int]:
    """Append the rows of a pack that the store does not have: (new, already there)."""
    new = known = 0
    for entry in given.entries.values():
        have, softs = {row.text for row in store.rows(entry.key)}, store.softs(entry.key)
        for name, soft in entry.softs.items():
            if name not in softs:
                store.learn(entry.key, soft)
        for row in entry.rows:
            if row.text in have:
                known += 1
            else:
                store.keep(entry.key, row, entry.softs.get(row.soft))
                new += 1
    return new, known
