"""Packs: one file, the same content the same bytes, merged as sets; T4 files there and back; frozen snapshots."""

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cache.examples import CONFIGS, DEFAULT, H100, KEY, OTHER_SOFT, SOFT, SPACE, good, sample, without_sync
from tests.campaign import count
from weft.cache import pack, sources, t4
from weft.cache.answer import Rung
from weft.cache.pack import Entry, Pack
from weft.cache.place import forget_said
from weft.cache.row import Row, Status
from weft.cache.store import Store
from weft.errors import PackError

KEYS = (KEY, KEY.on(H100), replace(KEY, bucket=(("head", 64), ("seq", 8192))))
SOFTS = {SOFT.id: SOFT, OTHER_SOFT.id: OTHER_SOFT}
ROWS = [sample(random.Random(i)).under(random.Random(i).choice(list(SOFTS))) for i in range(40)]


@pytest.fixture(autouse=True)
def _said():
    forget_said()


@st.composite
def packs(draw) -> Pack:
    entries = []
    for key in draw(st.sets(st.sampled_from(KEYS))):
        rows = draw(st.lists(st.sampled_from(ROWS), max_size=8))
        softs = {name: SOFTS[name] for name in draw(st.sets(st.sampled_from(sorted(SOFTS))))}
        entries.append(Entry.of(key, rows, softs))
    made = Pack.of(entries, by=draw(st.sampled_from(["weft 1", "weft 2"])))
    return made if draw(st.booleans()) else replace(made, provenance=frozenset())


SLOW = settings(max_examples=count(sample=30, soak=300))
LAWS = settings(max_examples=count(sample=100, soak=1000))


@LAWS
@given(packs(), packs(), packs())
def test_merging_is_commutative_associative_and_idempotent(a, b, c):
    assert (a | b).text() == (b | a).text()
    assert ((a | b) | c).text() == (a | (b | c)).text()
    assert (a | a).text() == a.text()
    assert ((a | b) | b).text() == (a | b).text()
    assert (a | Pack()).text() == a.text()


@LAWS
@given(packs())
def test_a_pack_comes_back_from_its_bytes(made):
    found, problems = pack.parse(made.text())

    assert problems == []
    assert found == made
    assert found.text() == made.text()
    assert found.sha256 == made.sha256


@SLOW
@given(packs(), packs())
def test_importing_is_merging(tmp_path_factory, a, b):
    root = tmp_path_factory.mktemp("c") / "c"
    with Store(root, ops=without_sync()) as store:
        sources.take(store, a)
        sources.take(store, b)
        assert sources.take(store, a)[0] == 0
    found, wanted = sources.export(Store(root)), a | b
    filled = {name: entry for name, entry in wanted.entries.items() if entry.rows}

    assert found.entries.keys() == filled.keys()
    for name, entry in filled.items():
        assert found.entries[name].rows == entry.rows
        assert found.entries[name].softs == entry.softs


def test_the_file_is_for_others_and_written_as_a_whole(tmp_path):
    made = Pack.of([Entry.of(KEY, ROWS, SOFTS)], by="weft")
    path = tmp_path / "a.weftpack"
    pack.save(str(path), made.text())

    assert path.stat().st_mode & 0o777 == 0o644
    assert pack.read(str(path), made.sha256) == made
    with pytest.raises(PackError, match="has the hash") as failed:
        pack.read(str(path), "0" * 64)
    assert failed.value.exit_code == 3


def test_all_problems_are_told_at_once(tmp_path):
    lines = Pack.of([Entry.of(KEY, ROWS[:3], SOFTS)]).text().splitlines()
    lines[3], lines[5] = b'{"v":1}', b"{"
    path = tmp_path / "bad.weftpack"
    path.write_bytes(b"\n".join(lines) + b"\n")

    with pytest.raises(PackError) as failed:
        pack.read(str(path))
    assert [line for line, _ in failed.value.problems] == [1, 4, 6]
    assert str(failed.value).startswith(f"{path}:1: the hash does not match")


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"[]", b"{}", b"\x80\x04K\x01.", b"#!/bin/sh\n", b'{"schema":"weft.pack/2"}']
)
def test_what_is_no_pack_is_said_to_be_none(data):
    found, problems = pack.parse(data)

    assert found == Pack()
    assert "not a pack" in problems[0][1]


def test_winners_keep_what_a_lookup_would_say():
    made = Pack.of([Entry.of(KEY, ROWS, SOFTS)], by="weft")
    won = made.winners()
    for soft in SOFTS.values():
        a, b = (sources.Ladder((p,)).lookup(KEY, soft, SPACE, DEFAULT) for p in (made, won))
        assert (a.config, a.us, a.rung) == (b.config, b.us, b.rung)

    assert won.rows < made.rows
    assert won.provenance == made.provenance


def test_t4_there_and_back():
    made = Entry.of(KEY, ROWS, SOFTS)
    data = t4.text(made)

    assert t4.looks_like(data)
    assert not t4.looks_like(Pack.of([made]).text())
    assert t4.parse(data, "x.json") == made


INVALIDITY = ["timeout", "compile", "runtime", "correctness", "constraints", "correct"]


