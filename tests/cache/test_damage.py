"""Whatever happens to the bytes: never an exception, never a configuration that was not measured, nothing lost that is
still whole."""

import os
import random
import zlib

import pytest

from tests.cache.examples import CONFIGS, DEFAULT, KEY, SOFT, SPACE, good
from tests.campaign import count
from weft.cache import lines, pack
from weft.cache.canonical import canonical
from weft.cache.ladder import Ladder
from weft.cache.pack import Entry, Pack
from weft.cache.place import forget_said
from weft.cache.space import within
from weft.cache.store import Store

ROWS = [good(config, 5 + i, regs=i) for i, config in enumerate(CONFIGS[:12])]
MEASURED = {row.under(SOFT.id).text for row in ROWS}
FILES = ("shard", "second shard", "best.json", "manifest.json", "index.json")


@pytest.fixture(autouse=True)
def _said():
    forget_said()


@pytest.fixture
def store(tmp_path):
    for part in (ROWS[:7], ROWS[7:]):
        with Store(tmp_path / "c") as made:
            for row in part:
                made.append(KEY, row, SOFT)
    with open(os.path.join(made.top, "index.json"), "wb") as file:
        file.write(lines.encode(canonical(made.index().data()), lines.seed("index")))
    return made


def path_of(store: Store, name: str) -> str:
    if name == "index.json":
        return os.path.join(store.top, name)
    if name.endswith("shard"):
        folder = os.path.join(store.path(KEY), "shards")
        return os.path.join(folder, sorted(os.listdir(folder))[name == "second shard"])
    return os.path.join(store.path(KEY), name)


def judged(config) -> bool:
    return within(SPACE)(config)


def looked_at(root) -> list[str]:
    """Everything a reader does; the texts of the rows it found."""
    reader = Store(root, readonly=True, notify=lambda line: None)
    found = [row.text for row in reader.rows(KEY)]
    answer = Ladder([reader]).lookup(KEY, SOFT, judged, DEFAULT)
    assert answer.config == DEFAULT or answer.config in [row.config for row in ROWS]
    if answer.us is not None:
        assert (answer.config, answer.us) in [(row.config, row.us) for row in ROWS]
    assert set(found) <= MEASURED
    assert len(found) == len(set(found))
    assert set(reader.known()) <= {KEY}
    return found


def put(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def taken(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


@pytest.mark.parametrize("name", FILES)
def test_every_truncation(store, tmp_path, name):
    path = path_of(store, name)
    whole = taken(path)
    step = 1 if name == "shard" else count(sample=7, soak=1)
    for length in range(0, len(whole), count(sample=3, soak=1) * step):
        put(path, whole[:length])
        found = looked_at(tmp_path / "c")
        if name.endswith("shard"):
            kept = whole[:length].count(b"\n") - 1  # complete lines without the header
            other = 5 if name == "shard" else 7
            assert len(found) == max(kept, 0) + other
        else:
            assert len(found) == len(ROWS)


@pytest.mark.parametrize("name", FILES)
def test_flipped_bits(store, tmp_path, name):
    rng = random.Random(name)
    path = path_of(store, name)
    whole = taken(path)
    for _ in range(count(sample=60, soak=1500)):
        at = rng.randrange(len(whole) * 8)
        damaged = bytearray(whole)
        damaged[at // 8] ^= 1 << at % 8
        put(path, bytes(damaged))
        found = looked_at(tmp_path / "c")
        assert len(found) >= len(ROWS) - 2  # a broken newline takes two lines with it


def damage(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """One of the things that happen to files."""
    at, to = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    other = rng.choice(others)
    match rng.randrange(8):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + data[to:]
        case 2:
            return data[:at] + bytes(to - at) + data[to:]
        case 3:
            return data[:to] + data[at:]
        case 4:
            return data[:at] + other[: rng.randrange(len(other) + 1)] + data[to:]
        case 5:
            lines_of = data.splitlines(keepends=True) + other.splitlines(keepends=True)
            rng.shuffle(lines_of)
            return b"".join(lines_of)
        case 6:  # two writers' bytes interleaved, as without O_APPEND
            step = rng.randrange(1, 64)
            return b"".join(data[i : i + step] + other[i : i + step] for i in range(0, len(data), step))
        case _:
            damaged = bytearray(data)
            for _ in range(rng.randrange(1, 9)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            return bytes(damaged)


def test_damage_of_all_kinds(store, tmp_path, record_property):
    rng = random.Random(20)
    paths = [path_of(store, name) for name in FILES]
    whole = {path: taken(path) for path in paths}
    times = count(sample=2000, soak=10_000)
    for _ in range(times):
        hurt = rng.sample(paths, rng.choice((1, 1, 1, 2, 3)))
        for path in hurt:
            put(path, damage(rng, whole[path], list(whole.values())))
        looked_at(tmp_path / "c")
        for path in hurt:
            put(path, whole[path])
    record_property("corruptions", times)
    assert set(looked_at(tmp_path / "c")) == MEASURED


def test_a_pack_is_taken_whole_or_its_problems_are_told():
    rng = random.Random(7)
    made = Pack.of([Entry.of(KEY, [row.under(SOFT.id) for row in ROWS], {SOFT.id: SOFT})], by="weft")
    whole = made.text()
    for _ in range(count(sample=500, soak=10_000)):
        hurt = damage(rng, whole, [whole, b'{"key":{}}\n', b"[" * 3000])
        found, problems = pack.parse(hurt)
        assert found in (made, Pack())
        assert problems or found == made
    assert pack.parse(whole) == (made, [])


FORGED = (
    {"BLOCK_M": -16}, {"BLOCK_M": 10**9}, {"BLOCK_M": True}, {"BLOCK_M": "16"}, {"BLOCK_M": 16.0}, {"BLOCK_M": None},
    {"BLOCK_M": "__import__('os').system('true')"}, {"shell": 1}, {"num_warps": 3}, {"BLOCK_M": 0},
)  # fmt: skip


def test_forged_rows_with_right_checksums_are_passed_over(tmp_path, record_property):
    rng = random.Random(9)
    with Store(tmp_path / "c") as store:
        store.append(KEY, good(CONFIGS[3], 500), SOFT)
    path = path_of(store, "shard")
    whole = taken(path)
    times = count(sample=200, soak=10_000) // 10
    for _ in range(times):
        forged = b""
        for change in rng.sample(FORGED, 10):
            config = {**rng.choice(CONFIGS), **change}
            data = good(CONFIGS[0], 0.001).data() | {"cfg": config, "round": rng.choice((0, 2**53))}
            forged += lines.encode(canonical(data), lines.seed(KEY.id))
        put(path, whole + forged)
        answer = Ladder([Store(tmp_path / "c", readonly=True)]).lookup(KEY, SOFT, SPACE, DEFAULT)
        assert answer.config == CONFIGS[3]
    record_property("forged rows", times * 10)


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"a":' * 50_000, b'{"v":1,"cfg":' + b"9" * 5000 + b"}", b"NaN", b"\xff"]
)
def test_json_bombs_with_right_checksums(store, tmp_path, body):
    path = path_of(store, "shard")
    line = b"%08x %b\n" % (zlib.crc32(body, lines.seed(KEY.id)), body)
    put(path, taken(path) + line)

    assert set(looked_at(tmp_path / "c")) == MEASURED
    manifest = path_of(store, "manifest.json")
    put(manifest, body)
    looked_at(tmp_path / "c")
