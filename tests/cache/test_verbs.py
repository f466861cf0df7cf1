"""`weft cache ...`, as a person runs it."""

import json
import os
import subprocess
import sys

import pytest

from tests.cache.examples import CONFIGS, H100, KEY, SOFT, good
from weft.cache.row import Row
from weft.cache.store import Store
from weft.cli import run


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("WEFT_CACHE_DIR", str(tmp_path / "c"))
    with Store() as store:
        for i, config in enumerate(CONFIGS[:5]):
            store.append(KEY, good(config, 20 - i), SOFT)
        store.append(KEY, Row.of(CONFIGS[6], "compile", reason="over shared memory"), SOFT)
        store.append(KEY.on(H100), good(CONFIGS[0], 30), SOFT)
    return tmp_path / "c"


def weft(capsys, *arguments: str) -> tuple[int, str, str]:
    code = run(["cache", *arguments])
    found = capsys.readouterr()
    return code, found.out, found.err


def data(capsys, *arguments: str) -> dict:
    code, out, _ = weft(capsys, *arguments, "--json")
    assert code == 0
    return json.loads(out)


def test_ls(root, capsys):
    code, out, _ = weft(capsys, "ls")
    found = data(capsys, "ls")

    assert code == 0
    assert KEY.id[:12] in out
    assert "NVIDIA H100 PCIe" in out
    assert found["schema"] == "weft.cache.ls/1"
    assert [(k["id"], k["trials"], k["config"]) for k in found["keys"]] == [
        (KEY.on(H100).id, 1, CONFIGS[0]), (KEY.id, 6, CONFIGS[4]),
    ]  # fmt: skip


def test_ls_of_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WEFT_CACHE_DIR", str(tmp_path / "none"))

    assert "holds no results" in weft(capsys, "ls")[1]
    assert not (tmp_path / "none").exists()
    assert weft(capsys, "verify")[0] == 0
    assert not (tmp_path / "none").exists()


def test_explain(root, capsys):
    code, out, _ = weft(capsys, "explain", KEY.id[:8])

    assert code == 0
    assert "1 compile, 5 ok" in out
    assert "over shared memory" in out
    assert (
        f"near: {KEY.on(H100).id[:12]} differs in gpu (NVIDIA H100 PCIe, here NVIDIA H200), sms (114, here 132)" in out
    )
    assert data(capsys, "explain", KEY.id)["best"][0]["config"] == CONFIGS[4]
    assert weft(capsys, "explain", "zz")[0] == 2


def test_export_and_import(root, capsys, tmp_path, monkeypatch):
    path = str(tmp_path / "a.weftpack")
    assert data(capsys, "export", "-o", path)["rows"] == 7
    code, _, err = weft(capsys, "export", "-o", path)
    assert (code, "--force" in err) == (2, True)
    assert "7 rows of 2 keys" in weft(capsys, "explain", path)[1]
    monkeypatch.setenv("WEFT_CACHE_DIR", str(tmp_path / "d"))
    assert data(capsys, "import", path)["packs"] == [{"path": path, "new": 7, "known": 0}]
    assert data(capsys, "import", path)["packs"] == [{"path": path, "new": 0, "known": 7}]
    assert data(capsys, "ls")["keys"][1]["config"] == CONFIGS[4]
    monkeypatch.setenv("WEFT_CACHE_DIR", str(root))
    assert data(capsys, "export", "-o", path, "--force", "--winners", "--key", KEY.id[:9])["rows"] == 1


def test_t4_files(root, capsys, tmp_path, monkeypatch):
    path = str(tmp_path / "a.json")
    assert weft(capsys, "export", "--format", "t4", "-o", path)[0] == 2
    assert data(capsys, "export", "--format", "t4", "--key", KEY.id[:9], "-o", path)["rows"] == 6
    with open(path) as file:
        foreign = json.load(file)
    foreign.pop("weft")
    (tmp_path / "theirs.json").write_text(json.dumps(foreign))
    monkeypatch.setenv("WEFT_CACHE_DIR", str(tmp_path / "d"))
    assert data(capsys, "import", path)["packs"][0]["new"] == 6
    code, _, err = weft(capsys, "import", str(tmp_path / "theirs.json"))
    assert (code, "--key" in err) == (3, True)
    assert data(capsys, "import", str(tmp_path / "theirs.json"), "--key", KEY.id[:9])["packs"][0]["known"] == 6


