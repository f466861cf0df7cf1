"""Where verbs write: every path is tried before the work; then written whole, or refused in one line."""

import json
import os
import resource
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.cache.faulty import Faulty
from weft import api, cli, outputs
from weft.cache.pack import Pack
from weft.cli_shell import OutputOption
from weft.errors import UsageError

ROOT = Path(__file__).parents[2]
SPEC = """
weft: 1
name: tiny
dims: {batch: 2, seq: 8, width: 8, heads: 2, head: 4, inner: 16, layers: 1, vocab: 11}
blocks:
  a: {kind: attention, pattern: causal}
  f: {kind: mlp, activation: gelu}
embed: {}
stack: [{repeat: layers, layer: [a, f]}]
norm: layer_norm
head: {tied: true}
"""
FILE_VERBS = {
    "schema": ["schema"],
    "new": ["new", "gpt", "--force"],
    "plan": ["plan", "SPEC", "--force"],
    "export plan": ["export", "SPEC", "--format", "plan", "--force"],
    "export dot": ["export", "SPEC", "--format", "dot", "--force"],
    "cache export": ["cache", "export", "--force"],
    "cache merge": ["cache", "merge", "PACK", "--force"],
    "tune": ["tune", "SPEC", "--prepare", "--target", "sm_90"],
}
FOLDER_VERBS = {
    "compile": ["compile", "SPEC", "--force"],
    "export onnx": ["export", "SPEC", "--format", "onnx", "--force"],
}
VERBS = FILE_VERBS | FOLDER_VERBS


