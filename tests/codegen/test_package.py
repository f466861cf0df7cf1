"""A package on disk: whole or not at all, the same bytes again, never over an edit, importable with torch alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.codegen.emission import ROOT, SPECS, package, ruff
from weft import api
from weft.codegen.package import MANIFEST, edited, load, write
from weft.errors import UsageError

FILES = {"__init__.py": "X = 1\n", "blocks/a.py": "Y = 2\n", "configs.json": "{}\n"}


@pytest.fixture
def out(tmp_path) -> Path:
    return write(FILES, tmp_path / "out")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_writes_every_file_and_a_manifest(out):
    assert {*contents(out)} == {*FILES, MANIFEST}
    assert edited(out) == []


def test_writing_again_changes_nothing(out):
    before = contents(out)

    write(FILES, out)

    assert contents(out) == before


def test_an_edit_stays_while_weft_would_write_the_same(out):
    (out / "blocks/a.py").write_text("Y = 3\n")

    write(FILES | {"__init__.py": "X = 4\n"}, out)

    assert (out / "blocks/a.py").read_text() == "Y = 3\n"
    assert (out / "__init__.py").read_text() == "X = 4\n"
    assert edited(out) == ["blocks/a.py"]


@pytest.mark.parametrize("new", [FILES | {"blocks/a.py": "Y = 5\n"}, {"__init__.py": "X = 1\n"}])
def test_an_edit_is_never_overwritten_or_dropped(out, new):
    (out / "blocks/a.py").write_text("Y = 3\n")
    before = contents(out)

    with pytest.raises(UsageError, match=r"blocks/a\.py"):
        write(new, out)

    assert contents(out) == before
    write(new, out, force=True)
    assert edited(out) == []


def test_a_strange_folder_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(UsageError, match="no package"):
        write(FILES, tmp_path)

    write(FILES, tmp_path, force=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_files_of_others_are_carried_over(out):
    (out / "data").mkdir()
    (out / "data/weights.bin").write_bytes(b"123")

    write(FILES | {"__init__.py": "X = 7\n"}, out)

    assert (out / "data/weights.bin").read_bytes() == b"123"


def test_a_failure_leaves_the_old_package(out, monkeypatch):
    before = contents(out)

    def broken(self, data):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", broken)
    with pytest.raises(OSError, match="disk full"):
        write(FILES | {"__init__.py": "X = 9\n"}, out)
    monkeypatch.undo()

    assert contents(out) == before
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_load_says_what_is_missing(tmp_path):
    with pytest.raises(UsageError, match="no emitted package"):
        load(tmp_path)


def test_two_packages_never_meet(tmp_path):
    a = load(write(FILES, tmp_path / "a"))
    b = load(write(FILES | {"__init__.py": "X = 2\n"}, tmp_path / "b"))

    assert (a.X, b.X) == (1, 2)


@pytest.mark.parametrize("name", SPECS)
def test_shipped_specs_give_clean_files(name, tmp_path):
    out = write(package(name), tmp_path / "out")

    assert ruff("check", out) == ""
    assert ruff("format", "--diff", out) == ""


def test_the_same_bytes_whatever_the_process(tmp_path):
    """Another folder, another working directory, another hash seed."""
    spec = ROOT / "examples/specs/switch_base.yaml"
    folders = []
    for seed in ("0", "12345"):
        cwd = tmp_path / seed
        cwd.mkdir()
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [
            sys.executable,
            "-m",
            "weft",
            "compile",
            str(spec),
            "--small",
            "--target",
            "cpu",
            "-o",
            f"out_{seed}",
        ]
        subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True)
        folders.append(contents(cwd / f"out_{seed}"))

    assert folders[0] == folders[1]
    assert not any(str(tmp_path).encode() in data or str(ROOT).encode() in data for data in folders[0].values())


ALONE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("weft", "pydantic", "yaml", "click", "onnx", "tabulate"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
import warnings
warnings.simplefilter("ignore")
import torch
import out
model = out.Model()
tokens = torch.randint(0, 40, (2, 16))
result = model(tokens, tokens)
result.loss.backward()
logits, state = model.prefill(tokens)
logits, state = model.step(tokens[:, 0], model.state(2))
print(model.plan["schema"], len(list(model.parameters())))
"""


def test_imports_with_torch_alone(tmp_path):
    write(package("sru_pp_enwik8"), tmp_path / "out")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}

    done = subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("weft.plan/1")


HOSTILE = """
weft: 1
name: x
dims: {batch: 1, seq: 8, width: 8, heads: 2, head: 4, inner: 16, layers: 2, vocab: 11}
blocks:
  forward: {kind: attention, pattern: causal}
  train: {kind: mlp, activation: gelu}
embed: {}
sublayer: {norm: layer_norm, residual: pre}
stack:
  - repeat: layers
    layer: [forward, train]
norm: layer_norm
head: {tied: true}
"""


def test_block_names_that_are_methods_of_modules(tmp_path):
    spec = tmp_path / "x.yaml"
    spec.write_text(HOSTILE)

    found = api.verify(str(spec), kernels=False)

    assert found.ok, found.text()


def test_nothing_of_the_spec_but_its_line_numbers_is_in_the_source(tmp_path):
    spec = tmp_path / "pwned';import os#.yaml"
    spec.write_text(HOSTILE.replace("name: x", "name: owned_by_me\nabout: \"''' + __import__('os')\""))
    try:
        files = api.package(str(spec))
    except Exception:
        return  # refused is as good
    text = "\n".join(t for n, t in files.items() if n.endswith(".py"))

    assert "__import__" not in text
    assert "pwned'" not in text


def test_the_manifest_names_every_file(tmp_path):
    out = write(package("mistral_7b"), tmp_path / "out")
    listed = json.loads((out / MANIFEST).read_text())["files"]

    assert {*listed, MANIFEST} == {*contents(out)}
