"""docs/cells.md: the cell that it writes runs, and gives what the loop beside it gives."""

import re
from pathlib import Path
from typing import Any

import torch

TEXT = (Path(__file__).parents[2] / "docs" / "cells.md").read_text()


def test_the_tutorial_runs(tmp_path: Path):
    spec, code = (re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL)[0] for kind in ("yaml", "python"))
    path = tmp_path / "minimal.yaml"
    path.write_text(spec)
    names: dict[str, Any] = {"path": path}
    exec(compile(code, "docs/cells.md", "exec"), names)

    logits, expected, parameters = names["logits"], names["expected"], list(names["module"].parameters())
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(torch.stack(names["steps"], 1), logits[:, 5:], rtol=1e-10, atol=1e-10)
    seed = torch.randn(logits.shape, dtype=logits.dtype, generator=torch.Generator().manual_seed(0))
    for a, b in zip(*(torch.autograd.grad((y * seed).sum(), parameters) for y in (logits, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
