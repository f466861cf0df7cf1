"""Folders that are damaged, incomplete or hostile: told in a line, before anything is allocated; and what they cost."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hf.folders import GPT2, weights, written
from tests.hf.record import RECORDED
from weft import api
from weft.errors import BackendError, FileError, SpecError, UsageError
from weft.frontends.hf.tensors.matching import CheckpointError

C_ATTN = "transformer.h.0.attn.c_attn.weight"


@pytest.fixture
def drawn() -> dict[str, torch.Tensor]:
    return weights(GPT2)


def refused(folder: Path, kind: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled or allocated for a folder that cannot be loaded."""
    monkeypatch.setattr(api, "compile", lambda *_, **__: pytest.fail("compiled"))
    with pytest.raises(kind) as found:
        api.load_hf(folder)
    assert words in str(found.value)
    assert len(str(found.value).splitlines()) <= 1 + len(getattr(found.value, "problems", ()))


def _without(x: dict[str, torch.Tensor]) -> None:
    del x[C_ATTN]


def _more(x: dict[str, torch.Tensor]) -> None:
    x["transformer.h.0.adapter.weight"] = torch.zeros(3, 4)


def _further_layer(x: dict[str, torch.Tensor]) -> None:
    x["transformer.h.1.ln_1.weight"] = torch.zeros(32)


def _shape(x: dict[str, torch.Tensor]) -> None:
    x[C_ATTN] = x[C_ATTN].reshape(96, 32)


def _integers(x: dict[str, torch.Tensor]) -> None:
    x[C_ATTN] = x[C_ATTN].to(torch.int8)


def _apart(x: dict[str, torch.Tensor]) -> None:
    x["lm_head.weight"] = torch.zeros(7, 5)


WRONG = {
    "missing": (
        _without,
        "no tensor transformer.h.0.attn.c_attn.weight: nothing fills layers.0.attention.query.weight",
    ),
    "unknown": (_more, "nothing of the model takes transformer.h.0.adapter.weight [3, 4]"),
    "further_layer": (_further_layer, "nothing of the model takes transformer.h.1.ln_1.weight [32]"),
    "shape": (_shape, "c_attn.weight is [96, 32], and the config says [32, 96]"),
    "integers": (_integers, "c_attn.weight is I8: save the weights unquantised"),
}


@pytest.mark.parametrize("name", WRONG)
def test_tensors_that_are_not_those_of_the_config(name, drawn, tmp_path, monkeypatch):
    change, words = WRONG[name]
    change(drawn)
    refused(written(tmp_path, GPT2, drawn), CheckpointError, words, monkeypatch)


def test_everything_is_named_at_once(drawn, tmp_path):
    for change in (_more, _further_layer, _shape):
        change(drawn)
    del drawn["transformer.wpe.weight"]
    with pytest.raises(CheckpointError) as found:
        api.load_hf(written(tmp_path, GPT2, drawn))
    assert len(found.value.problems) == 4
    assert found.value.exit_code == 3


def test_a_name_that_stands_twice_is_left_over(tmp_path, monkeypatch):
    """In the spelling of old checkpoints and in today's."""
    config = RECORDED["bert"]["config"]
    drawn = weights(config)
    norm = "bert.embeddings.LayerNorm."
    both = drawn | {f"{norm}gamma": drawn[f"{norm}weight"] + 1}
    refused(written(tmp_path, config, both), CheckpointError, f"nothing of the model takes {norm}", monkeypatch)


def test_a_config_of_endless_experts_is_not_thought_through(tmp_path, monkeypatch):
    config = RECORDED["mixtral"]["config"]
    folder = written(tmp_path, config, weights(config))
    (folder / "config.json").write_text(
        json.dumps(config | {"num_local_experts": 2**31 - 1, "num_hidden_layers": 4096})
    )
    refused(folder, UsageError, "tensors, and the folder holds 41", monkeypatch)


def test_a_tied_copy_must_be_equal(drawn, tmp_path):
    same = drawn | {"lm_head.weight": drawn["transformer.wte.weight"].clone()}
    assert api.load_hf(written(tmp_path / "same", GPT2, same), train=False) is not None
    _apart(drawn)
    with pytest.raises(CheckpointError, match=r"lm_head.weight and transformer.wte.weight are tied by the config"):
        api.load_hf(written(tmp_path / "apart", GPT2, drawn), train=False)


