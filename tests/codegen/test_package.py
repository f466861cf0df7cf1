"""A package on disk: whole or not at all, the same bytes again, never over an edit, importable with torch alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cache.faulty import Faulty
from tests.campaign import some
from tests.codegen.emission import ROOT, SPECS, package, ruff
from weft import api, outputs
from weft.cli import run
from weft.codegen.package.disk import MANIFEST, edited, load, write
from weft.codegen.package.manifest import digest, manifest
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


NEWER = {"__init__.py": "X = 9\n", "blocks/a.py": "Y = 9\n", "blocks/b/c.py": "Z = 9\n", "configs.json": "{}\n"}


@pytest.mark.parametrize("mode", ["ENOSPC", "ENOSPC mid", "EROFS"])
def test_a_failure_of_any_call_leaves_nothing_behind(tmp_path, monkeypatch, mode):
    """Before the files take their places the old package is whole; after that, writing again makes the new one."""
    for at in range(1, 100):
        out = write(FILES, tmp_path / f"{at}/out")
        inode, before, system = out.stat().st_ino, contents(out), Faulty(at, mode)
        monkeypatch.setattr(outputs, "SYSTEM", system)
        said = refusal(NEWER, out)
        monkeypatch.undo()
        left = contents(out)

        assert said.count("\n") == 0
        assert ".weft-" not in said
        assert out.stat().st_ino == inode
        assert not any(".weft-" in name for name in left)
        assert left == before or {*left} - {"blocks/b/c.py"} == {*before}
        write(NEWER, out)
        assert contents(out) == NEWER_BYTES
        if system.calls < at:
            return
    raise AssertionError("calls without an end")


def refusal(files: dict[str, str], out: Path) -> str:
    try:
        write(files, out)
    except UsageError as error:
        return str(error)
    return ""


NEWER_BYTES = {name: text.encode() for name, text in {**NEWER, MANIFEST: manifest(NEWER)}.items()}


def test_written_in_place_through_links_and_where_a_shell_stands(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("later")
    monkeypatch.chdir(tmp_path / "real")
    inode = os.stat(".").st_ino

    write(FILES, ".")
    write(NEWER, tmp_path / "link")
    write(FILES, tmp_path / "dangling")

    assert (os.stat(".").st_ino, os.stat(tmp_path / "real").st_ino) == (inode, inode)
    assert os.readlink(tmp_path / "link") == "real"
    assert contents(tmp_path / "real") == NEWER_BYTES
    assert os.readlink(tmp_path / "dangling") == "later"
    assert (tmp_path / "later/blocks/a.py").read_text() == "Y = 2\n"


def test_what_is_written_no_more_goes_away_with_what_python_compiled_of_it(out):
    (out / "blocks/__pycache__").mkdir()
    for name in ("a", "mine"):
        (out / f"blocks/__pycache__/{name}.cpython-311.pyc").write_bytes(b"old")

    write({"__init__.py": "X = 1\n"}, out)
    assert [p.name for p in out.rglob("*.pyc")] == ["mine.cpython-311.pyc"]
    (out / "blocks/__pycache__/mine.cpython-311.pyc").unlink()
    write(FILES, out)
    write({"__init__.py": "X = 1\n"}, out)

    assert {*contents(out)} == {"__init__.py", MANIFEST}
    assert not (out / "blocks").exists()


def test_a_new_text_is_imported_at_once(out):
    assert load(out).X == 1
    __import__("py_compile").compile(str(out / "__init__.py"))

    write(FILES | {"__init__.py": "X = 2\n"}, out)

    assert load(out).X == 2


@pytest.mark.parametrize("name", ["../victim", "/victim", "blocks/../../victim"])
def test_a_manifest_removes_nothing_elsewhere(tmp_path, name):
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.write_text("v")
    out.mkdir()
    name = str(victim) if name == "/victim" else name
    (out / MANIFEST).write_text(json.dumps({"files": {name: digest("v")}}))

    with pytest.raises(UsageError, match="not a manifest"):
        write(FILES, out)
    write(FILES, out, force=True)

    assert victim.read_text() == "v"


@pytest.mark.parametrize("what", ["blocks is a file", "a file is a folder", "out is a file", "a file is above"])
def test_a_file_where_a_folder_is_wanted_is_one_line(tmp_path, what):
    out = tmp_path / "out"
    if what == "out is a file":
        out.write_text("x")
    elif what == "a file is above":
        (tmp_path / "f").write_text("x")
        out = tmp_path / "f/out"
    else:
        write(FILES, out)
        for p in (out / "blocks").rglob("*"):
            p.unlink()
        (out / "blocks").rmdir()
        (out / "blocks").write_text("x") if what == "blocks is a file" else (out / "blocks/a.py").mkdir(parents=True)
    before = contents(tmp_path)

    with pytest.raises(UsageError) as error:
        write(NEWER, out, force=True)

    assert len(str(error.value).splitlines()) == 1
    assert contents(tmp_path) == before


def test_load_says_what_is_missing(tmp_path):
    with pytest.raises(UsageError, match="no emitted package"):
        load(tmp_path)


def test_two_packages_never_meet(tmp_path):
    a = load(write(FILES, tmp_path / "a"))
    b = load(write(FILES | {"__init__.py": "X = 2\n"}, tmp_path / "b"))

    assert (a.X, b.X) == (1, 2)


@pytest.mark.parametrize("name", some(SPECS, 3))
def test_shipped_specs_give_clean_files(name, tmp_path):
    out = write(package(name), tmp_path / "out")

    assert ruff("check", out) == ""
    assert ruff("format", "--diff", out) == ""


def test_the_same_bytes_whatever_the_process(tmp_path, monkeypatch):
    """Another folder, another working directory, another hash seed."""
    words = ["compile", str(ROOT / "examples/specs/switch_base.yaml"), "--small", "--target", "cpu", "-o"]
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    other.mkdir()
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "weft", *words, "there"]
    subprocess.run(command, cwd=other, env=environment, check=True, capture_output=True)
    monkeypatch.chdir(own)
    assert run([*words, "here"]) == 0
    here, there = contents(own / "here"), contents(other / "there")

    assert here == there
    assert not any(str(tmp_path).encode() in data or str(ROOT).encode() in data for data in here.values())


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
    files = {n: t for n, t in api.package(str(spec)).items() if n.endswith(".py")}
    text = "\n".join(files.values())

    assert "__import__" not in text
    assert "pwned'" not in text
    for name, source in files.items():
        compile(source, name, "exec")


def test_the_manifest_names_every_file(tmp_path):
    out = write(package("mistral_7b"), tmp_path / "out")
    listed = json.loads((out / MANIFEST).read_text())["files"]

    assert {*listed, MANIFEST} == {*contents(out)}
