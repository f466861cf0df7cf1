"""A tuner as a process of its own, on a store or a storage that others share, with a made-up GPU.

    python -m tests.autotune.tuner ROOT SEED STAGES SECONDS [URL]

Says `begun ID` before it times a configuration and `kept ID` once its row is acknowledged, each in one write.
"""

import os
import sys
import time

from tests.autotune.synthetic import Synthetic, landscape
from weft.autotune.budget import Budget
from weft.autotune.search.claims import Claims
from weft.autotune.search.kernel import Search
from weft.autotune.search.result import Options
from weft.autotune.search.rows import StoreJournal
from weft.autotune.types import Level, Source, config_id
from weft.cache.key import Device, Key, Soft
from weft.cache.lease import Leases
from weft.cache.store import Store

KEY, SOFT = Key("made up", "0" * 32, Device("sm_90", "none")), Soft()


def land(stages):
    """A landscape of 400 configurations times `stages`; of 48 for 0."""
    knobs = {"BM": (16, 32, 64, 128, 256), "BN": (16, 32, 64, 128, 256), "BK": (16, 32, 64, 128), "warps": (1, 2, 4, 8)}
    few = {"BM": (64, 128), "BN": (64, 128), "BK": (32, 64), "warps": (4, 8), "stages": (1, 2, 3)}
    return landscape(5, knobs | {"stages": tuple(range(1, stages + 1))} if stages else few)


def say(word, name):
    os.write(1, f"{word} {name}\n".encode())


class Said(StoreJournal):
    def append(self, row):
        kept = super().append(row)
        if kept and row.src is Source.TUNE:
            say("kept", row.cfg_id)
        return kept


class Slow:
    """Takes a while, so that others meet it."""

    def __init__(self, inner, seconds):
        self.inner, self.seconds = inner, seconds

    def time(self, config, fidelity):
        if fidelity.level is Level.LAUNCH:
            say("begun", config_id(config))
            time.sleep(self.seconds)
        return self.inner.time(config, fidelity)

    def close(self):
        self.inner.close()


def main(root, seed, stages, seconds, url=""):
    made = Synthetic(land(int(stages)), faults=0.1, seed=5)
    with Store(root) as store:
        journal = Said(store, KEY, SOFT)
        if url:
            from weft.autotune.search.shared_study import SharedStudy  # optuna, which tuners on a store do without

            knobs = {name: sorted({c[name] for c in made.land.configs}) for name in made.land.configs[0]}
            journal = shared = SharedStudy(journal, url, knobs, seconds=5.0)
        else:
            shared = Claims(journal, Leases(f"{store.top}/leases"), KEY.id, seconds=5.0)
        options = Options(seed=int(seed), sampler="random", claim=shared.take, release=shared.release)
        with shared:
            found = Search(made.subject(), [Slow(made, float(seconds))], Budget(), journal, options).run()
    say("done", f"{len(found.trials)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