def _index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "model.safetensors.index.json"
    data = json.loads(path.read_text())
    change(data["weight_map"])
    path.write_text(json.dumps(data))


def _cut(folder: Path) -> None:
    path = folder / "model-1.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def _pointer(folder: Path) -> None:
    (folder / "model-1.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def _long_header(folder: Path) -> None:
    path = folder / "model-1.safetensors"
    path.write_bytes((1 << 62).to_bytes(8, "little") + path.read_bytes()[8:])


SHARDS = {
    "gone": (lambda f: (f / "model-1.safetensors").unlink(), "model-1.safetensors: no such file"),
    "cut": (_cut, "model-1.safetensors: is no safetensors file, or is cut short"),
    "pointer": (_pointer, "model-1.safetensors: is a pointer of Git LFS, not the weights: `git lfs pull` brings them"),
    "header": (_long_header, "model-1.safetensors: is no safetensors file, or is cut short"),
    "outside": (
        lambda f: _index(f, lambda m: m.update({C_ATTN: "../model-1.safetensors"})),
        "which is no safetensors file of this folder",
    ),
    "absolute": (
        lambda f: _index(f, lambda m: m.update({C_ATTN: "/etc/passwd"})),
        "which is no safetensors file of this",
    ),
    "number": (lambda f: _index(f, lambda m: m.update({C_ATTN: 7})), "which is no safetensors file of this folder"),
    "lacks": (
        lambda f: _index(f, lambda m: m.update({"more": "model-1.safetensors"})),
        "has no more, which model.safetensors.index.json says it holds",
    ),
    "silent": (lambda f: _index(f, lambda m: m.pop(C_ATTN)), "of which model.safetensors.index.json says nothing"),
    "no_map": (lambda f: (f / "model.safetensors.index.json").write_text("[1]"), "is no index of safetensors"),
    "deep": (lambda f: (f / "model.safetensors.index.json").write_text("[" * 100_000), "is no index of safetensors"),
}


@pytest.mark.parametrize("name", SHARDS)
def test_a_broken_shard_is_told_with_its_file(name, drawn, tmp_path, monkeypatch):
    names = list(drawn)
    written(tmp_path, GPT2, *({n: drawn[n] for n in names[i::2]} for i in range(2)))
    damage, words = SHARDS[name]
    damage(tmp_path)
    refused(tmp_path, FileError, words, monkeypatch)


def test_a_pickle_is_not_opened(drawn, tmp_path, monkeypatch):
    written(tmp_path, GPT2, drawn)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(print))
    refused(
        tmp_path, UsageError, "a pickle, which can run anything and is not opened; save it as safetensors", monkeypatch
    )


def test_no_checkpoint_at_all(tmp_path, monkeypatch):
    refused(tmp_path / "none", UsageError, "no such folder; weft downloads nothing", monkeypatch)
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    refused(tmp_path, UsageError, "holds no model.safetensors", monkeypatch)
    refused(tmp_path / "config.json", UsageError, "is a file: a checkpoint is the folder", monkeypatch)
    (tmp_path / "config.json").write_text("\n")
    (tmp_path / "model.safetensors").touch()
    refused(tmp_path, SpecError, "the file is empty, and no config", monkeypatch)
    with pytest.raises(UsageError, match=r"holds weights; the config is config\.json beside it"):
        api.import_hf(tmp_path / "model.safetensors")


def test_without_the_package_it_says_how_to_install_it(drawn, tmp_path, monkeypatch):
    written(tmp_path, GPT2, drawn)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    refused(tmp_path, BackendError, "pip install 'weft[hf]'", monkeypatch)
    assert BackendError.exit_code == 5


def test_names_of_old_and_of_bare_checkpoints(drawn, tmp_path):
    """Without the prefix, and with the buffers that a mask was kept in."""
    bare = {name.removeprefix("transformer."): x for name, x in drawn.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 80, 80)
    module = api.load_hf(written(tmp_path, GPT2, bare), train=False)

    assert torch.equal(module.state_dict()["embed.tokens"], drawn["transformer.wte.weight"])
    assert torch.equal(
        module.state_dict()["layers.0.attention.key.bias"].flatten(), drawn["transformer.h.0.attn.c_attn.bias"][32:64]
    )


