"""How many cases a campaign runs: a seeded sample in `make test`, the full count in `make soak`."""

import os

SOAK = os.environ.get("WEFT_SOAK") == "1"


def count(sample: int, soak: int) -> int:
    """`sample` cases by default, `soak` cases when WEFT_SOAK=1."""
    return soak if SOAK else sample
