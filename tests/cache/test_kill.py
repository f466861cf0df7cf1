"""Writers killed at any moment, on one store: what was acknowledged is there, and readers never notice."""

import os
import random
import signal
import subprocess
import sys
import threading
import time

from tests.cache.examples import CONFIGS, DEFAULT, KEY, SOFT, SPACE
from tests.campaign import SOAK, count
from weft.cache.ladder import Ladder
from weft.cache.store import Store
from weft.cache.tidy import compact


class Reader(threading.Thread):
    """Looks the key up and counts rows, over and over; keeps what went wrong."""

    def __init__(self, root) -> None:
        super().__init__(daemon=True)
        self.root, self.stop, self.looks = root, threading.Event(), 0
        self.problems: list[str] = []

    def run(self) -> None:
        store = Store(self.root, notify=self.problems.append)
        ladder, seen = Ladder([store]), 0
        while not self.stop.is_set():
            try:
                answer = ladder.lookup(KEY, SOFT, SPACE, DEFAULT)
                rows = len(store.rows(KEY))
                if rows < seen or answer.config not in CONFIGS or store.health(KEY).foreign:
                    self.problems.append(f"{rows} rows after {seen}, {answer}")
                seen, self.looks = rows, self.looks + 1
                fresh = Ladder([Store(self.root, notify=self.problems.append)]).lookup(KEY, SOFT, SPACE, DEFAULT)
                if fresh.config not in CONFIGS:
                    self.problems.append(str(fresh))
            except Exception as error:
                self.problems.append(repr(error))
            time.sleep(0.005)


def start(root, seed: int, rows: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.cache.writer", str(root), str(seed), str(rows)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def acknowledged(seed: int, output: bytes) -> set[tuple[int, int]]:
    """The complete lines a writer said."""
    said = output[: output.rfind(b"\n") + 1].split()
    return {(seed, int(word)) for word in said if word != b"done"}


def test_no_acknowledged_row_is_lost_whoever_is_killed(tmp_path, record_property):
    writers, rows, kills = (8, 500, 40) if SOAK else (2, 120, count(sample=8, soak=40))
    root, rng = tmp_path / "c", random.Random(5)
    reader = Reader(root)
    reader.start()
    expected: set[tuple[int, int]] = set()
    running: list[tuple[int, subprocess.Popen]] = []
    seed = killed = 0
    while killed < kills or running:
        while len(running) < writers and killed < kills:
            running.append((seed, start(root, seed, rows)))
            seed += 1
        if killed < kills:
            number, victim = running.pop(rng.randrange(len(running)))
            victim.stdout.read1(1)  # it began
            time.sleep(rng.random() * 0.1)
            victim.send_signal(signal.SIGKILL)
            rest = victim.communicate()[0]
            killed += 1
            expected |= acknowledged(number, b"0\n" + rest.partition(b"\n")[2])
        else:
            number, last = running.pop()
            output = last.communicate()[0]
            assert output.endswith(b"done\n")
            expected |= acknowledged(number, output)
    reader.stop.set()
    reader.join()
    found = {(dict(r.features)["writer"], dict(r.features)["i"]) for r in Store(root).rows(KEY)}
    record_property("kills, rows acknowledged, looks", f"{killed}, {len(expected)}, {reader.looks}")

    assert reader.problems == []
    assert expected <= found
    assert len(found) - len(expected) <= killed  # at most the row that was being written
    assert reader.looks > 0


def test_a_reader_is_right_while_shards_are_folded_into_one(tmp_path):
    root = tmp_path / "c"
    for seed in range(6):
        assert start(root, seed, 40).communicate()[0].endswith(b"done\n")
    reader = Reader(root)
    reader.start()
    while reader.looks < 3:
        time.sleep(0.01)
    store = Store(root)
    assert compact(store, KEY, age=0) == 6
    looks = reader.looks
    while reader.looks < looks + 3:
        time.sleep(0.01)
    reader.stop.set()
    reader.join()

    assert reader.problems == []
    assert len(os.listdir(os.path.join(store.path(KEY), "shards"))) == 1
    assert len(Store(root).rows(KEY)) == 240