def test_merge(root, capsys, tmp_path):
    a, b, both, again = (str(tmp_path / name) for name in ("a", "b", "both", "again"))
    data(capsys, "export", "--key", KEY.id, "-o", a)
    data(capsys, "export", "--key", KEY.on(H100).id, "-o", b)

    assert data(capsys, "merge", a, b, "-o", both)["rows"] == 7
    data(capsys, "merge", both, b, a, "-o", again)
    with open(both, "rb") as one, open(again, "rb") as other:
        assert one.read() == other.read()


def test_verify_tells_what_is_wrong_and_changes_nothing(root, capsys, tmp_path):
    assert data(capsys, "verify")["findings"] == []
    path = str(tmp_path / "a.weftpack")
    data(capsys, "export", "-o", path)
    with open(path, "ab") as file:
        file.write(b"more\n")
    code, out, _ = weft(capsys, "verify", path)
    assert code == 1
    assert f"fail  {path}:1: the hash does not match" in out
    store = Store()
    folder = os.path.join(store.path(KEY), "shards")
    with open(os.path.join(folder, os.listdir(folder)[0]), "ab") as file:
        file.write(b"damaged\nunfinished")
    os.unlink(os.path.join(store.path(KEY.on(H100)), "manifest.json"))
    code, out, _ = weft(capsys, "verify")
    assert code == 1
    assert "1 lines are damaged; 6 rows are whole" in out
    assert "1 shards end in an unfinished line" in out
    assert "its manifest is missing" in out


def test_gc_touches_nothing_that_is_fresh_and_folds_what_is_old(root, capsys):
    with Store() as store:
        store.append(KEY, good(CONFIGS[9], 2), SOFT)
    (root / "v1" / ".tmp-left").write_bytes(b"")
    folder = os.path.join(store.path(KEY), "shards")
    with open(os.path.join(folder, os.listdir(folder)[0]), "ab") as file:
        file.write(b"torn")
    before = {row.text for row in Store().rows(KEY)}
    assert data(capsys, "gc")["shards"] == 0
    for at, _, names in os.walk(root):
        for name in names:
            if name.startswith(".tmp-"):
                os.utime(os.path.join(at, name), (1, 1))
            elif name.endswith(".jsonl"):
                os.utime(os.path.join(at, name), (1, 1))
                # written by a process that is gone: give it a number nobody has
                host, _, rest = name.rsplit("-", 2)
                os.rename(os.path.join(at, name), os.path.join(at, f"{host}-4194304-{rest}"))
    assert data(capsys, "gc", "--dry-run")["shards"] == 2
    assert len(os.listdir(folder)) == 2
    found = data(capsys, "gc")

    assert (found["shards"], found["temps"]) == (2, 1)
    assert len(os.listdir(folder)) == 1
    assert {row.text for row in Store().rows(KEY)} == before
    assert data(capsys, "verify")["findings"] == []


def test_a_writer_whose_shard_was_tidied_away_loses_nothing(root):
    store = Store()
    store.append(KEY, good(CONFIGS[10], 9), SOFT)
    folder = os.path.join(store.path(KEY), "shards")
    for name in os.listdir(folder):
        os.rename(os.path.join(folder, name), root / name)
        os.unlink(root / name)
    assert not store.append(KEY, good(CONFIGS[11], 8), SOFT)
    store.append(KEY, good(CONFIGS[12], 7), SOFT)
    assert store.close()

    found = [row.config for row in Store().rows(KEY)]
    assert CONFIGS[11] in found
    assert CONFIGS[12] in found


def test_the_verbs_need_no_torch(root):
    code = (
        "import sys; from weft.cli import run; run(['cache', 'ls']); run(['cache', 'verify']);"
        "assert not {'torch', 'sympy', 'optuna'} & set(sys.modules), sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
