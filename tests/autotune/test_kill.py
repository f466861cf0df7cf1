"""A tuner that is killed at any instant loses the running trial at most, repeats none, and ends at the same answer."""

import multiprocessing
import os
import random
import signal
import time

import pytest

from tests.autotune.synthetic import Synthetic, landscape
from tests.campaign import count
from weft.autotune.budget import Budget
from weft.autotune.search.kernel import Search
from weft.autotune.search.result import Options
from weft.autotune.search.rows import StoreJournal
from weft.autotune.types import Level, Source, config_id
from weft.cache.key import Device, Key
from weft.cache.store import Store

KILLS = count(sample=12, soak=200)
TRIALS = 40
KEY = Key("made up", "0" * 32, Device("sm_90", "none"))


class Noted:
    """A runner that notes on disk which configuration it begins, in one write, before it times it."""

    def __init__(self, inner, path):
        self.inner = inner
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def time(self, config, fidelity):
        if fidelity.level is Level.LAUNCH:
            os.write(self.fd, f"{config_id(config)}\n".encode())
            time.sleep(0.002)
        return self.inner.time(config, fidelity)

    def close(self):
        os.close(self.fd)


def tune(folder, seed, acknowledged):
    """One whole run in this process, going on from what is there."""

    class Acknowledging(StoreJournal):
        def append(self, row):
            kept = super().append(row)
            if kept and row.src is Source.TUNE:
                os.write(acknowledged, f"{row.cfg_id}\n".encode())
            return kept

    made = Synthetic(landscape(seed), faults=0.1, seed=seed)
    runner = Noted(made, folder / "begun")
    with Store(folder / "store") as store:
        journal, budget = Acknowledging(store, KEY), Budget(trials=TRIALS, clock=made.clock)
        return Search(made.subject(), [runner], budget, journal, Options(seed=seed, resume=True)).run().winner


def child(folder, seed):
    fd = os.open(folder / "acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    tune(folder, seed, fd)
    os._exit(0)


def lines(path):
    return path.read_text().split() if path.exists() else []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_kills_lose_the_running_trial_at_most_and_change_nothing(tmp_path, record_property):
    # Forked, so that a run costs no imports: what is killed is the search, not the interpreter's start.
    context = multiprocessing.get_context("fork")
    rng, kills, runs = random.Random(0), 0, 0
    while kills < KILLS:
        seed, folder = runs, tmp_path / str(runs)
        folder.mkdir()
        runs += 1
        died = 0
        for _ in range(4):
            worker = context.Process(target=child, args=(folder, seed))
            worker.start()
            worker.join(rng.uniform(0.01, 0.25))
            if worker.is_alive():
                os.kill(worker.pid, signal.SIGKILL)
                died += 1
            worker.join()
        kills += died
        winner = tune(folder, seed, os.open(os.devnull, os.O_WRONLY))
        begun, kept = lines(folder / "begun"), lines(folder / "acknowledged")
        with Store(folder / "store") as store:
            rows = [row.cfg_id for row in store.rows(KEY) if row.src is Source.TUNE]
        assert set(kept) <= set(rows), "an acknowledged trial was lost"
        assert len(rows) == len(set(rows)) == TRIALS
        assert len(begun) - len(set(begun)) <= died, "more than the running trial was timed again"
        clean = tmp_path / f"clean{seed}"
        clean.mkdir()
        assert tune(clean, seed, os.open(os.devnull, os.O_WRONLY)) == winner
    record_property("kills", kills)
    record_property("runs", runs)
