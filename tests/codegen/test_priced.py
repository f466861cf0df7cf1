"""What is priced is what is emitted: launches and bytes of a training step, as planned and as the package runs."""

from collections import Counter
from typing import Any

import pytest
import torch

from benchmarks import priced
from benchmarks.priced import NAMES, Step, step
from tests.campaign import some
from weft.codegen.launched import Cost, cost

NEAR = 0.1


def within(found: Step, share: float = NEAR) -> bool:
    """Are the planned numbers within a share of those that ran?"""
    said, ran = found.planned, found.emitted
    return (
        abs(said.launches - ran.launches) <= share * ran.launches and abs(said.bytes - ran.bytes) <= share * ran.bytes
    )


@pytest.mark.parametrize("name", some(NAMES, 3))
def test_the_torch_path_runs_what_its_plan_says(name: str):
    found = step(name, "torch")
    assert within(found), found.text()


def test_a_region_that_is_not_priced_is_found(monkeypatch: pytest.MonkeyPatch):
    """The claim can fail: without the regions of one block it does."""
    plain = priced.totals

    def less(planned: Any) -> Any:
        said = plain(planned)
        most = max((r for b in planned.blocks for r in b.forward.fusion.regions), key=lambda r: r.launches)
        said["forward"]["launches"] -= 2 * most.launches
        return said

    monkeypatch.setattr(priced, "totals", less)
    assert not within(step("switch_base", "torch"))


def test_costs_of_operators():
    x, table = torch.zeros(4, 8), torch.zeros(100, 8)
    seen: dict[str, Cost] = {}

    class Seen(priced.Launches):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            seen[func._schema.name.removeprefix("aten::")] = cost(func, (*args, *(kwargs or {}).values()), out)
            return out

    with Seen(lambda found: None):
        x.view(8, 4)
        torch.empty(7)
        x + x.sum(0)
        torch.nn.functional.embedding(torch.tensor([1, 2]), table)
        x.add_(1.0)
        table.index_add_(0, torch.tensor([3]), torch.ones(1, 8))
        x[:, :1].expand(4, 8).exp()
    assert seen["view"] == seen["empty"] == Cost()
    assert seen["sum"] == Cost(1, 4 * (32 + 8))
    assert seen["add"] == Cost(1, 4 * (32 + 8 + 32))
    assert seen["embedding"] == Cost(1, 4 * (16 + 16) + 16)
    assert seen["add_"] == Cost(1, 4 * (32 + 32))
    assert seen["index_add_"] == Cost(1, 4 * (8 + 8 + 8) + 8)
    assert seen["exp"] == Cost(1, 4 * (4 + 32))


def test_operators_are_named():
    watch = Counter[str]()
    found = step("switch_base", "torch", watch)
    assert sum(n for name, n in watch.items() if not name.endswith(" bytes")) == found.emitted.launches
    assert sum(n for name, n in watch.items() if name.endswith(" bytes")) == found.emitted.bytes