def test_a_t4_file_has_the_form_of_the_schema():
    """The rules of T4 results 1.0.0: required fields and their types."""
    found = json.loads(t4.text(Entry.of(KEY, [Row.of(CONFIGS[0], s) for s in Status], SOFTS)))

    assert found["schema_version"] == "1.0.0"
    for result in found["results"]:
        assert {"configuration", "times", "invalidity", "correctness"} <= result.keys()
        assert isinstance(result["timestamp"], str)
        assert isinstance(result["configuration"], dict)
        assert isinstance(result["objectives"], list)
        assert isinstance(result["correctness"], float)
        assert result["invalidity"] in INVALIDITY
        assert isinstance(result["times"]["runtimes"], list)
        for name in ("compilation_time", "framework", "search_algorithm", "validation"):
            assert isinstance(result["times"][name], float)
        for measured in result["measurements"]:
            assert isinstance(measured["name"], str)
            assert isinstance(measured["unit"], str)
            assert isinstance(measured["value"], int | float | str | list)


def theirs(**more) -> dict:
    """A result as Kernel Tuner writes one."""
    return {
        "timestamp": "2023-12-21 10:44:42.236642+00:00",
        "configuration": {"block_size_x": 16, "tile_size_x": 1},
        "times": {"compilation": 661.5, "benchmark": 393.9, "framework": 53.1, "runtimes": [12.25, 12.5, 12.26]},
        "invalidity": "correct",
        "correctness": 1,
        "measurements": [{"name": "time", "value": 12.26, "unit": "ms"}, {"name": "GFLOP/s", "value": 6, "unit": ""}],
        "objectives": ["time"],
    } | more


def test_rows_of_other_tools():
    results = [
        theirs(),
        theirs(invalidity="compile"),
        theirs(times={"runtimes": []}),
        theirs(times={}, measurements=[]),
    ]
    found, wrong = t4.rows(results)

    assert wrong == []
    assert [row.status for row in found] == [Status.OK, Status.COMPILE, Status.OK, Status.INVALID_TIME]
    assert found[0].times_us == (12250.0, 12500.0, 12260.0)
    assert found[0].compile_s == pytest.approx(0.6615)
    assert found[2].times_us == (12260.0,)
    assert all(row.src == "import" for row in found)


@pytest.mark.parametrize(
    "result",
    [
        None, [], {}, {"times": {}}, theirs(invalidity="fine"), theirs(invalidity=["correct"]),
        theirs(configuration={"a": []}), theirs(configuration=None),
        theirs(measurements=[{"name": "weft.row", "value": "{"}]),
        theirs(measurements=[{"name": "weft.row", "value": good(CONFIGS[0]).text}]),
    ],
)  # fmt: skip
def test_results_that_are_none(result):
    found, wrong = t4.rows([result])

    assert found == []
    assert wrong[0].startswith("result 0: ")


def test_a_t4_file_without_a_key_needs_one():
    data = json.dumps({"results": [theirs()], "schema_version": "1.0.0"}).encode()

    with pytest.raises(PackError, match="--key"):
        t4.parse(data, "x.json")
    assert t4.parse(data, "x.json", KEY).key == KEY
    for bad in (b"{", b"{}", b'{"results":3}', b'{"results":[],"schema_version":"9.0.0"}'):
        with pytest.raises(PackError):
            t4.parse(bad, "x.json", KEY)


def test_what_ships_with_weft_answers_below_the_store(tmp_path):
    folder = tmp_path / "pretuned" / KEY.device.slug
    folder.mkdir(parents=True)
    made = Pack.of([Entry.of(KEY, [good(CONFIGS[2]).under(SOFT.id)], {SOFT.id: SOFT})])
    pack.save(str(folder / "a.weftpack"), made.text())
    (folder / "broken.weftpack").write_bytes(made.text()[:-9])
    (folder / "README.md").write_text("not a pack")
    shipped = sources.Pretuned(tmp_path / "pretuned")
    store = Store(tmp_path / "c")

    answer = sources.ladder(store, pretuned=shipped).lookup(KEY, SOFT, SPACE, DEFAULT)
    assert (answer.rung, answer.source, answer.config) == (Rung.EXACT, "pretuned", CONFIGS[2])
    store.append(KEY, good(CONFIGS[3], 99), SOFT)
    assert sources.ladder(store, pretuned=shipped).lookup(KEY, SOFT, SPACE, DEFAULT).config == CONFIGS[3]
    store.close()


def test_what_ships_now_is_whole():
    shipped = sources.Pretuned()

    assert [pack.parse(pack.load(path))[1] for path in shipped.paths()] == [[] for _ in shipped.paths()]
    assert shipped.index().rows.keys() == shipped.pack.entries.keys()


def test_ranks_that_load_one_snapshot_choose_alike(tmp_path):
    store = Store(tmp_path / "c")
    store.append(KEY, good(CONFIGS[1], 10), SOFT)
    made = sources.snapshot(store)
    pack.save(str(tmp_path / "s"), made.text())
    loaded = pack.read(str(tmp_path / "s"), made.sha256)
    store.append(KEY, good(CONFIGS[2], 1), SOFT)
    with sources.frozen(loaded) as ladder:
        assert sources.ladder(store) is ladder
        store.append(KEY, good(CONFIGS[3], 0.1), SOFT)
        assert sources.ladder(store).lookup(KEY, SOFT, SPACE, DEFAULT).config == CONFIGS[1]

    assert sources.ladder(store).lookup(KEY, SOFT, SPACE, DEFAULT).config == CONFIGS[3]
    store.close()
