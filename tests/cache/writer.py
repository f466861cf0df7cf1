"""A process that appends rows and says which were acknowledged: `python -m tests.cache.writer ROOT SEED COUNT`."""

import os
import sys

from tests.cache.examples import CONFIGS, KEY, SOFT, good
from weft.cache.store import Store


def main(root: str, seed: str, count: str) -> None:
    store = Store(root)
    for i in range(int(count)):
        row = good(CONFIGS[i % len(CONFIGS)], 10 + i % 50, regs=i % 256, features={"writer": int(seed), "i": i})
        if store.append(KEY, row, SOFT):
            os.write(1, b"%d\n" % i)
    store.close()
    os.write(1, b"done\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
