"""The store: one folder per key with append-only shards of trials, one writer each, and what is derived from them.

    <root>/v1/<device id>/<key id>/manifest.json   the key in clear text; its hash is the folder's name
                                  /shards/<host>-<pid>-<start>.jsonl   a row is one line, one write
                                  /best.json       derived, replaced as a whole
    <root>/v1/index.json                           derived: all keys side by side

There is no lock: a writer has a shard of its own, readers skip and count what they cannot read. Where the folder cannot
be used, one line says so and everything goes on in memory.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from weft.cache import files, lines
from weft.cache.canonical import canonical
from weft.cache.files import Ops, UntrustedFile
from weft.cache.index import Index
from weft.cache.key import Key, KeyInvalid, Soft
from weft.cache.place import cache_dir, say_once
from weft.cache.row import Row, RowInvalid
from weft.cache.shard import ShardFold, Writer, writer_of
from weft.cache.summary import Summary, summarise

VERSION = "v1"
_ID = re.compile(r"[0-9a-f]{32}")
_MOST_BEST, _MOST_MANIFEST, _MOST_INDEX = 1 << 24, 1 << 16, 1 << 26  # bytes
_FLUSH_SECONDS = 2.0
_UNINDEXED = 8  # so many manifests may be read at each look before the index is written again


@dataclass
class _State:
    """What this process knows; not shared with a child that a fork makes."""

    pid: int = field(default_factory=os.getpid)
    writing: dict[tuple[str, str], Writer] = field(default_factory=dict[tuple[str, str], Writer])
    dirty: dict[str, Key] = field(default_factory=dict[str, Key])
    folds: dict[str, ShardFold] = field(default_factory=dict[str, ShardFold])
    index: Index | None = None
    homes: dict[str, str] = field(default_factory=dict[str, str])
    flushed: float = field(default_factory=time.monotonic)


class Store:
    """The rows of all keys under one folder.

    root: the folder; default `cache_dir()`. readonly: never write, and accept a folder of another owner.
    notify: gets the line that says the folder cannot be used, instead of stderr.
    """

    name = "store"

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        readonly: bool = False,
        ops: Ops = files.SYSTEM,
        notify: Callable[[str], object] | None = None,
    ) -> None:
        self.root = os.fspath(root if root is not None else cache_dir())
        self.readonly, self.ops, self.notify = readonly, ops, notify
        self.top = os.path.join(self.root, VERSION)
        self.version = 0
        """Counts what this process wrote, so that answers kept from before are not used."""
        self._state = _State()
        self._memory: dict[str, list[tuple[Row, Soft | None]]] = {}
        self._lock = threading.RLock()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Writing

    def append(self, key: Key, row: Row, soft: Soft | None = None) -> bool:
        """Keep a row; True once the system has it on its way to disk, False while it is held in memory only."""
        soft = soft or Soft()
        return self.keep(key, row.under(soft.id), soft)

    def keep(self, key: Key, row: Row, soft: Soft | None) -> bool:
        """`append` for a row that says itself what it was measured under; soft: what that is, where known."""
        with self._lock:
            self._here()
            self.version += 1
            self._memory.setdefault(key.id, []).append((row, soft))
            if self.readonly:
                return False
            kept = self._write(key)
            if kept and time.monotonic() - self._state.flushed >= _FLUSH_SECONDS:
                self.flush()
            return kept

    def learn(self, key: Key, soft: Soft) -> None:
        """Keep what the id of a soft part means, which rows of the key name."""
        with self._lock:
            if not self.readonly:
                try:
                    self._writing(key, soft.id, soft).head()
                except OSError as error:
                    self._trouble(error)

    def _write(self, key: Key) -> bool:
        """Write what is held of this key; rows leave memory one by one as the system takes them."""
        held = self._memory[key.id]
        try:
            while held:
                row, soft = held[0]
                self._writing(key, row.soft, soft).append(row)
                held.pop(0)
            return True
        except OSError as error:
            self._trouble(error)
            return False

    def _writing(self, key: Key, name: str, soft: Soft | None) -> Writer:
        state = self._here()
        state.dirty[key.id] = key
        writer = state.writing.get((key.id, name))
        if writer is None:
            self._make(key)
            writer = Writer(os.path.join(self.path(key), "shards"), key.id, soft, self.ops)
            state.writing[key.id, name] = writer
        writer.soft = soft or writer.soft
        return writer

    def _make(self, key: Key) -> None:
        files.root_folder(self.root, self.ops, make=True)
        path = self.path(key)
        for part in (self.top, os.path.dirname(path), path, os.path.join(path, "shards")):
            files.folder(part, self.ops, make=True)
        if self.key(key.id, key.device.id) is None:
            text = _pretty(key.flat())
            files.replace(os.path.join(path, "manifest.json"), text.encode(), self.ops)

    def _trouble(self, error: OSError) -> None:
        why = str(error) if isinstance(error, UntrustedFile) else f"{self.root}: {error.strerror or error}"
        say_once(
            f"store {self.root}", f"results are kept in memory only, the cache cannot be written: {why}", self.notify
        )

    def flush(self) -> bool:
        """Write what is still held in memory and what is derived; True when nothing is left in memory."""
        with self._lock:
            state = self._here()
            state.flushed = time.monotonic()
            for writer in state.writing.values():
                with suppress(OSError):
                    writer.sync()
            while state.dirty:
                _, key = state.dirty.popitem()
                if self._memory.get(key.id):
                    self._write(key)
                    state.dirty.pop(key.id, None)
                self.summary(key)
            return not any(self._memory.values())

    def close(self) -> bool:
        """Flush and let go of the shards; True when every row is on disk."""
        with self._lock:
            done = self.flush()
            for writer in self._here().writing.values():
                writer.close()
            self._state.writing.clear()
            held = sum(map(len, self._memory.values()))
            if held and not self.readonly:
                say_once(f"lost {self.root}", f"{held} results could not be written to {self.root}", self.notify)
            return done

    def _here(self) -> _State:
        """This process's state: after a fork the child must not write into its parent's shards."""
        if self._state.pid != os.getpid():
            self._state = _State()
            self._memory.clear()
        return self._state

    # Reading

    def path(self, key: Key) -> str:
        """The folder of a key."""
        return os.path.join(self.top, key.device.id, key.id)

    def rows(self, key: Key) -> tuple[Row, ...]:
        """Every row of a key, this process's own included, each once; never raises for what a file holds."""
        with self._lock:
            kept, held = self._fold(key).rows, self._memory.get(key.id)
            if not held:
                return tuple(kept)
            # A write that failed late may have left its row on disk all the same.
            texts = {row.text for row in kept}
            return (*kept, *(row for row, _ in held if row.text not in texts))

    def softs(self, key: Key) -> dict[str, Soft]:
        """The soft parts that rows of a key were measured under, by id."""
        with self._lock:
            held = {soft.id: soft for _, soft in self._memory.get(key.id, ()) if soft is not None}
            return {**self._fold(key).softs, **held}

    def health(self, key: Key) -> lines.Health:
        """How many lines of a key's shards were rows and how many could not be used."""
        with self._lock:
            return self._fold(key).health

    def summary(self, key: Key) -> Summary:
        """The best configurations of a key; from best.json where that is up to date, else made again."""
        with self._lock:
            held = self._memory.get(key.id)
            if key.id not in self._here().folds and not held:
                found = self._derived(key)
                if found is not None:
                    return found
            if held:
                return summarise(self.rows(key), self.softs(key))
            fold = self._fold(key)
            made = summarise(fold.rows, fold.softs)
            if fold.changed and not self.readonly:
                fold.changed = False
                self._derive(key, made, fold)
            return made

    def watched(self, key: Key, asked: Key | None) -> tuple[str, ...]:
        """The paths that change when there is something new: for the key asked, for one that answered instead of it,
        or, with `asked` None, for a key without an answer of its own."""
        path = self.path(key)
        if asked is None:
            device = os.path.dirname(path)
            return (device, f"{path}/best.json") if os.path.isdir(path) else (device,)
        return (f"{path}/best.json", f"{path}/shards") if asked.id == key.id else (f"{path}/best.json",)

    def _fold(self, key: Key) -> ShardFold:
        state = self._here()
        fold = state.folds.get(key.id)
        if fold is None:
            fold = state.folds[key.id] = ShardFold(
                os.path.join(self.path(key), "shards"), key.id, self.ops, self.readonly
            )
        try:
            if self._readable(key):
                fold.refresh()
        except OSError as error:
            say_once(f"read {self.root}", f"the cache cannot be read: {error}", self.notify)
        return fold

    def _readable(self, key: Key) -> bool:
        """Whether the folders down to a key's shards are there and to be trusted; UntrustedFile when they are not."""
        if not files.root_folder(self.root, self.ops, foreign=self.readonly):
            return False
        path = self.path(key)
        parts = (self.top, os.path.dirname(path), path, os.path.join(path, "shards"))
        return all(files.folder(part, self.ops, foreign=self.readonly) for part in parts)

    def _derived(self, key: Key) -> Summary | None:
        """best.json, if it was derived from the very shards that are there."""
        path = self.path(key)
        try:
            if not self._readable(key):
                return Summary()
            data = self._read(os.path.join(path, "best.json"), _MOST_BEST)
            found = lines.decode(data.rstrip(b"\n"), lines.seed(key.id), _MOST_BEST)
            if not isinstance(found, dict) or found.get("shards") != self._sizes(os.path.join(path, "shards")):
                return None
            return Summary.parse(found.get("summary"))
        except (OSError, RowInvalid, KeyInvalid):
            return None

    def _derive(self, key: Key, made: Summary, fold: ShardFold) -> None:
        data = {"shards": fold.sizes(), "summary": made.data()}
        line = lines.encode(canonical(data), lines.seed(key.id))
        with suppress(OSError):
            files.replace(os.path.join(self.path(key), "best.json"), line, self.ops, sync=False)

    def _read(self, path: str, most: int) -> bytes:
        return files.read(path, most, self.ops, foreign=self.readonly)[0]

    def _sizes(self, folder: str) -> dict[str, int]:
        shards = [name for name in files.names(folder, self.ops) if writer_of(name)]
        return {name: files.again(self.ops.lstat, os.path.join(folder, name)).st_size for name in shards}

    # Which keys there are

    def key(self, name: str, device: str = "") -> Key | None:
        """The key of that id, from its manifest; None where there is none that its folder's name agrees with."""
        device = device or self._here().homes.get(name) or self.homes().get(name, "")
        path = os.path.join(self.top, device, name, "manifest.json")
        try:
            found = Key.parse(json.loads(self._read(path, _MOST_MANIFEST)))
        except (OSError, ValueError, RecursionError):
            return None
        return found if (found.id, found.device.id) == (name, device) else None

    def known(self) -> Iterator[Key]:
        """Every key there are rows of, by id."""
        for name, device in sorted(self.homes().items()):
            found = self.key(name, device)
            if found is not None:
                yield found

    def index(self) -> Index:
        """All keys side by side; reads only the manifests that the last index did not have."""
        with self._lock:
            state = self._here()
            homes = state.homes = self.homes()
            index = state.index or self._saved_index() or Index()
            missing = homes.keys() - index.rows.keys()
            index.forget(index.rows.keys() - homes.keys())
            for name in missing:
                found = self.key(name, homes[name])
                if found is not None:
                    index.add(found)
            state.index = index
            if len(missing) > _UNINDEXED and not self.readonly:
                line = lines.encode(canonical(index.data()), lines.seed("index"))
                with suppress(OSError):
                    files.replace(os.path.join(self.top, "index.json"), line, self.ops, sync=False)
            return index

    def _saved_index(self) -> Index | None:
        with suppress(OSError):
            data = self._read(os.path.join(self.top, "index.json"), _MOST_INDEX)
            return Index.parse(lines.decode(data.rstrip(b"\n"), lines.seed("index"), _MOST_INDEX))
        return None

    def homes(self) -> dict[str, str]:
        """The folder of the device of every key folder there is, by its name, whether its manifest is whole or not."""
        try:
            root = files.root_folder(self.root, self.ops, foreign=self.readonly)
            if not root or not files.folder(self.top, self.ops, foreign=self.readonly):
                return {}
            found: dict[str, str] = {}
            for device in filter(_ID.fullmatch, files.names(self.top, self.ops)):
                path = os.path.join(self.top, device)
                if files.folder(path, self.ops, foreign=self.readonly):
                    found |= dict.fromkeys(filter(_ID.fullmatch, files.names(path, self.ops)), device)
            return found
        except OSError as error:
            say_once(f"read {self.root}", f"the cache cannot be read: {error}", self.notify)
            return {}


def _pretty(data: Any) -> str:
    return json.dumps(data, indent=2, sort_keys=True) + "\n"
