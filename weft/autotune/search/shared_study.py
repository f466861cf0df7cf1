"""Tuners that share any storage of Optuna's: its study of a key says who times what, and holds what came of it.

    shared = SharedStudy(StoreJournal(store, key, soft), "mysql://...", space.knobs)
    Search(..., shared, Options(claim=shared.take, release=shared.release)).run()

A claim is a running trial made with its parameters in one step, so of several that claim the same configuration the one
of the lowest number is seen by all others, and has it. What a storage says is believed no further than a pack: rows are
checked when they are read. Rows go into the own store as well.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from weft.autotune.search.claims import SECONDS, Heart
from weft.autotune.search.rows import StoreJournal
from weft.autotune.search.study import new_study
from weft.autotune.types import Config, Row, Source, Status, Value, config_id
from weft.cache.lease import alive, boot_id, started
from weft.cache.place import say_once
from weft.cache.row import RowInvalid
from weft.cache.shard import host
from weft.errors import UsageError

OPENINGS = 6
"""Times that a storage is opened before its error is the user's."""
_CONFIG, _ROW, _BY, _BEAT = "weft:config", "weft:row", "weft:by", "weft:beat"


class SharedStudy(Heart):
    """The journal of one key over a storage, and the claims on its configurations.

    inner: where rows are kept besides; its key and soft part name the study. url: of an Optuna storage. knobs: name ->
    values. seconds: a tuner on another host that was silent for so long is given up.
    """

    def __init__(
        self, inner: StoreJournal, url: str, knobs: Mapping[str, Sequence[Value]], seconds: float = SECONDS
    ) -> None:
        self.inner, self.seconds = inner, seconds
        name = f"weft {inner.key.skeleton} {inner.key.id} {inner.soft.id}"
        with _usable(url):
            self.study = new_study(None, storage_at(url), name)
        self.space = {n: CategoricalDistribution(tuple(values)) for n, values in knobs.items()}
        self._me = {"host": host(), "pid": os.getpid(), "start": started(os.getpid()), "boot": boot_id()}
        self._held: dict[str, int] = {}
        self._watched: dict[int, tuple[Any, float]] = {}
        self._lock = threading.Lock()
        super().__init__(seconds / 4)

    def __enter__(self) -> SharedStudy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The journal

    def rows(self) -> Sequence[Row]:
        found = {row.text: row for row in self.inner.rows()}
        trials: list[FrozenTrial] = []
        with self._unreached():
            trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            text = trial.user_attrs.get(_ROW)
            if isinstance(text, str) and text not in found:
                row = _row(text)
                if row is not None:
                    found[text] = row
        return tuple(found.values())

    def append(self, row: Row) -> bool:
        kept = self.inner.append(row)
        number = self._held.get(row.cfg_id)
        if row.src is Source.TUNE and number is not None:
            timed = row.us if row.status in (Status.OK, Status.SLOW) else None
            with self._unreached():
                self._storage.set_trial_user_attr(number, _ROW, row.under(self.inner.soft.id).text)
                self._finish(number, timed)
        return kept

    # The claims

    def take(self, config: Config) -> bool:
        name = config_id(config)
        with self._lock:
            if name in self._held:
                return True
            with self._unreached():
                return self._claim(config, name)
            return True  # alone

    def _claim(self, config: Config, name: str) -> bool:
        if self._other(name, None):
            return False
        about = {_CONFIG: name, _BY: self._me, _BEAT: 0}
        template = create_trial(
            state=TrialState.RUNNING, params=dict(config), distributions=dict(self.space), user_attrs=about
        )
        template.datetime_start = datetime.now()
        mine = self._storage.create_new_trial(self.study._study_id, template)
        if self._other(name, mine):
            self._finish(mine, None)
            return False
        self._held[name] = mine
        return True

    def release(self, config: Config) -> None:
        with self._lock:
            self._held.pop(config_id(config), None)

    def beat(self) -> None:
        with self._lock, self._unreached():
            for trial in self._held.values():
                self._storage.set_trial_user_attr(trial, _BEAT, time.time())

    def close(self) -> None:
        """Let go of what was begun, and keep what others found in the own store too."""
        super().close()
        with self._lock, self._unreached():
            for trial in self._held.values():
                self._finish(trial, None)
            self._held = {}
        known = {row.text for row in self.inner.rows()}
        for row in self.rows():
            if row.text not in known:
                self.inner.append(row)

    @contextmanager
    def _unreached(self) -> Generator[None]:
        """A storage that cannot be reached is said once, and the search goes on alone."""
        try:
            yield
        except Exception as error:  # of whichever driver the URL names
            said = (str(error).splitlines() or [""])[0]
            say_once(f"storage {self.study.study_name}", f"other tuners are not heard, the storage fails: {said}")

    @property
    def _storage(self) -> Any:
        return self.study._storage

    def _other(self, name: str, mine: int | None) -> bool:
        """Whether somebody else has timed a configuration, or is at it and was there first."""
        for trial in self.study.get_trials(deepcopy=False):
            if trial.user_attrs.get(_CONFIG) != name or trial._trial_id == mine:
                continue
            if _ROW in trial.user_attrs:
                return True
            earlier = mine is None or trial._trial_id < mine
            if trial.state is TrialState.RUNNING and earlier and not self._dead(trial):
                return True
        return False

    def _dead(self, trial: FrozenTrial) -> bool:
        """Whether who began a trial is gone; then the trial is ended."""
        by, beat, now = trial.user_attrs.get(_BY) or {}, trial.user_attrs.get(_BEAT), time.monotonic()
        if by.get("host") == self._me["host"] and by.get("boot") == self._me["boot"] != "":
            gone = not alive(int(by.get("pid", 0)), str(by.get("start", "")))
        else:
            before, since = self._watched.setdefault(trial._trial_id, (beat, now))
            if before != beat:
                self._watched[trial._trial_id] = beat, now
            gone = before == beat and now - since > self.seconds
        if gone:
            self._finish(trial._trial_id, None)
        return gone

    def _finish(self, trial: int, us: float | None) -> None:
        state, values = (TrialState.FAIL, None) if us is None else (TrialState.COMPLETE, [us])
        try:
            self._storage.set_trial_state_values(trial, state, values)
        except (RuntimeError, optuna.exceptions.UpdateFinishedTrialError):
            return  # somebody took this process for dead, or ended the same dead one


def tried(url: str) -> None:
    """UsageError where there is no such storage."""
    with _usable(url):
        storage_at(url).remove_session()


def storage_at(url: str, tries: int = OPENINGS) -> Any:
    """The storage at a URL, made if it is new. Tuners that make one at the same time see each other's tables half made,
    which is an error of the database: then it is opened again."""
    try:
        return optuna.storages.get_storage(url)
    except Exception as error:  # SQLAlchemy is not asked by name: it comes with some storages only
        if tries == 1 or not type(error).__module__.startswith("sqlalchemy"):
            raise
        time.sleep(random.uniform(0.05, 0.2))
        return storage_at(url, tries - 1)


@contextmanager
def _usable(url: str) -> Generator[None]:
    try:
        yield
    except Exception as error:  # of whichever driver the URL names
        said = (str(error).splitlines() or [""])[0][:200]
        known = "a URL such as sqlite:////folder/tuning.db, postgresql://user@host/tuning or mysql://user@host/tuning"
        raise UsageError(f"the storage {url.split('@')[-1]} cannot be used: {said}; it takes {known}") from None


def _row(text: str) -> Row | None:
    try:
        return Row.parse(json.loads(text))
    except (RowInvalid, ValueError, RecursionError):
        return None
