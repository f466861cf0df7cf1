"""The table of planted faults fits the source, and one of them is found."""

import pytest

from tests.sweep.mended import FAULTS
from tests.sweep.planted import ROOT, tried


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_what_a_fault_replaces_stands_once(fault):
    for edit in fault.edits:
        assert (ROOT / "weft" / edit.file).read_text().count(edit.old) == 1, edit


def test_a_planted_fault_is_found_in_its_copy_alone():
    row = tried(next(f for f in FAULTS if f.name == "choice_in_a_formula"), cases=2)

    assert row["found"], row
    assert row["fault"].startswith("check: refused: W0301")
    assert row["without_it"] == []
