"""A spec through stdin, a pipe or a named pipe: every verb reads it, once, and errors have their places."""

import io
import json
import os
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.frontends.test_outputs import SPEC
from weft import api, cli
from weft.frontends import extends

SMALL = SPEC + "small: {vocab: 7}\n"


@contextmanager
def stdin(text: str, monkeypatch) -> Generator[str]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    yield "-"


@contextmanager
def device(text: str, monkeypatch) -> Generator[str]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    yield "/dev/stdin"


@contextmanager
def substitution(text: str, monkeypatch) -> Generator[str]:
    """What `<(...)` of a shell hands over."""
    read, write = os.pipe()
    os.write(write, text.encode())
    os.close(write)
    try:
        yield f"/dev/fd/{read}"
    finally:
        os.close(read)


@contextmanager
def fifo(text: str, monkeypatch) -> Generator[str]:
    os.mkfifo("p.yaml")
    writer = threading.Thread(target=lambda: Path("p.yaml").write_text(text), daemon=True)
    writer.start()
    yield "p.yaml"
    writer.join(10)


NAMES = {"stdin": "<stdin>", "device": "<stdin>", "substitution": "<pipe>", "fifo": "p.yaml"}
WAYS = {way.__name__: way for way in (stdin, device, substitution, fifo)}


@pytest.fixture(params=WAYS)
def through(request, monkeypatch, tmp_path) -> Callable[[str], object]:
    """A way in, by its name: `with through.open(text) as path`."""
    monkeypatch.chdir(tmp_path)
    return request.param, lambda text: WAYS[request.param](text, monkeypatch)


def test_check_and_its_options(through, capsys):
    name, way = through
    with way(SMALL) as path:
        code = cli.run(["check", path, "--small", "--set", "seq=6", "--json"])
    data = json.loads(capsys.readouterr().out)

    assert (code, data["spec"]) == (0, NAMES[name])
    assert (data["dims"]["vocab"], data["dims"]["seq"]) == (7, 6)


def test_what_is_wrong_has_its_place(through, capsys):
    name, way = through
    with way(SPEC.replace("pattern: causal", "pattern: casual")) as path:
        code = cli.run(["check", path])

    assert code == 3
    assert capsys.readouterr().err.startswith(f"{NAMES[name]}:6:33: error[W0302]")


def test_a_base_lies_below_the_folder_one_stands_in(through, tmp_path):
    _, way = through
    (tmp_path / "base").mkdir()
    (tmp_path / "base/tiny.yaml").write_text(SPEC)
    (tmp_path.parent / "outside.yaml").write_text(SPEC)

    with way("extends: base/tiny.yaml\nname: other\n") as path:
        assert api.check(path)["name"] == "other"


def test_a_base_above_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with stdin("extends: ../outside.yaml\n", monkeypatch) as path:
        assert cli.run(["check", path]) == 3
    assert "outside the spec's directory" in capsys.readouterr().err


VERBS = {
    "explain": ["explain", "-"],
    "plan": ["plan", "-", "-o", "p"],
    "export": ["export", "-", "--format", "dot", "-o", "p"],
    "onnx": ["export", "-", "--format", "onnx", "-o", "p"],
    "compile": ["compile", "-", "-o", "p"],
    "verify": ["verify", "-"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_reads_it(verb, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEFT_KERNELS", "torch")
    with stdin(SPEC, monkeypatch):
        assert cli.run(VERBS[verb]) == 0, capsys.readouterr().err
    sources = [p.read_text() for p in tmp_path.rglob("*.py")]
    assert not sources or any("# stdin:" in text for text in sources)


@pytest.mark.parametrize(("text", "words"), [("", "W0005"), ("x" * (1 << 20) + "yy", "W0002"), ("\0", "W0004")])
def test_nothing_and_too_much(text, words, monkeypatch, capsys):
    with stdin(text, monkeypatch) as path:
        assert cli.run(["check", path]) == 3
    assert words in capsys.readouterr().err


def test_a_closed_stdin_and_an_endless_device(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    assert cli.run(["check", "-"]) == 2
    assert capsys.readouterr().err == "error: stdin is closed\n"
    assert cli.run(["check", "/dev/zero"]) == 3
    assert cli.run(["check", "/dev/null"]) == 3


def test_a_file_of_that_name_is_reached_with_its_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("-").write_text(SPEC)

    assert extends.read_document("./-").data["name"] == "tiny"
