"""Property tests take their examples by count: no clock judges them. Garbage is looked for seldom."""

import gc

from hypothesis import HealthCheck, settings

from tests.campaign import SOAK

# `make test` draws the same examples every time, `make soak` fresh ones; a failure prints what repeats it.
settings.register_profile(
    "weft", deadline=None, suppress_health_check=list(HealthCheck), derandomize=not SOAK, database=None, print_blob=True
)
settings.load_profile("weft")


def pytest_collection_finish():
    """What is imported and collected stays to the end, and is no garbage to look through again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def pytest_unconfigure():
    """Libraries see their last objects go, as without it."""
    gc.unfreeze()
