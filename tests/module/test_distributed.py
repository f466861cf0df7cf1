"""Two ranks on one machine: data parallel and sharded models train and decode as one model does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from tests.module.models import emitted, numbers
from weft.codegen.package.disk import load

RANKS = 2


class Run:
    """A rank's share of a batch, and what one model makes of the whole."""

    def __init__(self, rank: int, package: Any) -> None:
        self.rank, self.package = rank, package
        self.one = package.Model()
        self.tokens, self.targets = numbers(4, 6), numbers(4, 6, seed=3)
        self.one(self.tokens, self.targets).loss.backward()

    def own(self, x: Tensor) -> Tensor:
        return x.chunk(RANKS)[self.rank]

    def trains(self, module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        module.zero_grad()
        module(self.own(self.tokens), self.own(self.targets)).loss.backward()
        for name, p in self.one.named_parameters():
            found: Any = parameters[name].grad
            assert torch.allclose(whole(found), whole(p.grad), atol=1e-6), name


def whole(x: Any) -> Tensor:
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def data_parallel(run: Run) -> None:
    module = run.package.Model()
    run.trains(DistributedDataParallel(module), dict(module.named_parameters()))


def sharded(run: Run, mesh: DeviceMesh) -> None:
    """Made on meta, sharded by layers, then drawn; the tied table is one group with the head that reads it."""
    module = run.package.Model(device="meta")
    for layer in module.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard([module.embed, module.head_block], mesh=mesh, reshard_after_forward=False)
    fully_shard(module, mesh=mesh)
    module.to_empty(device="cpu")
    module.reset_parameters()
    for name, p in module.named_parameters():
        assert torch.equal(whole(p), run.one.get_parameter(name)), name
    run.trains(module, dict(module.named_parameters()))
    decodes(run, module)
    state = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True))
    if run.rank == 0:
        run.package.Model().load_state_dict(state)
    torch.optim.AdamW(module.parameters()).step()


def decodes(run: Run, module: Any) -> None:
    for part in (module, *module.layers, module.embed, module.head_block):
        register_fsdp_forward_method(part, "prefill")
        register_fsdp_forward_method(part, "step")
    got, want = [run.own(run.tokens)], [run.own(run.tokens)]
    for model, found in ((module, got), (run.one, want)):
        out, state = model.prefill(found.pop())
        found += [out.logits, model.step(out.logits[:, -1].argmax(-1), state)[0].logits]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, want))


def sharded_with_its_root(run: Run, mesh: DeviceMesh) -> None:
    """Layers alone: the rest, the tied table among it, is the root's."""
    module = run.package.Model()
    for layer in module.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    run.trains(module, dict(module.named_parameters()))


def rank(number: int, folder: str, meeting: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=RANKS)
    run, mesh = Run(number, load(folder)), init_device_mesh("cpu", (RANKS,))
    data_parallel(run)
    sharded(run, mesh)
    sharded_with_its_root(run, mesh)
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.filterwarnings("ignore")
def test_two_ranks_do_what_one_process_does(tmp_path):
    folder = str(Path(emitted("gpt").__file__).parent)
    mp.spawn(rank, (folder, str(tmp_path / "meeting")), nprocs=RANKS)
