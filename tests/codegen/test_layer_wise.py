"""LAMB and LARS by formulas: equal to their algorithms written out; groups; what fusing or sharding must not change."""

import os
import tempfile

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.tensor import Shard, distribute_tensor

import weft
from tests.campaign import SOAK
from weft.codegen.optimizers import RULES
from weft.errors import UsageError
from weft.passes.optimizer import OPTIMIZERS

LR, BETAS, EPS, DECAY = 0.01, (0.9, 0.99), 1e-6, 0.1


def lamb(x: Tensor, grads: list[Tensor], trust: bool = True) -> Tensor:
    m = v = torch.zeros_like(x)
    for t, g in enumerate(grads, 1):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        r = (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + EPS) + DECAY * x
        x = x - LR * (x.norm() / r.norm() if trust else 1) * r
    return x


def lars(x: Tensor, grads: list[Tensor], trust: bool = True) -> Tensor:
    m = torch.zeros_like(x)
    for g in grads:
        m = 0.9 * m + 0.1 * (g + DECAY * x)
        x = x - LR * (x.norm() / m.norm() if trust else 1) * m
    return x


def drawn(*shape: int, count: int = 5) -> list[Tensor]:
    draw = torch.Generator().manual_seed(len(shape))
    return [torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(count)]


def stepped(rule: str, x: Tensor, grads: list[Tensor], **more: object) -> Tensor:
    p = nn.Parameter(x.clone())
    optimizer = weft.optimizer(rule, [{"params": [p], **more}], LR, BETAS, EPS, DECAY)
    for g in grads:
        p.grad = g.clone()
        optimizer.step()
    return p.detach()


@pytest.mark.parametrize("trust", [True, False])
@pytest.mark.parametrize(("rule", "plainly"), [("lamb", lamb), ("lars", lars)])
def test_steps_are_the_algorithm_s(rule: str, plainly: object, trust: bool):
    x, *grads = drawn(3, 4)
    torch.testing.assert_close(stepped(rule, x, grads, trust=trust), plainly(x, grads, trust), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_a_parameter_of_zeros_moves(rule: str):
    """Its ratio would be 0 for ever."""
    x, g = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    assert stepped(rule, x, [g]).abs().min() > 0
    assert not stepped(rule, x, [torch.zeros_like(g)]).any()


def test_the_memory_plan_knows_each():
    assert all(len(rule.moments) == OPTIMIZERS[name].states for name, rule in RULES.items())


def test_the_parameters_of_a_module_are_logical():
    """Queries, keys and values have a ratio each, though a package may multiply them as one; a saved state goes on."""
    spec = {
        "name": "tiny", "dims": {"batch": 2, "seq": 8, "width": 8, "heads": 2, "head": 4, "inner": 8, "vocab": 7},
        "stack": [{"layer": [{"block": {"kind": "attention", "pattern": "causal"}}]}],
    }  # fmt: skip
    module = weft.compile(spec).double()
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    tokens = torch.arange(16).view(2, 8) % 7
    optimizer = weft.optimizer("lamb", module.parameters(), LR, BETAS, EPS, DECAY)
    module(tokens, tokens).loss.backward()
    grads = {name: p.grad.clone() for name, p in module.named_parameters()}
    optimizer.step()
    for name, p in module.named_parameters():
        want = lamb(start[name], [grads[name]], trust=bool(start[name].any()))
        torch.testing.assert_close(p.detach(), want, rtol=1e-10, atol=1e-10)
    again = weft.optimizer("lamb", module.parameters(), LR, BETAS, EPS, DECAY)
    again.load_state_dict(optimizer.state_dict())
    assert again.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()


def test_what_is_refused():
    with pytest.raises(UsageError, match="no optimizer is called 'adamw'; known: lamb, lars"):
        weft.optimizer("adamw", [nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match="each of betas"):
        weft.optimizer("lamb", [nn.Parameter(torch.ones(1))], betas=(0.9, 1.0))


def _rank(rank: int, file: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2)
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    x, *grads = drawn(4, 3)
    shard = [Shard(0)]
    p = nn.Parameter(distribute_tensor(x, mesh, shard))
    optimizer = weft.optimizer("lamb", [p], LR, BETAS, EPS, DECAY)
    for g in grads:
        p.grad = distribute_tensor(g, mesh, shard)
        optimizer.step()
    torch.testing.assert_close(p.full_tensor().detach(), lamb(x, grads), rtol=1e-12, atol=1e-12)
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not SOAK, reason="two processes: part of the soak")
def test_a_sharded_parameter_has_the_ratio_of_the_whole():
    with tempfile.TemporaryDirectory() as home:
        mp.spawn(_rank, (os.path.join(home, "store"),), nprocs=2)
