"""Who times what, where several tuners share a folder: a lease for each configuration that is being timed.

    journal = StoreJournal(store, key)
    with Claims(journal, Leases(f"{store.top}/leases"), key.id) as claims:
        Search(..., journal, Options(claim=claims.take, release=claims.release)).run()

A configuration is timed under its lease, and its row is in the store before the lease is let go, so who takes the lease
next sees the row. A dead tuner's leases are taken over: at once on the same host, elsewhere after `SECONDS` of silence.
"""

from __future__ import annotations

import threading
from contextlib import suppress

from weft.autotune.search.rows import recorded
from weft.autotune.types import Config, Journal, config_id
from weft.cache.lease import Lease, Leases
from weft.cache.place import say_once

SECONDS = 60.0
"""A host that was silent for so long is given up."""
_BEATS = 4  # in that time


class Heart:
    """Calls `beat` again and again on a thread of its own until it is closed."""

    def __init__(self, every: float) -> None:
        self.every, self._stop = every, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self.every):
            with suppress(OSError):
                self.beat()

    def beat(self) -> None:
        """Show that this process lives."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop."""
        self._stop.set()
        self._thread.join()


class Claims(Heart):
    """Leases for the configurations of one key. name: of the key; seconds: what a lease promises."""

    def __init__(self, journal: Journal, leases: Leases, name: str, seconds: float = SECONDS) -> None:
        self.journal, self.leases, self.name, self.seconds = journal, leases, name, seconds
        self._held: dict[str, Lease] = {}
        self._lock = threading.Lock()
        super().__init__(seconds / _BEATS)

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self, config: Config) -> bool:
        name = config_id(config)
        with self._lock:
            if name in self._held:
                return True
            if self._timed(name):
                return False
            try:
                lease = self.leases.take(f"{self.name} {name}", self.seconds)
            except OSError as error:
                say_once(self.leases.folder, f"other tuners are not told what is timed here: {error}")
                return True
            if lease is None:
                return False
            if self._timed(name):  # by whoever had it between the look and the take
                lease.drop()
                return False
            self._held[name] = lease
            return True

    def release(self, config: Config) -> None:
        with self._lock:
            lease = self._held.pop(config_id(config), None)
        if lease is not None:
            lease.drop()

    def beat(self) -> None:
        with self._lock:
            held = list(self._held.values())
        for lease in held:
            lease.renew()

    def close(self) -> None:
        """Let go of what was begun and not finished."""
        super().close()
        with self._lock:
            left, self._held = list(self._held.values()), {}
        for lease in left:
            lease.release()

    def _timed(self, name: str) -> bool:
        return name in recorded(self.journal.rows())
