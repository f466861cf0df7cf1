"""The store: what is appended is found again, by any process, and what is best is decided without a clock."""

import os
import random
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.cache.examples import CONFIGS, KEY, OTHER_SOFT, SOFT, good, sample
from weft.cache import lines
from weft.cache.canonical import canonical
from weft.cache.place import forget_said
from weft.cache.row import Row
from weft.cache.store import Store
from weft.cache.summary import KEPT, summarise


@pytest.fixture(autouse=True)
def _said():
    forget_said()


def shards(store: Store, key=KEY) -> list[str]:
    folder = os.path.join(store.path(key), "shards")
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder))]


def texts(rows) -> list[str]:
    return sorted(row.text for row in rows)


def test_rows_come_back_in_another_store(tmp_path):
    rng = random.Random(0)
    rows = [sample(rng) for _ in range(50)]
    with Store(tmp_path / "c") as store:
        assert all(store.append(KEY, row, SOFT) for row in rows)
        assert texts(store.rows(KEY)) == texts({r.under(SOFT.id).text: r.under(SOFT.id) for r in rows}.values())

    again = Store(tmp_path / "c")
    assert texts(again.rows(KEY)) == texts(store.rows(KEY))
    assert again.softs(KEY) == {SOFT.id: SOFT}
    assert list(again.known()) == [KEY]
    assert again.key(KEY.id) == KEY


def test_folders_and_files_are_private(tmp_path):
    with Store(tmp_path / "c") as store:
        store.append(KEY, good(CONFIGS[0]), SOFT)

    for folder, _, files in os.walk(tmp_path / "c"):
        assert os.stat(folder).st_mode & 0o777 == 0o700
        assert all(os.stat(os.path.join(folder, name)).st_mode & 0o777 == 0o600 for name in files)


def test_each_process_has_a_shard_of_its_own(tmp_path):
    with Store(tmp_path / "c") as store:
        store.append(KEY, good(CONFIGS[0]), SOFT)
        pid = os.fork()
        if pid == 0:
            done = store.append(KEY, good(CONFIGS[1]), SOFT)
            os._exit(0 if done else 1)
        assert os.waitpid(pid, 0)[1] == 0
        store.append(KEY, good(CONFIGS[2]), SOFT)

        assert len(shards(store)) == 2
        assert len(Store(tmp_path / "c").rows(KEY)) == 3


def test_a_reader_sees_what_another_store_appends(tmp_path):
    writer, reader = Store(tmp_path / "c"), Store(tmp_path / "c")
    for i, config in enumerate(CONFIGS[:5]):
        writer.append(KEY, good(config, 10 - i), SOFT)
        assert len(reader.rows(KEY)) == i + 1
        assert reader.summary(KEY).tops[SOFT.id][0].config == config
    writer.close()


