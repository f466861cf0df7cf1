"""Seeds from elsewhere: nearest keys first, in the order that `docs/tuning.md` states."""

from dataclasses import replace

from tests.cache.examples import A100, CONFIGS, H100, KEY, SOFT, good
from weft.autotune.space.neighbours import neighbours
from weft.autotune.space.seeds import MOST_SEEDS
from weft.cache.key import Soft
from weft.cache.sources import export
from weft.cache.store import Store

NEAR = (
    KEY,
    replace(KEY, bucket=(("head", 64), ("seq", 8192))),
    KEY.on(H100),
    replace(KEY, triton="3.6.0", ptxas="12.9"),
    KEY.on(A100),
    replace(KEY, kernel="f" * 32, dtypes="f16"),
)
FAR = replace(KEY, skeleton="scan")


def filled(root, keys, each=1):
    store = Store(root)
    for place, key in enumerate(keys):
        for k in range(each):
            store.append(key, good(CONFIGS[each * place + k], 10.0 + k), SOFT)
    return store


def test_the_nearest_key_comes_first(tmp_path):
    store = filled(tmp_path, [FAR, *reversed(NEAR)])
    assert neighbours([store], KEY, SOFT) == CONFIGS[len(NEAR) : 0 : -1]


def test_keys_of_one_rung_take_turns_and_no_more_are_taken_than_a_search_tries(tmp_path):
    shapes = [replace(KEY, bucket=(("head", 64), ("seq", 2**k))) for k in range(6)]
    found = neighbours([filled(tmp_path, shapes, each=3)], KEY, SOFT)
    firsts = [CONFIGS[3 * place] for place in range(6)]
    assert len(found) == MOST_SEEDS
    assert all(config in found[:6] for config in firsts)


def test_the_same_configuration_counts_once_whichever_source_has_it(tmp_path):
    store = filled(tmp_path, NEAR[:2])
    assert neighbours([store, export(store)], KEY, Soft("another")) == CONFIGS[:2]
