"""Property tests take their examples by count: no clock judges them."""

from hypothesis import HealthCheck, settings

from tests.campaign import SOAK

# `make test` draws the same examples every time, `make soak` fresh ones; a failure prints what repeats it.
settings.register_profile(
    "weft", deadline=None, suppress_health_check=list(HealthCheck), derandomize=not SOAK, database=None, print_blob=True
)
settings.load_profile("weft")