def test_a_torn_tail_is_waited_for_and_a_new_line_heals_it(tmp_path):
    store = Store(tmp_path / "c")
    store.append(KEY, good(CONFIGS[0]), SOFT)
    store.close()
    path = shards(store)[0]
    with open(path, "rb") as file:
        whole = file.read()
    line = whole.splitlines(keepends=True)[-1]
    with open(path, "wb") as file:
        file.write(whole + line.replace(b"16", b"32")[: len(line) // 2])
    reader = Store(tmp_path / "c")

    assert len(reader.rows(KEY)) == 1
    assert reader.health(KEY).damaged == 0
    with open(path, "ab") as file:
        file.write(b"\n" + line)
    assert len(reader.rows(KEY)) == 1
    assert reader.health(KEY).damaged == 1


def test_another_keys_shard_is_worth_nothing_here(tmp_path):
    other = replace(KEY, kernel="f" * 32)
    with Store(tmp_path / "c") as store:
        store.append(KEY, good(CONFIGS[0]), SOFT)
        store.append(other, good(CONFIGS[1]), SOFT)
    os.replace(
        shards(store, other)[0], os.path.join(store.path(KEY), "shards", os.path.basename(shards(store, other)[0]))
    )

    again = Store(tmp_path / "c")
    assert [row.config for row in again.rows(KEY)] == [CONFIGS[0]]
    assert again.health(KEY).damaged == 2  # the header and the row


def test_rows_of_other_versions_are_counted_and_left_out(tmp_path):
    with Store(tmp_path / "c") as store:
        store.append(KEY, good(CONFIGS[0]), SOFT)
    with open(shards(store)[0], "ab") as file:
        for version in (0, 2, 999):
            file.write(lines.encode(canonical(good(CONFIGS[1]).data() | {"v": version}), lines.seed(KEY.id)))

    again = Store(tmp_path / "c")
    assert len(again.rows(KEY)) == 1
    assert again.health(KEY).foreign == 3


def test_best_is_derived_again_whenever_it_is_not_of_these_shards(tmp_path):
    with Store(tmp_path / "c") as store:
        store.append(KEY, good(CONFIGS[0], 10), SOFT)
    best = os.path.join(store.path(KEY), "best.json")
    with open(best, "rb") as file:
        old = file.read()
    with Store(tmp_path / "c") as store:
        store.append(KEY, good(CONFIGS[1], 5), SOFT)
    with open(best, "wb") as file:
        file.write(old)

    assert Store(tmp_path / "c").summary(KEY).tops[SOFT.id][0].config == CONFIGS[1]
    with open(best, "rb") as file:
        assert file.read() != old
    os.unlink(best)
    assert Store(tmp_path / "c").summary(KEY).tops[SOFT.id][0].config == CONFIGS[1]
    assert os.path.exists(best)


def test_wrong_once_or_crashed_twice_never_wins():
    fast, crash, right = CONFIGS[:3]
    rows = [good(fast, 1), good(crash, 2), good(right, 3), Row.of(fast, "wrong"), Row.of(crash, "crash")]

    assert [b.config for b in summarise(rows).tops[""]] == [crash, right]
    rows.append(Row.of(crash, "timeout"))
    assert [b.config for b in summarise(rows).tops[""]] == [right]


def test_wrong_under_one_driver_is_wrong_under_all():
    rows = [good(CONFIGS[0]).under("aa"), Row.of(CONFIGS[0], "non_finite").under("bb")]

    assert summarise(rows).tops == {}


def test_the_last_finals_decide_and_in_them_the_declared_winner():
    a, b, c = CONFIGS[:3]
    rows = [
        good(c, 1), good(a, 5, src="race", round=1), good(b, 6, src="race", round=1), good(b, 6, src="final", round=1),
    ]  # fmt: skip
    assert [x.config for x in summarise(rows).tops[""]] == [b, a, c]
    rows += [good(a, 7, src="race", round=2), good(a, 7, src="final", round=2)]
    assert summarise(rows).tops[""][0].config == a


def test_the_clock_decides_nothing():
    rows = [good(config, 10 + i, t=float(t)) for i, (config, t) in enumerate(zip(CONFIGS, (4e9, 0, 1e9, 9e17)))]

    assert [b.config for b in summarise(rows).tops[""]] == CONFIGS[:4]


def test_the_order_of_rows_does_not_count():
    rng = random.Random(3)
    rows = [sample(rng) for _ in range(300)]
    found = summarise(rows)
    for _ in range(5):
        rng.shuffle(rows)
        assert summarise(rows) == found
    assert all(len(top) <= KEPT for top in found.tops.values())


def test_slow_or_untimed_rows_do_not_win():
    assert summarise([Row.of(CONFIGS[0], "slow", times_us=[1.0]), Row.of(CONFIGS[1], "ok", src="prepare")]).tops == {}


def test_rows_of_another_soft_part_are_kept_apart(tmp_path):
    with Store(tmp_path / "c") as store:
        store.append(KEY, good(CONFIGS[0], 10), SOFT)
        store.append(KEY, good(CONFIGS[1], 5), OTHER_SOFT)

    found = Store(tmp_path / "c").summary(KEY)
    assert found.tops[SOFT.id][0].config == CONFIGS[0]
    assert [name for name, _ in found.near(SOFT)] == [SOFT.id, OTHER_SOFT.id]
    assert found.softs == {SOFT.id: SOFT, OTHER_SOFT.id: OTHER_SOFT}


def test_a_store_that_only_reads_writes_nothing(tmp_path):
    with Store(tmp_path / "c") as store:
        store.append(KEY, good(CONFIGS[0]), SOFT)
    os.unlink(os.path.join(store.path(KEY), "best.json"))
    before = sorted(os.listdir(store.path(KEY)))
    reader = Store(tmp_path / "c", readonly=True)

    assert not reader.append(KEY, good(CONFIGS[1], 1), SOFT)
    assert reader.summary(KEY).tops[SOFT.id][0].config == CONFIGS[1]
    assert sorted(os.listdir(store.path(KEY))) == before
    assert len(Store(tmp_path / "c").rows(KEY)) == 1


def test_the_index_holds_all_keys_and_forgets_those_that_are_gone(tmp_path):
    keys = [replace(KEY, bucket=(("seq", n),)) for n in range(1, 13)]
    with Store(tmp_path / "c") as store:
        for key in keys:
            store.append(key, good(CONFIGS[0]), SOFT)
        assert store.index().rows.keys() == {key.id for key in keys}
    assert os.path.exists(os.path.join(store.top, "index.json"))
    os.rename(store.path(keys[0]), tmp_path / "away")

    assert Store(tmp_path / "c").index().rows.keys() == {key.id for key in keys[1:]}


def test_a_lookup_needs_the_standard_library_only():
    code = (
        "import sys; from weft.cache import sources, store, t4, lease, binaries; sources.ladder;"
        "print([m for m in ('torch', 'sympy', 'optuna', 'numpy', 'pydantic', 'networkx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (done.stdout.strip(), done.stderr) == ("[]", "")
