"""The ladder: which rung answers, what it says, and that a lookup is quick."""

import os
from dataclasses import replace

import pytest

from tests.cache.examples import A100, CONFIGS, DEFAULT, H100, KEY, OTHER_SOFT, SOFT, SPACE, good, without_sync
from tests.effort import counted
from weft.cache import lines
from weft.cache.answer import Rung, require
from weft.cache.canonical import canonical
from weft.cache.ladder import Ladder
from weft.cache.pack import Entry, Pack
from weft.cache.place import forget_said
from weft.cache.space import within
from weft.cache.store import Store
from weft.errors import CheckFailed


@pytest.fixture(autouse=True)
def _said():
    forget_said()


def filled(tmp_path, *entries) -> Store:
    store = Store(tmp_path / "c")
    for key, config, soft in entries:
        store.append(key, good(config), soft)
    store.flush()
    return store


def ask(*sources, key=KEY, space=SPACE, **more):
    return Ladder(sources).lookup(key, SOFT, space, DEFAULT, **more)


def at(seq: int, key=KEY):
    return replace(key, bucket=(("head", 64), ("seq", seq)))


OLD = replace(KEY, triton="3.6.0", ptxas="12.9")
NEIGHBOURS = [
    (Rung.EXACT, KEY, SOFT),
    (Rung.BUCKET, at(8192), SOFT),
    (Rung.STALE, KEY, OTHER_SOFT),
    (Rung.OLDER, OLD, SOFT),
    (Rung.SIBLING, KEY.on(H100), SOFT),
]


@pytest.mark.parametrize("first", range(len(NEIGHBOURS)))
def test_the_first_rung_that_has_something_answers(tmp_path, first):
    found = [(key, CONFIGS[i], soft) for i, (_, key, soft) in enumerate(NEIGHBOURS)]
    answer = ask(filled(tmp_path, *reversed(found[first:])))

    assert answer.rung is NEIGHBOURS[first][0]
    assert answer.config == CONFIGS[first]
    assert answer.hit == (first in (0, 2) or (first == 1))  # the stale one meets the hard key behind the bucket
    assert answer.source == "store"
    assert answer.us == pytest.approx(10.0)


def test_the_order_of_the_rungs():
    steps = [str(r) for r in Rung]

    assert steps == ["exact", "bucket", "stale", "older triton", "sibling gpu", "analytic", "default"]
    assert all(r.means for r in Rung)
    assert [r.step for r in Rung] == sorted(r.step for r in Rung)


def test_without_measurements_the_model_answers_and_then_the_default(tmp_path):
    store = filled(tmp_path)

    assert ask(store, analytic=CONFIGS[7]).rung is Rung.ANALYTIC
    assert ask(store, analytic=lambda: CONFIGS[7]).config == CONFIGS[7]
    assert ask(store, analytic=lambda: None).rung is Rung.DEFAULT
    assert ask(store).config == DEFAULT


@pytest.mark.parametrize(
    "field", ["skeleton", "kernel", "dtypes", "layout", "alignment", "codegen", "policy", "fp_fusion"]
)
def test_these_fields_are_never_forgiven_but_named(tmp_path, field):
    value = not KEY.fp_fusion if field == "fp_fusion" else f"{getattr(KEY, field)}x"
    answer = ask(filled(tmp_path, (replace(KEY, **{field: value}), CONFIGS[1], SOFT)))

    assert answer.rung is Rung.DEFAULT
    assert [name for name, _, _ in answer.differs] == [field]
    assert f"nearest key differs in {field}" in answer.line("attention")


def test_another_architecture_never_answers(tmp_path):
    answer = ask(filled(tmp_path, (KEY.on(A100), CONFIGS[1], SOFT)))

    assert answer.rung is Rung.DEFAULT
    assert {name for name, _, _ in answer.differs} == {"arch", "gpu", "sms", "shared"}


def test_the_nearest_shape_answers(tmp_path):
    store = filled(tmp_path, (at(1024), CONFIGS[1], SOFT), (at(8192), CONFIGS[2], SOFT), (at(65536), CONFIGS[3], SOFT))

    assert ask(store).config == CONFIGS[2]
    assert ask(store, key=at(40000)).config == CONFIGS[3]
    assert ask(store, key=at(1)).config == CONFIGS[1]


def test_shapes_of_other_dims_are_not_compared(tmp_path):
    answer = ask(filled(tmp_path, (replace(KEY, bucket=(("seq", 4096),)), CONFIGS[1], SOFT)))

    assert answer.rung is Rung.DEFAULT
    assert "bucket" in answer.why()


