"""A row: typed, checked, and the same after a trip through text."""

import json
import random

import pytest

from tests.cache.examples import CONFIGS, good, sample
from weft.cache.row import Row, RowInvalid, Status, config_id, lower_median


def test_rows_come_back_from_their_text():
    rng = random.Random(1)
    for _ in range(200):
        row = sample(rng)
        assert Row.parse(json.loads(row.text)) == row
        assert Row.parse(json.loads(row.text)).text == row.text


def test_the_statuses_are_these():
    assert {s.value for s in Status} == {
        "ok", "static", "compile", "timeout", "launch", "wrong", "non_finite", "crash", "oom", "slow", "invalid_time",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("v", 2), ("v", True), ("v", "1"), ("cfg", []), ("cfg", {"a": [1]}), ("cfg", {"a": {"b": 1}}),
        ("cfg", {"a": float("nan")}), ("cfg", {"a": 10**30}), ("cfg", {"a": "x" * 200}), ("cfg", {"a\x1b": 1}),
        ("cfg", {"": 1}), ("cfg", {str(i): i for i in range(100)}), ("status", "fine"), ("status", ["ok"]),
        ("times_us", [0.0]), ("times_us", [-1.0]), ("times_us", [float("inf")]), ("times_us", ["1"]),
        ("times_us", [True]), ("times_us", 3.0), ("times_us", [1.0] * 5000), ("compile_s", -1), ("compile_s", "1"),
        ("shared", 1.5), ("shared", True), ("regs", -1), ("reason", 3), ("reason", "a\nb"), ("soft", "../x"),
        ("cubin", "G" * 64), ("src", "magic"), ("round", -1), ("t", float("nan")), ("features", {"f": None, "g": []}),
        ("shell", "rm"),
    ],
)  # fmt: skip
def test_what_is_not_a_row_is_refused(field, value):
    data = good(CONFIGS[0]).data() | {field: value}

    with pytest.raises(RowInvalid):
        Row.parse(data)


@pytest.mark.parametrize("data", [None, 3, "row", [], {}, {"v": 1}, {"v": 1, "status": "ok"}])
def test_what_has_not_the_form_of_a_row_is_refused(data):
    with pytest.raises(RowInvalid):
        Row.parse(data)


def test_a_reason_is_one_line_that_steers_no_terminal():
    row = Row.of({"a": 1}, "crash", reason="first\nsecond \x1b[31mred" + "x" * 1000)

    assert row.reason.startswith("first second  [31mred")
    assert len(row.reason) == 500


def test_a_config_is_what_it_is_made_of():
    assert config_id({"a": 1, "b": 2}) == config_id({"b": 2, "a": 1})
    assert len({config_id({"a": v}) for v in (1, 1.0, True, "1", None)}) == 5


def test_the_stored_id_of_a_config_is_not_believed():
    data = good(CONFIGS[0]).data() | {"cfg_id": good(CONFIGS[1]).cfg_id}

    assert Row.parse(data).cfg_id == good(CONFIGS[0]).cfg_id


def test_the_median_is_one_of_the_samples():
    assert lower_median([3, 1, 2]) == 2
    assert lower_median([4, 1, 2, 3]) == 2
