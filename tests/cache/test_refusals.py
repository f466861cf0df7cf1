"""What somebody else may have planted is not followed, not read, not written: links, pipes, other users' folders."""

import os
import stat

import pytest

from tests.cache.examples import CONFIGS, DEFAULT, KEY, SOFT, SPACE, good
from weft.cache import files
from weft.cache.binaries import Binaries
from weft.cache.files import Ops
from weft.cache.ladder import Ladder
from weft.cache.place import cache_dir, forget_said
from weft.cache.store import Store


@pytest.fixture(autouse=True)
def _said():
    forget_said()


@pytest.fixture
def root(tmp_path):
    with Store(tmp_path / "c") as store:
        store.append(KEY, good(CONFIGS[5], 3), SOFT)
    return tmp_path / "c"


def inside(root, name: str) -> str:
    store = Store(root)
    shard = os.listdir(os.path.join(store.path(KEY), "shards"))[0]
    device = os.path.dirname(store.path(KEY))
    paths = {
        "root": str(root), "v1": store.top, "device": device, "key": store.path(KEY),
        "shards": os.path.join(store.path(KEY), "shards"), "shard": os.path.join(store.path(KEY), "shards", shard),
        "best": os.path.join(store.path(KEY), "best.json"), "manifest": os.path.join(store.path(KEY), "manifest.json"),
    }  # fmt: skip
    return paths[name]


def lookup(root, said=None):
    store = Store(root, notify=(said if said is not None else []).append)
    answer = Ladder([store]).lookup(KEY, SOFT, SPACE, DEFAULT)
    list(store.known())
    store.index()
    return answer


@pytest.mark.parametrize("name", ["root", "v1", "device", "key", "shards"])
def test_a_linked_folder_is_not_entered(root, name, tmp_path):
    path, away = inside(root, name), tmp_path / "away"
    os.rename(path, away)
    os.symlink(away, path)
    before = sorted(os.walk(away))
    said = []

    assert lookup(root, said).config == DEFAULT
    store = Store(root, notify=said.append)
    assert not store.append(KEY, good(CONFIGS[1], 1), SOFT)
    assert store.rows(KEY)[-1].config == CONFIGS[1]
    store.close()
    assert sorted(os.walk(away)) == before
    assert any("is a link" in line for line in said)


@pytest.mark.parametrize("name", ["shard", "best", "manifest"])
def test_a_linked_file_is_not_read(root, name, tmp_path):
    path, away = inside(root, name), tmp_path / "away"
    unlinked = {"shard": "best", "best": "shard"}.get(name)  # so that nothing else can answer
    if unlinked:
        os.unlink(inside(root, unlinked))
    os.rename(path, away)
    os.symlink(away, path)
    before = away.read_bytes()

    assert lookup(root).config == (CONFIGS[5] if name == "manifest" else DEFAULT)
    assert list(Store(root).known()) == [] or name != "manifest"
    assert away.read_bytes() == before


@pytest.mark.parametrize("name", ["shard", "best", "manifest"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "world-writable"])
def test_what_is_no_private_file_is_not_read(root, name, kind):
    path = inside(root, name)
    if name == "shard":
        os.unlink(inside(root, "best"))
    if kind == "world-writable":
        os.chmod(path, 0o666)
    else:
        os.unlink(path)
        (os.mkfifo if kind == "fifo" else os.mkdir)(path)

    assert lookup(root).config == (DEFAULT if name == "shard" else CONFIGS[5])


@pytest.mark.parametrize("name", ["root", "v1", "device", "key", "shards"])
def test_a_folder_that_others_may_write_is_not_used(root, name):
    os.chmod(inside(root, name), 0o777)
    said = []

    assert lookup(root, said).config == DEFAULT
    assert len(said) == 1
    assert "can be written by other users; run chmod go-w" in said[0]


def test_a_root_that_others_could_replace_is_not_used(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    said = []
    store = Store(shared / "c", notify=said.append)

    assert not store.append(KEY, good(CONFIGS[1]), SOFT)
    assert "lets other users replace c" in said[0]
    shared.chmod(0o1777)
    assert store.append(KEY, good(CONFIGS[2]), SOFT)
    store.close()


class Stranger(Ops):
    """Everything below `under` belongs to another user."""

    def __init__(self, under: str) -> None:
        self.under, self.fds = under, set()

    def _strange(self, status: os.stat_result) -> os.stat_result:
        return os.stat_result([*status[:4], 4242, *status[5:]])

    def lstat(self, path: str) -> os.stat_result:
        status = os.lstat(path)
        return self._strange(status) if path.startswith(self.under) else status

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        fd = os.open(path, flags, mode)
        (self.fds.add if path.startswith(self.under) else self.fds.discard)(fd)
        return fd

    def fstat(self, fd: int) -> os.stat_result:
        return self._strange(os.fstat(fd)) if fd in self.fds else os.fstat(fd)


@pytest.mark.parametrize("name", ["root", "v1", "device", "key", "shards", "shard"])
def test_what_another_user_owns_is_not_used(root, name):
    os.unlink(inside(root, "best"))
    said = []
    store = Store(root, ops=Stranger(inside(root, name)), notify=said.append)

    assert Ladder([store]).lookup(KEY, SOFT, SPACE, DEFAULT).config == DEFAULT
    assert name == "shard" or any("belongs to another user" in line for line in said)


def test_a_store_named_for_reading_may_belong_to_another_user(root):
    store = Store(root, readonly=True, ops=Stranger(str(root)))

    assert Ladder([store]).lookup(KEY, SOFT, SPACE, DEFAULT).config == CONFIGS[5]


def test_a_file_over_the_limit_is_not_read(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"x" * 100)
    path.chmod(0o600)

    assert files.read(str(path), 100)[0] == b"x" * 100
    with pytest.raises(files.UntrustedFile, match="at most 99"):
        files.read(str(path), 99)


def test_a_link_planted_where_a_file_will_be_written_is_not_followed(root, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("best", "manifest"):
        path = inside(root, name)
        os.unlink(path)
        os.symlink(victim, path)
    with Store(root) as store:
        store.append(KEY, good(CONFIGS[1], 1), SOFT)

    assert victim.read_text() == "precious"
    assert lookup(root).config == CONFIGS[1]


def test_the_folder_is_never_one_of_all_users(monkeypatch, tmp_path):
    monkeypatch.delenv("WEFT_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "weft"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == tmp_path / ".cache" / "weft"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_dir() == tmp_path / "x" / "weft"
    monkeypatch.setenv("WEFT_CACHE_DIR", str(tmp_path / "w"))
    assert cache_dir() == tmp_path / "w"


def test_cubins_serve_their_own_triton_version_and_their_own_bytes(tmp_path):
    kept = Binaries(str(tmp_path / "c" / "v1"))
    name = kept.put(b"\x7fELF code", "3.9.0")

    assert kept.get(name, "3.9.0") == b"\x7fELF code"
    assert kept.get(name, "3.9.1") is None
    assert kept.get("../" + name, "3.9.0") is None
    path = next(p for p in (tmp_path / "c").rglob(name))
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    path.write_bytes(b"\x7fELF evil")
    assert kept.get(name, "3.9.0") is None
    assert kept.put(b"\x7fELF code", "3.9.0") == name
    assert kept.get(name, "3.9.0") == b"\x7fELF code"
    assert kept.sweep(set(), lambda path: False) == (0, 0)
    assert kept.sweep(set(), lambda path: True) == (1, 9)
    assert kept.get(name, "3.9.0") is None
