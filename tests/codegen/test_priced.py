"""What is priced is what is emitted: launches and bytes of a training step, as planned and as the package runs."""

import sys
from collections import Counter
from typing import Any

import pytest
import torch

from benchmarks import priced
from benchmarks.priced import ROUTES, SPECS, Step, step
from tests.campaign import SHIPPED, some
from weft import api
from weft.codegen.measure.launched import Cost, cost

NEAR = 0.1


def within(found: Step, share: float = NEAR) -> bool:
    """Are the planned numbers within a share of those that ran?"""
    said, ran = found.planned, found.emitted
    return (
        abs(said.launches - ran.launches) <= share * ran.launches and abs(said.bytes - ran.bytes) <= share * ran.bytes
    )


@pytest.mark.parametrize(("name", "route"), some([(name, route) for name in SHIPPED for route in ROUTES], 3))
def test_a_step_launches_and_moves_what_its_plan_says(name: str, route: str):
    found = step(name, route)
    assert within(found), found.text()


@pytest.mark.parametrize("route", ROUTES)
def test_a_block_that_is_not_priced_is_found(route: str, monkeypatch: pytest.MonkeyPatch):
    """The claim can fail: with one backward as fusion prices it, one kernel a region, it does."""
    plain = priced.totals

    def closed(planned: Any) -> Any:
        said = plain(planned)
        block = max(planned.settled, key=lambda b: b.calls)
        regions = next(iter(block.backward.values())).fusion.regions
        said["backward"]["launches"] -= block.calls * sum(r.launches - 1 for r in regions)
        return said

    monkeypatch.setattr(priced, "totals", closed)
    assert not within(step("bert_base", route))


def test_kernels_are_launched_without_triton():
    """What stands in for triton leaves the real one, and nothing of its own, in the process."""
    before = {name for name in sys.modules if name.startswith(("triton", "weft_stand_in"))}
    found = api.planned(api.open_spec(SPECS / "mistral_7b.yaml", (), True), target="sm_90")
    launches = [r.launches for b in found.settled for h in b.halves for r in h.fusion.regions]
    assert max(launches) > 1
    assert {name for name in sys.modules if name.startswith(("triton", "weft_stand_in"))} == before


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
