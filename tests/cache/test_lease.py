"""Leases: one holder at a time, whoever dies, whatever the clocks say."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.campaign import count
from weft.cache.lease import Leases, alive, started


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def folder(tmp_path) -> str:
    return str(tmp_path / "c" / "v1" / "leases")


def told(leases: Leases, name: str) -> dict:
    """The file of a name's newest lease."""
    return json.loads(Path(leases.path(name, leases.top(name))).read_text())


def test_one_holder_at_a_time(folder):
    ours, theirs = Leases(folder), Leases(folder)
    lease = ours.take("gpu 0")

    assert lease is not None
    assert lease.held()
    assert theirs.take("gpu 0") is None
    assert theirs.take("gpu 1") is not None
    assert told(theirs, "gpu 0")["pid"] == os.getpid()
    lease.release()
    assert not lease.held() or told(theirs, "gpu 0")["released"]
    again = theirs.take("gpu 0")
    assert again is not None
    assert not lease.held()
    assert not lease.renew()


def test_a_dead_process_of_this_boot_loses_it_at_once(folder):
    code = f"from weft.cache.lease import Leases; import os; assert Leases({folder!r}).take('x'); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9

    assert Leases(folder).take("x") is not None


def test_another_host_keeps_it_as_long_as_it_renews(folder):
    clock = Clock()
    far, here = Leases(folder, hostname="far"), Leases(folder, clock=clock)
    lease = far.take("x", seconds=10)
    for _ in range(5):
        assert here.take("x") is None
        clock.now += 9
        assert here.take("x") is None
        assert lease.renew()
    assert here.take("x") is None
    clock.now += 10.5
    mine = here.take("x", seconds=10)
    assert mine is not None
    assert not lease.held()
    assert mine.held()


def test_another_boot_of_this_host_is_waited_for(folder, monkeypatch):
    clock = Clock()
    before = Leases(folder)
    before.boot = "another"
    assert before.take("x", seconds=5)
    now = Leases(folder, clock=clock)

    assert now.take("x") is None
    clock.now = 5.1
    assert now.take("x") is not None


def test_the_wall_clock_decides_nothing(folder, monkeypatch):
    far, here = Leases(folder, hostname="far"), Leases(folder, clock=Clock())
    assert far.take("x", seconds=5)
    monkeypatch.setattr(time, "time", lambda: 4e9)

    assert here.take("x") is None
    assert here.take("x") is None


def test_a_file_that_is_no_lease_is_waited_for_and_taken_over(folder):
    clock = Clock()
    leases = Leases(folder, clock=clock)
    leases.take("x").release()
    path = leases.path("x", leases.top("x") + 1)
    for junk in (b"", b"{", b"[]", b'{"pid":"x"}', b"\xff" * 5000):
        path = leases.path("x", leases.top("x") + 1)
        with open(path, "wb") as file:
            file.write(junk)
        assert leases.take("x") is None
        clock.now += 61
        lease = leases.take("x")
        assert lease is not None
        lease.release()


def test_a_process_is_more_than_its_number():
    assert alive(os.getpid(), started(os.getpid()))
    assert alive(os.getpid(), "")
    if started(os.getpid()):
        assert not alive(os.getpid(), "1")


def test_leases_nobody_holds_are_swept(folder):
    leases = Leases(folder)
    leases.take("a").release()
    kept = leases.take("b")

    assert leases.sweep() == 1
    assert kept.held()
    assert leases.take("a") is not None


def test_nobody_shares_it_whoever_races(folder, record_property):
    """Threads take, hold a while, release; each as a host of its own."""
    busy, taken, problems = [], [0], []

    def work(number: int) -> None:
        leases, rng = Leases(folder, hostname=f"host{number}"), random.Random(number)
        while taken[0] < count(sample=60, soak=2000):
            lease = leases.take("x", seconds=1000)
            if lease is None:
                time.sleep(rng.random() * 0.002)
                continue
            busy.append(number)
            if len(busy) > 1:
                problems.append(list(busy))
            time.sleep(rng.random() * 0.001)
            taken[0] += 1
            busy.remove(number)
            lease.release()
            time.sleep(rng.random() * 0.001)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record_property("taken", taken[0])

    assert problems == []