class Began(Exception):
    """The work has begun."""


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A folder with a spec and a pack, in which one stands."""
    (tmp_path / "s.yaml").write_text(SPEC)
    (tmp_path / "pack").write_bytes(Pack.of([]).text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEFT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def weft(home, capsys):
    """Run `weft ... -o PATH` in this process: exit code and stderr."""

    def run(arguments: list[str], path: str, option: str = "-o") -> tuple[int, str]:
        code = cli.run([{"SPEC": "s.yaml", "PACK": "pack"}.get(a, a) for a in arguments] + [option, path])
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def idle(monkeypatch) -> None:
    """No verb comes to its work."""

    def begun(*_: object, **__: object) -> None:
        raise Began

    for name in ("open_spec", "plan", "export", "package", "prepare", "replay"):
        monkeypatch.setattr(api, name, begun)
    monkeypatch.setattr("weft.cache.verbs.write", begun)
    monkeypatch.setattr("weft.cache.verbs.merge", begun)


def tree(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def refused(code: int, err: str) -> None:
    assert code == 2
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")


@pytest.mark.parametrize("verb", FILE_VERBS)
@pytest.mark.parametrize("path", [".", "", "no/such/dir/p", "s.yaml/p", "p/", "loop", "/sys/p", "n" * 300])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(weft, idle, home, verb, path):
    (home / "loop").symlink_to("loop")
    before = tree(home)

    refused(*weft(FILE_VERBS[verb], path))

    assert tree(home) == before


@pytest.mark.parametrize("verb", FOLDER_VERBS)
@pytest.mark.parametrize("path", ["", "s.yaml", "s.yaml/p", "to_file/a/b", "loop", "/sys/p", "/dev/null"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(weft, idle, home, verb, path):
    (home / "loop").symlink_to("loop")
    (home / "to_file").symlink_to("s.yaml")
    before = tree(home)

    refused(*weft(FOLDER_VERBS[verb], path))

    assert tree(home) == before


@pytest.mark.parametrize("option", ["--html", "--study"])
def test_every_output_of_tune_is_tried(weft, idle, option):
    refused(*weft(["tune", "s.yaml", "--prepare", "--target", "sm_90"], "no/such/dir/x.db", option))


def options(command: click.Command, name: str = "") -> Iterator[tuple[str, click.Parameter]]:
    if isinstance(command, click.Group):
        for word, inner in command.commands.items():
            yield from options(inner, f"{name} {word}")
    else:
        yield from ((name, p) for p in command.params)


def test_no_path_is_written_untried():
    """A path is an `OutputOption`, or one of these, which are read."""
    read = {"spec", "config", "packs", "replay", "warm", "shared", "weights"}
    paths = {(verb, p.name) for verb, p in options(cli.cli) if isinstance(p.type, click.Path) and p.name not in read}
    known = {(verb, p.name) for verb, p in options(cli.cli) if isinstance(p, OutputOption)}

    assert paths == known
    assert {p for _, p in known} == {"out", "html", "study"}


@pytest.fixture
def work(weft, home):
    """Every verb at work, once: the arguments, and the files it wrote at the path."""

    def run(verb: str, path: str) -> tuple[int, str]:
        if verb in ("cache export", "tune"):
            pytest.skip("needs a filled store, or Triton; the writer is that of `cache merge`")
        return weft(VERBS[verb], path)

    return run


@pytest.mark.parametrize("verb", VERBS)
def test_written_with_the_rights_of_the_umask(work, home, verb):
    old = os.umask(0o027)
    try:
        code, err = work(verb, "out")
    finally:
        os.umask(old)

    assert (code, err) == (0, "")
    made = [home / "out", *(home / "out").rglob("*")]
    assert {stat.S_IMODE(p.stat().st_mode) for p in made if p.is_file()} == {0o640}
    assert {stat.S_IMODE(p.stat().st_mode) for p in made if p.is_dir()} <= {0o750}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", ["live", "dangling"])
def test_a_link_stays_a_link(work, home, verb, kind):
    (home / "link").symlink_to("there")
    if kind == "live":
        (home / "there").mkdir() if verb in FOLDER_VERBS else (home / "there").write_text("old")

    assert work(verb, "link")[0] == 0
    assert os.readlink(home / "link") == "there"
    assert (home / "there").is_dir() == (verb in FOLDER_VERBS)
    assert (home / "there").is_dir() or (home / "there").read_text() != "old"


@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk_leaves_what_was_there_and_one_line(work, home, verb):
    """A file may have 64 bytes, then the system refuses, as it does on a full disk."""
    limit, before = resource.getrlimit(resource.RLIMIT_FSIZE), tree(home)
    quiet = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limit[1]))
    try:
        code, err = work(verb, "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, quiet)

    refused(code, err)
    assert tree(home) == before


@pytest.mark.parametrize("verb", ["new", "plan", "export dot"])
def test_a_device_is_written_to_and_stays(work, home, verb):
    assert work(verb, "/dev/null")[0] == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    refused(*work(verb, "/dev/full"))


def test_what_is_there_is_written_over_only_with_force(weft, home):
    (home / "p").write_text("mine")

    for verb in (["new", "gpt"], ["plan", "s.yaml"], ["export", "s.yaml", "--format", "dot"]):
        refused(*weft(verb, "p"))
    assert (home / "p").read_text() == "mine"


def test_a_mounted_file_and_a_closed_folder_are_written_in_place(home, monkeypatch):
    """Where nothing can take the file's place, or nothing be made beside it."""
    for at, mode in ((1, "EROFS"), (4, "EBUSY")):
        place = home / "held"
        place.write_text("old and longer")
        inode = place.stat().st_ino
        monkeypatch.setattr(outputs, "SYSTEM", Faulty(at, mode))
        outputs.write(place, "new")
        monkeypatch.undo()

        assert (place.read_text(), place.stat().st_ino) == ("new", inode)
    assert not [name for name in tree(home) if ".weft-" in name]


def test_files_of_a_batch_appear_together(home):
    def together() -> None:
        with outputs.Batch() as batch:
            batch.folder("a/b")
            batch.add("a/b/x", "x")
            batch.add("a/b/no/such", "y")

    with pytest.raises(UsageError):
        together()
    assert tree(home) == ["pack", "s.yaml"]


def test_one_file_is_not_two_outputs(weft, home):
    code, err = weft(["tune", "s.yaml", "--prepare", "--target", "sm_90", "--html", "x"], "./x")

    refused(code, err)
    assert "one file" in err


def test_the_graphs_of_passes_are_refused_a_bad_folder(weft, home, monkeypatch):
    monkeypatch.setenv("WEFT_DUMP", str(home / "s.yaml"))

    refused(*weft(["plan", "SPEC"], "p"))


def test_json_tells_of_a_refused_path(home, capsys):
    assert cli.run(["plan", "s.yaml", "-o", "no/such/p", "--json"]) == 2
    assert "no/such" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_a_package_in_a_folder_whose_name_is_no_text_is_verified(home):
    """A name of bytes that are not UTF-8, as a shell hands it over."""
    (home / "s.yaml").write_text(SPEC)

    assert cli.run(["compile", "s.yaml", "--out", "\udcff", "--verify"]) == 0
