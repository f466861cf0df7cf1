"""Experts in four bits: read as the numbers they stand for, as transformers has them, and written as those."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hf.folders import weights, written
from tests.hf.record import RECORDED
from weft import api
from weft.frontends.hf.tensors.matching import CheckpointError
from weft.frontends.hf.tensors.mxfp4 import unpacked

QUANTISED = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
CONFIG: dict[str, Any] = RECORDED["gpt_oss"]["config"] | {"intermediate_size": 64, "num_hidden_layers": 1} | QUANTISED
CONFIG["layer_types"] = CONFIG["layer_types"][:1]
EXPERTS = "model.layers.0.mlp.experts."


def drawn(*rows: int, scales: tuple[int, int] = (120, 130)) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks and scales of tensors [.., 64, rows]."""
    generator = torch.Generator().manual_seed(sum(rows))
    blocks = torch.randint(0, 256, (*rows, 2, 16), generator=generator, dtype=torch.uint8)
    return blocks, torch.randint(*scales, (*rows, 2), generator=generator, dtype=torch.uint8)


def packed(folder: Path, change: Any = None) -> dict[str, torch.Tensor]:
    """A folder with both experts' matrices in four bits, in two shards; gives its tensors."""
    held = weights(CONFIG, torch.bfloat16)
    for name, rows in (("gate_up_proj", 128), ("down_proj", 64)):
        del held[EXPERTS + name]
        blocks, scales = drawn(CONFIG["num_local_experts"], rows)
        held |= {f"{EXPERTS}{name}_blocks": blocks, f"{EXPERTS}{name}_scales": scales}
    if change:
        change(held)
    names = sorted(held)
    written(folder, CONFIG, {n: held[n] for n in names[::2]}, {n: held[n] for n in names[1::2]})
    return held


def test_numbers_are_those_of_transformers():
    """Bit for bit, at every exponent that is one."""
    theirs = pytest.importorskip("transformers.integrations.mxfp4")
    blocks, _ = drawn(3, 85)
    scales = torch.arange(255, dtype=torch.uint8).reshape(3, 85)[..., None].repeat(1, 1, 2)
    want = theirs.convert_moe_packed_tensors(blocks, scales)
    assert torch.equal(unpacked(blocks, scales).view(torch.int16), want.view(torch.int16))


def test_a_folder_in_four_bits_and_back(tmp_path):
    held = packed(tmp_path / "in")
    module = api.load_hf(tmp_path / "in", train=False)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    got = module.state_dict()
    both = unpacked(held[f"{EXPERTS}gate_up_proj_blocks"], held[f"{EXPERTS}gate_up_proj_scales"])
    assert torch.equal(got["layers.0.experts.gate.weight"], both[..., ::2])
    assert torch.equal(got["layers.0.experts.up.weight"], both[..., 1::2])
    down = unpacked(held[f"{EXPERTS}down_proj_blocks"], held[f"{EXPERTS}down_proj_scales"])
    assert torch.equal(got["layers.0.experts.down.weight"], down)

    api.save_hf(module, tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    again = api.load_hf(tmp_path / "out", train=False).state_dict()
    assert all(torch.equal(again[n], x) for n, x in got.items())


def _short(x: dict[str, torch.Tensor]) -> None:
    x[f"{EXPERTS}down_proj_scales"] = x[f"{EXPERTS}down_proj_scales"][:, 1:].contiguous()


def _alone(x: dict[str, torch.Tensor]) -> None:
    del x[f"{EXPERTS}down_proj_scales"]


@pytest.mark.parametrize("change", [_short, _alone])
def test_blocks_without_their_scales(change, tmp_path):
    packed(tmp_path, change)
    with pytest.raises(CheckpointError, match=r"down_proj: nothing fills layers\.0\.experts\.down\.weight") as found:
        api.load_hf(tmp_path)
    assert any("nothing of the model takes" in p and "down_proj_blocks" in p for p in found.value.problems)