def test_the_newest_older_triton_answers_before_a_newer_one(tmp_path):
    versions = {"3.6.0": 1, "3.8.1": 2, "3.10.0": 3, "3.8.0": 4}
    store = filled(tmp_path, *((replace(KEY, triton=v), CONFIGS[i], SOFT) for v, i in versions.items()))

    assert ask(store).config == CONFIGS[versions["3.8.1"]]
    only_newer = filled(tmp_path / "n", (replace(KEY, triton="3.10.0"), CONFIGS[3], SOFT))
    assert ask(only_newer).config == CONFIGS[3]


def test_the_sibling_with_most_in_common_answers(tmp_path):
    store = filled(
        tmp_path,
        (KEY.on(replace(H100, sms=10, gpu="NVIDIA H100 slice", partition="1g.10gb")), CONFIGS[1], SOFT),
        (KEY.on(H100), CONFIGS[2], SOFT),
    )

    assert ask(store).config == CONFIGS[2]


def test_a_stale_answer_says_what_changed(tmp_path):
    answer = ask(filled(tmp_path, (KEY, CONFIGS[1], OTHER_SOFT)))

    assert (answer.rung, answer.hit) == (Rung.STALE, True)
    assert answer.differs == (("driver", "550.54", "560.10"),)
    assert answer.line("attention") == (
        "attention: stale configuration from store; it differs in driver (560.10, not 550.54); "
        "run weft tune SPEC --target sm_90"
    )


def test_the_store_is_asked_before_packs_on_each_rung_but_no_rung_is_skipped(tmp_path):
    pack = Pack.of([Entry.of(KEY, [good(CONFIGS[1]).under(SOFT.id)], {SOFT.id: SOFT})])
    store = filled(tmp_path, (at(8192), CONFIGS[2], SOFT))

    assert ask(store, pack).config == CONFIGS[1]
    store.append(KEY, good(CONFIGS[3], 99), SOFT)
    assert ask(store, pack).config == CONFIGS[3]
    store.close()


def test_a_configuration_outside_the_space_is_passed_over(tmp_path):
    store = Store(tmp_path / "c")
    bad = [{"BLOCK_M": 7}, {**CONFIGS[0], "BLOCK_M": 10**9}, {**CONFIGS[0], "BLOCK_M": True}, {**CONFIGS[0], "x": "y"}]
    for i, config in enumerate([*bad, CONFIGS[3]]):
        store.append(KEY, good(config, 1 + i), SOFT)

    assert ask(store).config == CONFIGS[3]
    answer = ask(store, space={**SPACE, "BLOCK_M": [256]})
    assert (answer.rung, answer.config, answer.hit, answer.refused) == (Rung.DEFAULT, DEFAULT, False, 5)
    assert "the space refuses all 5" in answer.why()
    store.close()


def test_a_space_that_cannot_judge_refuses(tmp_path):
    store = filled(tmp_path, (KEY, {"BLOCK_M": "text"}, SOFT))

    assert ask(store, space=lambda c: c["BLOCK_M"] * 2 < 100 or c["none"]).rung is Rung.DEFAULT
    assert not within({"a": [1]})({"a": 1.0})
    assert within({"a": [1]}, lambda c: c["a"] == 1)({"a": 1})


def test_seeds_come_from_the_nearest_first_and_fit_the_space(tmp_path):
    store = filled(
        tmp_path,
        (replace(KEY, kernel="f" * 32, policy="other"), CONFIGS[6], SOFT),
        (KEY.on(H100), CONFIGS[5], SOFT),
        (KEY.on(A100), CONFIGS[9], SOFT),
        (OLD, CONFIGS[4], SOFT),
        (at(1 << 20), CONFIGS[3], SOFT),
        (at(8192), CONFIGS[2], SOFT),
        (at(8193), CONFIGS[2], SOFT),
        (at(4095), {**CONFIGS[1], "BLOCK_M": 7}, SOFT),
        (KEY, CONFIGS[1], OTHER_SOFT),
    )

    assert Ladder([store]).seeds(KEY, SOFT, SPACE) == [CONFIGS[i] for i in (1, 2, 3, 4, 5, 6)]
    assert Ladder([store]).seeds(KEY, SOFT, SPACE, most=3) == [CONFIGS[i] for i in (1, 2, 3)]


