"""docs/models.md: every family has its row, and the tutorial runs."""

import re
from pathlib import Path

import pytest
import torch

from tests.hf.folders import GPT2, weights, written
from weft import api
from weft.frontends.hf.config.options import COMMON
from weft.frontends.hf.families import FAMILIES

TEXT = (Path(__file__).parents[2] / "docs" / "models.md").read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_row(family):
    row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{family}` |"))
    made = FAMILIES[family]

    assert set(re.findall(r"`(\w+)`", row)) == {
        family,
        *made.architectures,
        *(key for key, option in made.options.items() if option.fixed and key not in COMMON),
    }
    logits, gradients = (tuple(map(float, cell.split(","))) for cell in row.split("|")[3:5])
    assert all(single <= 1e-5 and double <= 1e-10 for single, double in (logits, gradients))


def test_the_tutorial_runs(tmp_path):
    """What it trains moves, nothing else does, and the folder it writes is read again."""
    section = TEXT.partition("## From a folder to a folder")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    folder = written(tmp_path / "in", GPT2, weights(GPT2))
    tokens = torch.randint(0, 96, (2, 24), generator=torch.Generator().manual_seed(0))
    names = {"folder": folder, "other": tmp_path / "out", "tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    torch.manual_seed(0)
    exec(compile(code, "docs/models.md", "exec"), names)

    before, after = (api.load_hf(tmp_path / name, train=False).state_dict() for name in ("in", "out"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"layers.0.attention.query.weight", "layers.0.attention.value.weight"}
    assert len(names["text"]) == 16
    assert all(t.shape == (2,) for t in names["text"])
