"""Predicted bytes against those of a real run: the same counter on meta and on real tensors, for whole models."""

import pytest
import torch

from tests.campaign import count
from tests.codegen.emission import planned
from weft.codegen.build import files_of, module_of, temporary
from weft.codegen.profile import LiveBytes
from weft.errors import InfeasibleError


def test_counts_storages_not_views():
    x = torch.empty(100)
    with LiveBytes([x]) as live:
        y = x + 1
        z = y.view(10, 10)[:5]
        assert (live.now, live.most) == (400, 400)
        del y
        assert live.now == 400
        del z
        assert (live.now, live.most) == (0, 400)
        w = x[:50]
        assert live.now == 0
        w = w * 2
        live.restart()
        assert live.most == 200


def measured(plan) -> int:
    """Peak live bytes of one training step of the emitted module, parameters and inputs included."""
    model = module_of(temporary(files_of(plan)))
    given = {}
    for name in plan.program.inputs:
        v = plan.program.input(name)
        shape = [plan.sizes[d] for d in v.dims]
        given[name] = torch.ones(shape, dtype=torch.bool) if v.dtype == "bool" else torch.randint(0, 2, shape)
    held = [*model.parameters(), *given.values()]
    with LiveBytes(held) as live:
        out = model(**given)
        out[0].backward()
    return live.most + sum(x.untyped_storage().nbytes() for x in held)


CASES = ["gpt2_345m", "sparse_transformer_enwik8", "switch_base", "sru_pp_enwik8"]


@pytest.mark.parametrize("name", CASES)
def test_the_predicted_peak_is_the_measured_one(name):
    budgets = count(sample=3, soak=12)
    free = planned(name, True, None, "batch=4")
    span = free.peak - free.smallest
    last = None
    for i in range(budgets + 1):
        budget = free.smallest + span * i // budgets
        plan = planned(name, True, budget, "batch=4")
        real = measured(plan)

        assert plan.peak <= budget
        assert real <= plan.peak <= 1.03 * real
        assert last is None or plan.peak >= last
        last = plan.peak
    with pytest.raises(InfeasibleError) as error:
        planned(name, True, free.smallest - 1, "batch=4")
    assert error.value.smallest == free.smallest


def test_modes_trade_bytes_for_time():
    plan = planned("gpt2_345m")
    layer = next(b for b in plan.blocks if b.name == "layer")
    saved = [m.saved for m in layer.profile.modes]

    assert len(saved) >= 3
    assert saved == sorted(saved, reverse=True)
    assert [m.time for m in layer.profile.modes] == sorted(m.time for m in layer.profile.modes)