def test_an_answer_is_kept_until_something_is_written(tmp_path):
    store = filled(tmp_path, (KEY, CONFIGS[1], SOFT))
    ladder = Ladder([store])
    judge = within(SPACE)
    first = ladder.lookup(KEY, SOFT, judge, DEFAULT)

    assert ladder.lookup(KEY, SOFT, judge, DEFAULT) is first
    assert ladder.lookup(KEY, SOFT, within(SPACE), DEFAULT) is first
    assert ladder.lookup(KEY, SOFT, lambda c: c["BLOCK_M"] == 128, DEFAULT).config == DEFAULT
    with Store(tmp_path / "c") as other:
        other.append(KEY, good(CONFIGS[2], 1), SOFT)
    assert ladder.lookup(KEY, SOFT, judge, DEFAULT).config == CONFIGS[2]
    store.append(KEY, good(CONFIGS[3], 0.5), SOFT)
    assert ladder.lookup(KEY, SOFT, judge, DEFAULT).config == CONFIGS[3]
    store.close()


def test_a_miss_is_looked_up_again_when_another_process_tunes(tmp_path):
    ladder = Ladder([Store(tmp_path / "c")])
    assert ladder.lookup(KEY, SOFT, SPACE, DEFAULT).rung is Rung.DEFAULT
    assert ladder.lookup(KEY, SOFT, SPACE, DEFAULT).rung is Rung.DEFAULT
    filled(tmp_path, (KEY, CONFIGS[1], SOFT)).close()

    assert ladder.lookup(KEY, SOFT, SPACE, DEFAULT).rung is Rung.EXACT


def test_a_kernel_that_is_not_tuned_is_told_in_one_line(tmp_path):
    answer = ask(filled(tmp_path))

    assert answer.line("mlp") == "mlp: default configuration; no key is known; run weft tune SPEC --target sm_90"


def test_what_must_be_tuned_and_is_not_is_named(tmp_path):
    store = filled(tmp_path, (KEY, CONFIGS[1], OTHER_SOFT))
    hit, miss = ask(store), ask(store, key=at(8192))

    require({"attention": hit})
    with pytest.raises(CheckFailed, match=r"1 of 2 kernels are not tuned:\n  norm: stale.*bucket") as failed:
        require({"attention": hit, "norm": miss})
    assert failed.value.exit_code == 1


def test_a_tampered_index_misleads_nobody(tmp_path):
    store = filled(tmp_path, *((at(2**i), CONFIGS[i], SOFT) for i in range(12)))
    path = os.path.join(store.top, "index.json")
    store.index()
    store.close()
    good_index = store.index().data()
    swapped = good_index | {"ids": list(reversed(good_index["ids"]))}
    typed = good_index | {"tables": {name: [["x"]] * len(t) for name, t in good_index["tables"].items()}}
    short = good_index | {"columns": {"bucket": [0]}}
    for forged in (swapped, typed, short, [], {"tables": 3}, good_index | {"columns": {"bucket": ["a"] * 12}}):
        with open(path, "wb") as file:
            file.write(lines.encode(canonical(forged), lines.seed("index")))
        answer = ask(Store(tmp_path / "c"))
        assert answer.rung in (Rung.BUCKET, Rung.DEFAULT)
        if answer.rung is Rung.BUCKET:
            assert answer.key.differs(KEY)
            assert answer.config == CONFIGS[dict(answer.key.bucket)["seq"].bit_length() - 1]


@pytest.mark.parametrize("shape", ["one key, 1000 rows", "1000 keys"])
def test_lookups_are_few_calls(tmp_path, shape, record_property):
    store = Store(tmp_path / "c", ops=without_sync())
    for i in range(1000):
        key = KEY if shape.startswith("one") else at(i + 1)
        store.append(key, good({"BLOCK_M": i}, 10 + i % 97), SOFT)
    store.close()
    store.index()
    judge = within({"BLOCK_M": range(1000)})
    ladder = Ladder([Store(tmp_path / "c")])
    key = KEY if shape.startswith("one") else at(7)
    assert ladder.lookup(key, SOFT, judge, DEFAULT).rung is Rung.EXACT

    def cold(key):
        return counted(lambda: Ladder([Store(tmp_path / "c")]).lookup(key, SOFT, judge, DEFAULT))[1]

    beside = key.on(H100)
    assert ladder.lookup(beside, SOFT, judge, DEFAULT).rung is Rung.SIBLING
    found = {
        "hot": counted(ladder.lookup, key, SOFT, judge, DEFAULT)[1],
        "cold": cold(key),
        "miss": cold(replace(KEY, kernel="f" * 32)),
        "sibling": cold(beside),
    }
    record_property("calls", str(found))

    # What a lookup may cost does not grow with a key's rows; a miss and a sibling read one line of 1,000 keys' index.
    limits = {"hot": 20, "cold": 1_500, "miss": 6_000, "sibling": 7_000}
    assert all(found[rung] <= limit for rung, limit in limits.items()), found
