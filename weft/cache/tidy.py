"""Keeping a store in order: is everything in it whole, and what can be folded together or thrown away."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from weft.cache import files, lines
from weft.cache.binaries import Binaries
from weft.cache.canonical import canonical
from weft.cache.key import Key
from weft.cache.lease import Leases
from weft.cache.shard import ShardFold, host, shard_name, writer_of
from weft.cache.store import Store

DAY = 86_400.0
HOUR = 3_600.0


@dataclass(frozen=True)
class Finding:
    """Something seen in a store. level: "fail" loses results, "note" is normal or mends itself."""

    level: Literal["fail", "note"]
    path: str
    message: str

    def data(self) -> dict[str, Any]:
        """As JSON data."""
        return {"level": self.level, "path": self.path, "message": self.message}


def verify(store: Store) -> list[Finding]:
    """Read everything and tell what is not whole. Changes nothing."""
    try:
        if not files.root_folder(store.root, store.ops, foreign=store.readonly):
            return []
    except OSError as error:
        return [Finding("fail", store.root, str(error))]
    found: list[Finding] = []
    for name, device in sorted(store.homes().items()):
        path = os.path.join(store.top, device, name)
        key = store.key(name, device)
        if key is None:
            found.append(Finding("fail", path, "its manifest is missing, damaged or another key's"))
            continue
        found += _of_key(store, key)
    found += [Finding("note", path, "left behind by a process that was killed") for path in _temps(store.root)]
    return found


def _of_key(store: Store, key: Key) -> Iterable[Finding]:
    folder = os.path.join(store.path(key), "shards")
    fold = ShardFold(folder, key.id, store.ops, store.readonly)
    try:
        files.folder(folder, store.ops, foreign=store.readonly)
        fold.refresh()
    except OSError as error:
        yield Finding("fail", folder, str(error))
        return
    for name, why in fold.refused.items():
        yield Finding("fail", os.path.join(folder, name), why)
    if fold.health.damaged:
        yield Finding("fail", folder, f"{fold.health.damaged} lines are damaged; {fold.health.rows} rows are whole")
    if fold.health.foreign:
        yield Finding("note", folder, f"{fold.health.foreign} lines are of another version of weft")
    torn = fold.torn()
    if torn:
        yield Finding(
            "note", folder, f"{torn} shards end in an unfinished line: their writers were killed or still write"
        )


def _temps(root: str) -> list[str]:
    return [os.path.join(at, name) for at, _, names in os.walk(root) for name in names if name.startswith(files.TEMP)]


@dataclass(frozen=True)
class Tidied:
    """What `gc` did: shards folded into others, unfinished files and leases removed, cubins and their bytes."""

    shards: int
    temps: int
    leases: int
    cubins: int
    bytes: int


def gc(store: Store, *, age: float = DAY, dry: bool = False) -> Tidied:
    """Fold the shards of dead writers together, remove what killed processes left and cubins that no row names.

    age: seconds since the last write before anything is touched. dry: only count."""
    now = _now(store)
    shards = sum(compact(store, key, age=age, dry=dry, now=now) for key in store.known())
    temps = [path for path in _temps(store.root) if _older(path, now, min(age, HOUR))]
    if dry:
        return Tidied(shards, len(temps), 0, 0, 0)
    for path in temps:
        with suppress(OSError):
            os.unlink(path)
    leases = Leases(os.path.join(store.top, "leases"), ops=store.ops).sweep()
    kept = {row.cubin for key in store.known() for row in store.rows(key) if row.cubin}
    cubins, size = Binaries(store.top, store.ops).sweep(kept, lambda path: _older(path, now, age))
    return Tidied(shards, len(temps), leases, cubins, size)


def compact(store: Store, key: Key, *, age: float = DAY, dry: bool = False, now: float | None = None) -> int:
    """Fold the shards of a key whose writers are gone into one; how many there were. One alone stays unless lines of
    it are damaged."""
    folder = os.path.join(store.path(key), "shards")
    now = _now(store) if now is None else now
    old = [name for name in files.names(folder, store.ops) if _abandoned(os.path.join(folder, name), now, age)]
    fold = ShardFold(folder, key.id, store.ops, only=frozenset(old))
    if old:
        fold.refresh()
    if len(old) < 2 and not fold.health.damaged:
        return 0
    if dry or fold.refused or fold.health.foreign:
        return len(old) if dry else 0  # what cannot be read is not thrown away
    seed = lines.seed(key.id)
    heads = [canonical({"soft": soft.flat()}) for soft in fold.softs.values()]
    data = b"".join(lines.encode(text, seed) for text in (*heads, *(row.text for row in fold.rows)))
    try:
        files.replace(os.path.join(folder, shard_name()), data, store.ops)
        for name, size in fold.sizes().items():
            path = os.path.join(folder, name)
            if store.ops.lstat(path).st_size == size:  # nobody wrote after all
                store.ops.unlink(path)
    except OSError:
        return 0
    return len(old)


def _now(store: Store) -> float:
    """The time by the clock of the disk, which other hosts may share; infinitely long ago where it cannot be asked."""
    path = os.path.join(store.root, f"{files.TEMP}clock-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        store.ops.close(files.create(path, store.ops))
        now = store.ops.lstat(path).st_mtime
        store.ops.unlink(path)
        return now
    except OSError:
        return float("-inf")


def _older(path: str, now: float, age: float) -> bool:
    try:
        return now - os.lstat(path).st_mtime >= age
    except OSError:
        return False


def _abandoned(path: str, now: float, age: float) -> bool:
    """Whether nobody will write to a shard: not written for long, and its writer, if it was of this host, is gone."""
    writer = writer_of(os.path.basename(path))
    if writer is None or not _older(path, now, age):
        return False
    name, pid = writer
    if name != host():
        return True
    try:
        os.kill(pid, 0)
        return False
    except ProcessLookupError:
        return True
    except OSError:
        return False
