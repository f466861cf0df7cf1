"""A seeded sample of the sweep; `make soak` runs its full count."""

from collections.abc import Callable
from functools import cache
from itertools import islice

import pytest

from tests.campaign import SOAK, count
from tests.sweep.campaign import drawn, looked_beside
from tests.sweep.compare import covered, faults_of
from tests.sweep.coverage import every_key, pairs
from tests.sweep.draw import Spec
from tests.sweep.shrink import paths, shrunk, without

CASES = count(sample=100, soak=3_000)
TRIED = 100
"""Specs drawn for each that is run: a sample this small takes much choice to cover the language."""
KERNELS = count(sample=50, soak=4)
"""Of so many cases one with its kernels."""
AT_ONCE = 5


@cache
def specs() -> list[Spec]:
    return [spec for spec, _ in islice(drawn("3", tried=TRIED), CASES)]


@pytest.mark.parametrize("first", range(0, CASES, AT_ONCE))
def test_drawn_specs(first: int):
    cases = range(first, min(first + AT_ONCE, CASES))
    found = {i: faults_of(specs()[i], i % KERNELS == 0, looked_beside(i), whole=SOAK) for i in cases}
    assert {i: list(map(str, faults)) for i, faults in found.items() if faults} == {}


def test_the_sample_covers_the_language(record_property: Callable[[str, object], None]):
    each = [covered(spec) for spec in specs()]
    keys, together = set[str]().union(*each), set().union(*map(pairs, each))
    record_property("keys", f"{len(keys)} of {len(every_key())}")
    record_property("pairs of keys", f"{len(together)} of {len(pairs(every_key()))}")

    assert every_key() - keys == set()
    assert len(together) >= 0.82 * len(pairs(every_key()))


def test_a_fault_is_shrunk_to_what_it_needs():
    spec = {
        "weft": 1,
        "dims": {"seq": 8, "a": 1},
        "blocks": {"x": {"kind": "mlp", "gated": True}},
        "stack": [[1, 2], [3]],
    }
    assert shrunk(spec, lambda s: 3 in (s.get("stack") or [[]])[-1]) == {"weft": 1, "dims": {"seq": 8}, "stack": [[3]]}
    assert all(without(spec, path) is not None for path in paths(spec))
    assert without(spec, ("blocks", "y")) is None
