"""The shipped SRU++ cell, a formula in its spec, against numbers recorded from SRU 3.0.0-dev with alpha not 0."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity import mapping
from tests.parity.oracle import built, compare, spec_of
from tests.parity.recipe import tokens, uniform
from weft.frontends.schema import Model

RECORDS = json.loads((Path(__file__).parent / "sru_pp_recorded.json").read_text())["records"]


def model(case: dict[str, int]) -> Model:
    """The shipped spec at the recorded sizes; attention in every layer, or in every second."""
    spec = spec_of("sru_pp_enwik8")
    spec["dims"] |= {n: case[n] for n in ("batch", "seq", "width", "rank", "heads", "vocab")}
    cell = spec["blocks"]["cell"]
    spec["blocks"]["plain"] = cell | {"projection": {"rank": "rank", "pattern": "none"}}
    cycle = [["plain"]] * (case["every"] - 1) + [["cell"]]
    return Model.model_validate(spec | {"stack": [{"repeat": case["layers"] // case["every"], "cycle": cycle}]})


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: f"heads{r['case']['heads']}-every{r['case']['every']}")
def test_sru(record: dict[str, Any]) -> None:
    case, shapes = record["case"], {n: tuple(s) for n, s in record["shapes"].items()}
    shift = {n: 1.0 if n.endswith("layer_norm.weight") else 0.0 for n in shapes}
    theirs = {n: torch.from_numpy(uniform(n, s, 0.5)) + shift[n] for n, s in shapes.items()}
    assert all(theirs[n].abs().min() > 1e-3 for n in theirs if n.endswith("alpha"))
    where = (case["batch"], case["seq"])
    inputs = {n: torch.from_numpy(tokens(n, where, case["vocab"])) for n in ("tokens", "targets")}
    exact = lambda values, shape=(): torch.tensor(values, dtype=torch.float64).reshape(shape)  # noqa: E731
    want = {"loss": exact(record["loss"]), "logits": exact(record["logits"], (*where, case["vocab"]))}
    grads = {n: exact(g, shapes[n]) for n, g in record["gradients"].items()}
    compare(built(model(case)), mapping.SRU, theirs, inputs, want, grads)
