"""Folders with a config and weights, written without transformers: what a family's table says, drawn or damaged."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.hf.record import RECORDED
from weft.api_hf import tensors_of
from weft.frontends.hf.imported import import_values

GPT2: dict[str, Any] = RECORDED["gpt2"]["config"] | {"n_layer": 1}


def weights(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Every tensor of a model, drawn."""
    generator = torch.Generator().manual_seed(0)
    wanted = tensors_of(import_values(config))
    return {name: torch.randn(t.shape, generator=generator).to(dtype) * 0.1 for name, t in wanted.items()}


def written(folder: Path, config: dict[str, Any], *shards: dict[str, torch.Tensor]) -> Path:
    """A folder of these shards."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors")
        return folder
    index = {name: f"model-{i}.safetensors" for i, shard in enumerate(shards) for name in shard}
    for i, shard in enumerate(shards):
        save_file(shard, folder / f"model-{i}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder
