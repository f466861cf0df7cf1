"""A package whose files are cut, edited or gone: every verb tells the file and the place in one line, or works."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.frontends.test_outputs import SPEC
from weft import api, cli
from weft.codegen.package.reading import blaming
from weft.errors import FileError, UsageError


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("damage")
    (folder / "s.yaml").write_text(SPEC)
    api.compile(folder / "s.yaml", out=folder / "out", target="cpu")
    return folder / "out"


@pytest.fixture
def out(whole, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("WEFT_KERNELS", "torch")  # what they run in has tests of its own
    monkeypatch.setenv("WEFT_CACHE_DIR", str(tmp_path / "cache"))
    return Path(shutil.copytree(whole, tmp_path / "out"))


def edited(text: str, **values: object) -> str:
    return json.dumps(json.loads(text) | values)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda f: f.write_bytes(b""),
    "cut": lambda f: f.write_bytes(f.read_bytes()[: len(f.read_bytes()) // 2]),
    "binary": lambda f: f.write_bytes(b"\x00\xff\xfe" * 40),
    "gone": lambda f: f.unlink(),
    "folder": lambda f: (f.unlink(), f.mkdir()),
    "loop": lambda f: (f.unlink(), f.symlink_to(f.name)),
    "other schema": lambda f: f.write_text(edited(f.read_text(), schema="weft.other/9")),
    "no object": lambda f: f.write_text("[1, 2]"),
    "deep": lambda f: f.write_text("[" * 100_000),
    "big number": lambda f: f.write_text('{"schema": ' + "9" * 5000 + "}"),
    "wrong types": lambda f: f.write_text(json.dumps(dict.fromkeys(json.loads(f.read_text()), 3))),
}
JSON = ("plan.json", "program.json", "configs.json", "regions.json", "manifest.json")
VERBS = {
    "verify": lambda out: ["verify", out],
    "export dot": lambda out: ["export", out, "--format", "dot", "-o", f"{out}.dot"],
    "export onnx": lambda out: ["export", out, "--format", "onnx", "-o", f"{out}.onnx"],
    "explain": lambda out: ["explain", out],
    "tune": lambda out: ["tune", out, "--require-tuned", "--target", "sm_90"],
    "compile": lambda out: ["compile", f"{Path(out).parent}/s.yaml", "-o", out],
}
READS = {
    "verify": {"plan.json", "program.json", "configs.json", "graph.weft", "model.py", "blocks/layer.py"},
    "export dot": {"plan.json"},
    "export onnx": {"program.json", "graph.weft"},
    "explain": {"plan.json"},
    "tune": {"plan.json", "program.json", "graph.weft"},
    "compile": {"manifest.json"},
}


@pytest.mark.parametrize("verb", READS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_told_in_one_line(out, whole, verb, damage, capsys):
    shutil.copy(whole.parent / "s.yaml", out.parent / "s.yaml")
    for name in sorted(READS[verb]):
        text = (out / name).read_bytes()
        try:
            DAMAGE[damage](out / name)
        except ValueError:
            continue  # for JSON alone
        code = cli.run(VERBS[verb](str(out)))
        err = capsys.readouterr().err

        assert code in ((2, 3) if verb == "compile" else (3,)), (name, code, err)
        assert len(err.splitlines()) == 1, (name, err)
        assert f"out/{name}" in err or (verb, damage) == ("compile", "gone"), err
        if (out / name).is_dir():
            (out / name).rmdir()
        (out / name).unlink(missing_ok=True)
        (out / name).write_bytes(text)


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("model.py", "class Model(", "class Modle(", "model.py"),
        ("model.py", "def forward(self, tokens", "def forward(self, tokns", "model.py"),
        ("model.py", "import json", "import jsn", "model.py:"),
        ("blocks/layer.py", "import torch\n", "import torch\n1 / 0\n", "blocks/layer.py:"),
        ("blocks/layer.py", "import torch\n", "import torch\nraise SystemExit(0)\n", "blocks/layer.py:"),
        ("blocks/layer.py", "import torch\n", "import torch\nif\n", "blocks/layer.py:"),
        ("blocks/layer.py", "torch.", "torhc.", "blocks/layer.py"),
        ("runtime/module.py", "class Block", "class Blok", "module.py"),
        ("kernels/common/ops.py", "import hashlib", "import hashlb", "kernels/common/ops.py"),
    ],
)
def test_an_edit_that_does_not_run_is_told_with_its_line(out, capsys, name, old, new, words):
    text = (out / name).read_text()
    assert old in text
    (out / name).write_text(text.replace(old, new, 1))
    code = cli.run(["verify", str(out)])
    err = capsys.readouterr().err

    assert code == 3, err
    assert len(err.splitlines()) == 1
    assert words in err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda k: k.popitem(), "is missing"),
        (lambda k: k.update(dict.fromkeys(k, 3)), "is 3, not a map"),
        (lambda k: next(iter(k.values())).update(sm_x={}), "'sm_x' is no target"),
        (lambda k: next(iter(k.values()))["sm_90"]["f32"].update(num_warps="many"), 'num_warps is "many"'),
        (lambda k: next(iter(k.values())).update(sm_90=[]), "sm_90 is [], not a map"),
    ],
)
def test_a_configuration_of_another_shape_is_told_with_its_place(out, change, words):
    path = out / "configs.json"
    found = json.loads(path.read_text())
    change(found["kernels"])
    path.write_text(json.dumps(found))

    with pytest.raises(FileError, match=r"configs\.json: kernels\.k") as error:
        api.load(out)
    assert words in str(error.value)


def test_what_a_package_is_checked_against_is_not_edited(out):
    path = out / "program.json"
    path.write_text(path.read_text().replace('"vocab": 11', '"vocab": 12'))

    with pytest.raises(FileError, match="changed since weft wrote it"):
        api.verify(out, kernels=False)


def test_a_whole_package_raises_what_it_raises(out, monkeypatch):
    """A fault of weft's own is not blamed on a package that is as weft wrote it."""
    with pytest.raises(TypeError, match="tokens"):
        api.load(out)()

    with pytest.raises(ZeroDivisionError), blaming(out):
        raise ZeroDivisionError


def test_a_tuned_package_is_whole(out):
    path = out / "configs.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=3))

    assert api.verify(out, kernels=False).ok


def test_folders_without_a_package(tmp_path):
    for call in (api.verify, api.load, lambda p: api.export(p, "dot", tmp_path / "x"), api.explain):
        with pytest.raises(UsageError):
            call(tmp_path)
