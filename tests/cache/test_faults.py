"""Every call to the system fails or kills the process once: nothing acknowledged is lost, nothing raises, nothing is
invented."""

import pytest

from tests.cache.examples import CONFIGS, DEFAULT, KEY, SOFT, SPACE, good
from tests.cache.faulty import CRASHES, MODES, Crash, Faulty
from tests.campaign import count
from weft.cache.ladder import Ladder
from weft.cache.place import forget_said
from weft.cache.store import Store

STEP = count(sample=4, soak=1)
EARLIER = good(CONFIGS[0], 50)
LATER = [good(CONFIGS[i], 40 - i) for i in (1, 2, 3)]


def live(root, ops, acknowledged: list, said: list) -> bool | None:
    """A tuner's life: look up, append, look up, close. None when it was killed."""
    store = Store(root, ops=ops, notify=said.append)
    try:
        Ladder([store]).lookup(KEY, SOFT, SPACE, DEFAULT)
        for row in LATER:
            if store.append(KEY, row, SOFT):
                acknowledged.append(row)
        answer = Ladder([store]).lookup(KEY, SOFT, SPACE, DEFAULT)
        assert answer.config in ([EARLIER.config, DEFAULT] + [r.config for r in LATER])
        store.index()
        return store.close()
    except Crash:
        return None


def calls_of_a_life(folder) -> int:
    ops = Faulty(0, "crash before")
    live(folder, ops, [], [])
    return ops.calls


def survives(root, at: int, mode: str, stays: bool, before: bool) -> list[str]:
    forget_said()
    acknowledged, said = [], []
    if before:
        with Store(root) as store:
            assert store.append(KEY, EARLIER, SOFT)
        acknowledged.append(EARLIER)
    done = live(root, Faulty(at, mode, stays), acknowledged, said)
    expected = {row.under(SOFT.id).text for row in (acknowledged if not done else [*acknowledged, *LATER])}
    possible = {row.under(SOFT.id).text for row in (EARLIER, *LATER)}
    reader = Store(root, notify=said.append)
    found = {row.text for row in reader.rows(KEY)}
    assert expected <= found <= possible
    answer = Ladder([reader]).lookup(KEY, SOFT, SPACE, DEFAULT)
    configs = [row.config for row in reader.rows(KEY)]
    assert answer.config in configs if configs else answer.config == DEFAULT
    with Store(root) as again:  # and the next tuner can go on
        assert again.append(KEY, good(CONFIGS[9], 1), SOFT)
    assert Ladder([Store(root)]).lookup(KEY, SOFT, SPACE, DEFAULT).config == CONFIGS[9]
    return said


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("before", [False, True], ids=["new", "used"])
def test_every_call_fails_once(tmp_path, mode, before, record_property):
    calls = calls_of_a_life(tmp_path / "count")
    points = range(1 + MODES.index(mode) % STEP, calls + 1, STEP)
    for at in points:
        survives(tmp_path / f"{at}", at, mode, False, before)
    record_property("fault points", len(points))


@pytest.mark.parametrize("mode", [m for m in MODES if m not in CRASHES and not m.startswith("EINTR")])
def test_every_call_fails_from_one_on(tmp_path, mode):
    for at in range(1, calls_of_a_life(tmp_path / "count") + 1, 3 * STEP):
        survives(tmp_path / f"{at}", at, mode, True, True)


def test_a_full_disk_is_said_once_and_the_rows_stay_in_memory(tmp_path):
    forget_said()
    said = []
    store = Store(tmp_path / "c", ops=Faulty(1, "ENOSPC", stays=True), notify=said.append)
    for row in LATER:
        assert not store.append(KEY, row, SOFT)

    assert len(store.rows(KEY)) == len(LATER)
    assert Ladder([store]).lookup(KEY, SOFT, SPACE, DEFAULT).config == LATER[-1].config
    assert not store.close()
    assert len([line for line in said if "kept in memory" in line and "No space left" in line]) == 1
    assert any("3 results could not be written" in line for line in said)


def test_rows_held_in_memory_reach_the_disk_when_there_is_room_again(tmp_path):
    forget_said()
    ops = Faulty(1, "ENOSPC", stays=True)
    store = Store(tmp_path / "c", ops=ops, notify=lambda line: None)
    assert not store.append(KEY, LATER[0], SOFT)
    ops.at, ops.stays = 0, False
    assert store.append(KEY, LATER[1], SOFT)
    assert store.close()

    assert [row.config for row in Store(tmp_path / "c").rows(KEY)] == [row.config for row in LATER[:2]]
