"""docs/systems.md names what is there: specs, blocks, files of tests; and every shipped spec and block."""

import re
from pathlib import Path

from benchmarks.specs import EVERY

TEXT = Path("docs/systems.md").read_text()
ROWS = [line.split(" | ") for line in TEXT.splitlines() if line.startswith("| ") and "---" not in line]


def test_every_spec_and_block_is_named_and_is_there() -> None:
    said = {name for row in ROWS for name in re.findall(r"`(\w+)`", row[1])}

    assert said == {*EVERY, *(path.stem for path in Path("examples/blocks").glob("*.yaml"))}


def test_what_a_system_is_compared_with_is_there() -> None:
    files = re.findall(r"`(tests/[\w/]+\.py)`", TEXT)

    assert [f for f in files if not Path(f).exists()] == []
    there = [row for row in ROWS if row[1] not in ("said by", "not yet")]
    assert [row[0] for row in there if "tests/" not in row[2]] == []
