"""Several tuners on one store or storage: nothing is timed twice, the dead are taken over, nothing is lost."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.autotune.tuner import KEY, SOFT, land
from tests.campaign import count
from weft.autotune.search.claims import Claims
from weft.autotune.search.rows import StoreJournal, recorded
from weft.autotune.search.shared_study import SharedStudy, storage_at
from weft.autotune.types import Row, Status, config_id
from weft.cache.lease import Leases
from weft.cache.place import forget_said
from weft.cache.store import Store
from weft.errors import UsageError

CONFIGS = land(1).configs
A, B = CONFIGS[:2]


def done(config, us=10.0):
    return Row.of(config, Status.OK, times_us=[us])


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def pair(tmp_path):
    """Two tuners on one store, the second on a host of another name; and the second's clock."""
    clock, stores = Clock(), [Store(tmp_path) for _ in range(2)]
    leases = [Leases(f"{tmp_path}/v1/leases"), Leases(f"{tmp_path}/v1/leases", hostname="other", clock=clock)]
    made = [Claims(StoreJournal(s, KEY, SOFT), f, KEY.id, 60.0) for s, f in zip(stores, leases)]
    yield *made, clock
    for claims in made:
        claims.close()


def test_what_one_times_the_other_does_not(pair):
    one, two, _ = pair
    assert one.take(A)
    assert one.take(A)  # it is ours
    assert not two.take(A)
    assert two.take(B)
    one.journal.append(done(A))
    one.release(A)
    assert not two.take(A)  # it was timed
    assert os.listdir(one.leases.folder) == [os.path.basename(two.leases.path(f"{KEY.id} {config_id(B)}", 1))]


def test_what_a_silent_host_held_is_taken_over(pair):
    one, two, clock = pair
    assert one.take(A)
    assert not two.take(A)
    clock.now = 59.0
    assert not two.take(A)
    one.beat()  # it lives
    clock.now = 100.0
    assert not two.take(A)
    clock.now = 161.0
    assert two.take(A)
    one.journal.append(done(A))
    one.release(A)  # was not its own any more
    name = f"{KEY.id} {config_id(A)}"
    assert not json.loads(Path(two.leases.path(name, two.leases.top(name))).read_text())["released"]


def test_who_stops_lets_go(pair):
    one, two, _ = pair
    assert one.take(A)
    one.close()
    assert two.take(A)


def test_a_folder_that_cannot_be_used_does_not_stop_the_search(pair, monkeypatch, capsys):
    one, _, _ = pair
    monkeypatch.setattr(one.leases, "take", lambda *_: (_ for _ in ()).throw(PermissionError("no")))
    assert one.take(A)
    assert "not told" in capsys.readouterr().err


def test_a_storage_that_fails_does_not_stop_the_search(tmp_path, monkeypatch, capsys):
    forget_said()
    knobs = {name: sorted({c[name] for c in CONFIGS}) for name in A}
    with SharedStudy(StoreJournal(Store(tmp_path), KEY, SOFT), f"sqlite:///{tmp_path}/s.db", knobs) as shared:
        assert shared.take(A)

        def gone(*_, **__):
            raise RuntimeError("the server went away")

        with monkeypatch.context() as patch:
            for name in ("create_new_trial", "get_all_trials", "set_trial_user_attr", "set_trial_state_values"):
                patch.setattr(shared.study._storage, name, gone)
            shared.append(done(A))
            shared.release(A)
            assert shared.take(B)
            assert [row.cfg_id for row in shared.rows()] == [config_id(A)]
    assert capsys.readouterr().err.count("the server went away") == 1
    with pytest.raises(UsageError, match="cannot be used"):
        SharedStudy(StoreJournal(Store(tmp_path), KEY, SOFT), "no such thing", knobs)


class Reader(threading.Thread):
    """Reads the store over and over; keeps what went wrong."""

    def __init__(self, root):
        super().__init__(daemon=True)
        self.root, self.stop, self.looks, self.problems = root, threading.Event(), 0, []

    def run(self):
        seen, store = 0, Store(self.root, notify=self.problems.append)
        while not self.stop.is_set():
            try:
                rows = len(store.rows(KEY))
                assert rows >= seen, f"{rows} rows after {seen}"
                Store(self.root, readonly=True, notify=self.problems.append).summary(KEY)
                seen, self.looks = rows, self.looks + 1
            except Exception as error:
                self.problems.append(repr(error))
            time.sleep(0.01)


def start(root, seed, stages, seconds, url=""):
    command = [sys.executable, "-m", "tests.autotune.tuner", *map(str, (root, seed, stages, seconds)), url]
    with open(f"{root}.{seed}", "wb") as out:
        return subprocess.Popen([c for c in command if c], stdout=out)


def said(root, word):
    """What whole lines of all tuners say."""
    texts = [path.read_text() for path in root.parent.glob(f"{root.name}.*")]
    lines = [line.split() for text in texts for line in text[: text.rfind("\n") + 1].splitlines()]
    return [line[1] for line in lines if line[0] == word]


def campaign(root, tuners, stages, kills, seconds, url=""):
    """Tuners on one pool, so many of them killed at random instants and started anew; until all are done."""
    rng, killed, seed = random.Random(3), 0, 0
    reader = Reader(root)
    reader.start()
    running = []
    while True:
        while len(running) < tuners and (killed < kills or seed < tuners):
            running.append(start(root, seed, stages, seconds, url))
            seed += 1
        if killed < kills:
            time.sleep(rng.uniform(0.2, 0.8) if killed else 1.5)
            victim = running.pop(rng.randrange(len(running)))
            killed += victim.poll() is None
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            if victim.returncode == 0:
                break
        else:
            break
    assert [tuner.wait() for tuner in running] == [0] * len(running)
    reader.stop.set()
    reader.join()
    return killed, reader


def test_a_storage_that_many_make_at_once_is_made(tmp_path):
    together, found = threading.Barrier(8), list[object]()

    def make(url):
        together.wait()
        try:
            found.append(storage_at(url))
        except Exception as error:
            found.append(error)

    for i in range(3):
        threads = [threading.Thread(target=make, args=(f"sqlite:///{tmp_path}/{i}.db",)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert len(found) == 24
    assert [x for x in found if isinstance(x, Exception)] == []


@pytest.mark.parametrize("where", ["folder", "storage"])
def test_tuners_with_random_kills_lose_nothing_and_repeat_nothing(tmp_path, where, record_property):
    """In the soak eight tuners share 4,000 configurations of a folder, 500 each."""
    root = tmp_path / "store"
    big = where == "folder"
    tuners, stages, kills = (count(2, 8), count(1, 10), count(1, 40)) if big else (2, 0, 1)
    url = "" if big else f"sqlite:///{tmp_path}/study.db"
    killed, reader = campaign(root, tuners, stages, kills, 0.002, url)
    with Store(root) as store:
        rows = recorded(store.rows(KEY))
    begun, kept = Counter(said(root, "begun")), said(root, "kept")
    record_property(
        "tuners, configurations, kills, looks", f"{tuners}, {len(land(stages).configs)}, {killed}, {reader.looks}"
    )

    assert reader.problems == []
    assert set(kept) <= set(rows), "an acknowledged row was lost"
    assert len(kept) == len(set(kept)), "a configuration was timed twice"
    assert len(rows) == len(land(stages).configs)
    assert sum(begun.values()) - len(begun) <= killed, "more was timed again than the dead had begun"