def test_a_module_goes_back_in_its_own_dtype_and_nothing_is_overwritten(tmp_path):
    """bf16 in and out; a folder that holds a checkpoint is left alone, or taken over whole."""
    drawn = weights(GPT2, torch.bfloat16)
    module = api.load_hf(written(tmp_path / "in", GPT2, drawn), train=False)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert not module.training
    out = tmp_path / "out"
    many = api.save_hf(module, out, max_shard_size="20KB")
    assert len(many) > 3
    with pytest.raises(UsageError, match="force=True overwrites it"):
        api.save_hf(module, out)
    api.save_hf(module, out, force=True)

    assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert {p.stat().st_mode & 0o777 for p in out.iterdir()} == {
        (tmp_path / "in" / "config.json").stat().st_mode & 0o777
    }
    again = api.load_hf(out, train=False, dtype="float32")
    assert all(torch.equal(p, module.state_dict()[n].float()) for n, p in again.state_dict().items())


def test_a_module_that_is_not_the_configs_is_not_saved(tmp_path):
    module = api.compile("examples/specs/gpt2_345m.yaml", small=True, train=False)
    with pytest.raises(UsageError, match="which model of transformers is it"):
        api.save_hf(module, tmp_path / "a")
    with pytest.raises(UsageError, match=r"not those of the config: embed\.positions\.0, layers\.1"):
        api.save_hf(module, tmp_path / "b", config=GPT2)
    with pytest.raises(UsageError, match=r"max_shard_size is above 0"):
        api.save_hf(module, tmp_path / "c", config=GPT2, max_shard_size=0)
    with pytest.raises(UsageError, match="is on device meta, where no weights are"):
        api.save_hf(module.to("meta"), tmp_path / "d", config=GPT2)
    with pytest.raises(TypeError, match=r"a module is what weft\.load_hf or weft\.compile gives, not OrderedDict"):
        api.save_hf(module.state_dict(), tmp_path / "e", config=GPT2)
    assert not any(tmp_path.iterdir())


def test_a_spec_of_ones_own_takes_the_weights(tmp_path):
    """What the imported spec does not say, such as padding, with the same parameters; and a device that holds some."""
    config = RECORDED["bert"]["config"] | {"num_hidden_layers": 1}
    folder, spec = written(tmp_path, config, weights(config)), tmp_path / "spec.yaml"
    spec.write_text(api.import_hf(folder).text.replace("pattern: all", "pattern: valid"))
    module = api.load_hf(folder, spec=spec, train=False)
    tokens, types = torch.arange(2, 22).reshape(2, 10), torch.zeros(2, 10, dtype=torch.long)
    valid = torch.arange(10)[None] < torch.tensor([[10], [6]])
    out, short = module(tokens, types, valid=valid), module(tokens[1:, :6], types[1:, :6], valid=valid[1:, :6])

    assert torch.allclose(out.logits[1, :6], short.logits[0], atol=1e-5)
    with pytest.raises(UsageError, match="device='meta' is nowhere"):
        api.load_hf(folder, device="meta")
    with pytest.raises(UsageError, match=r"not those of the config: embed\.positions\.0"):
        api.load_hf(folder, set={"seq": 16}, train=False)


COST = """
import sys, torch
from weft import api_hf
from weft.frontends.hf import imported
from weft.frontends.hf.tensors import checkpoint, matching, moving
def memory(what): return int(next(x for x in open("/proc/self/status") if x.startswith(what)).split()[1]) * 1024
read = imported.import_config(sys.argv[1])
wanted = api_hf.tensors_of(read)
found = checkpoint.Checkpoint.open(sys.argv[1])
match = matching.match(found, read.family, read.architecture, wanted)
for moving.AT_ONCE in (1 << 23, 1 << 40):
    own = {p.name: torch.empty(p.shape) for t in wanted.values() for p in t.parts}
    open("/proc/self/clear_refs", "w").write("5")
    before = memory("VmRSS")
    moving.fill(own, found, match)
    print((memory("VmHWM") - before) / sum(x.nbytes for x in own.values()))
    del own
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read as Linux has them")
def test_weights_are_never_in_memory_twice(tmp_path):
    """48 MB of which one tensor is the most: in pieces; and that the whole tensor at once would be found."""
    config = GPT2 | {"vocab_size": 40_000, "n_embd": 256, "n_head": 4, "n_inner": 1024}
    written(tmp_path, config, weights(config))
    out = subprocess.run([sys.executable, "-c", COST, str(tmp_path)], check=True, capture_output=True, text=True).stdout
    pieces, whole = map(float, out.split())

    assert pieces <= 1.15
    assert whole > 1.5
