"""Recorded tables: reading them, and how good searches on them are. The real ones are not shipped: skip if absent."""

import gzip
import json
import os
from pathlib import Path

import pytest

from tests.campaign import SOAK, count
from weft.autotune.search.replay import Replay, load
from weft.autotune.search.replays import foreign, replays
from weft.autotune.types import Fidelity, Level, Status
from weft.cache.store import Store
from weft.errors import UsageError

FOLDER = Path(os.environ.get("REPLAY_TABLES", Path(__file__).parents[3] / "shared/data/replay"))
TABLES = sorted(FOLDER.glob("*.json.gz"))
recorded = pytest.mark.skipif(not TABLES, reason="the recorded tables are not here")


def kernel_tuner(path, times, close=True):
    cache = {
        f"{x},{y}": {"x": x, "y": y, "time": t, **({"times": [t, t * 1.1, t * 0.9]} if isinstance(t, float) else {})}
        for (x, y), t in times.items()
    }
    document = {
        "device_name": "Made\x1bUp", "kernel_name": "k", "problem_size": [1], "tune_params_keys": ["x", "y"],
        "tune_params": {"x": [1, 2, 4], "y": [1, 2, 3]}, "objective": "time", "cache": cache,
    }  # fmt: skip
    text = json.dumps(document)
    path.write_text(text if close else text.removesuffix("}}") + ",")
    return path


TIMES = {(x, y): float(x * 3 + y) for x in (1, 2, 4) for y in (1, 2, 3)} | {(4, 3): "CompilationFailedConfig"}


@pytest.mark.parametrize("close", [True, False])
def test_a_cache_file_of_kernel_tuner_is_read_even_without_its_last_braces(tmp_path, close):
    table = load(kernel_tuner(tmp_path / "t.json", TIMES, close))
    assert len(table.configs) == 9
    assert table.best_us == 4000.0
    assert table.device == "Made Up"
    assert table.outcomes[8].status is Status.COMPILE
    assert table.fraction({"y": 2, "x": 1}) == 0.8
    assert table.fraction({"x": 4, "y": 3}) == table.fraction(None) == table.fraction({"x": 9, "y": 9}) == 0.0
    assert table.top(2) == ({"x": 1, "y": 1}, {"x": 1, "y": 2})
    packed = tmp_path / "t.json.gz"
    packed.write_bytes(gzip.compress((tmp_path / "t.json").read_bytes()))
    assert load(packed).configs == table.configs


def test_t4_results_are_read(tmp_path):
    results = [
        {
            "configuration": {"x": x},
            "invalidity": "correct" if x else "runtime",
            "correctness": 1,
            "times": {
                "compilation_time": 1,
                "runtimes": [x * 1.0] * 3,
                "framework": 0,
                "search_algorithm": 0,
                "validation": 0,
            },
            "measurements": [],
            "objectives": ["time"],
        }
        for x in (0, 1, 2)
    ]
    path = tmp_path / "t4.json"
    path.write_text(json.dumps({"schema_version": "1.0.0", "results": results}))
    table = load(path)
    assert (table.best_us, len(table.configs), table.outcomes[0].status) == (1000.0, 3, Status.LAUNCH)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "not json", "\xff\xfe", '{"cache": {}, "tune_params_keys": []}', '{"results": []}',
     '{"cache": {"1": {"x": 1, "time": "nan"}}, "tune_params_keys": ["x"]}',
     '{"cache": {"1": {"x": [1], "time": 1.0}}, "tune_params_keys": ["x"]}', "[" * 100_000],
)  # fmt: skip
def test_what_is_no_table_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=r"^bad\.json: [^\n]+$"):
        load(path)
    with pytest.raises(UsageError, match="No such file"):
        load(tmp_path / "none.json")


def test_damaged_archives_are_refused(tmp_path):
    path = tmp_path / "t.json.gz"
    for data in (b"\x1f\x8b", gzip.compress(b"{}")[:-9], b"\x1f\x8b" + os.urandom(50)):
        path.write_bytes(data)
        with pytest.raises(UsageError):
            load(path)


def test_a_hole_in_the_table_is_a_failure_and_is_counted(tmp_path):
    runner = Replay(load(kernel_tuner(tmp_path / "t.json", TIMES)))
    outcome = runner.time({"x": 8, "y": 8}, Fidelity(Level.LAUNCH, 1, 1.0))
    assert (outcome.status, runner.holes) == (Status.COMPILE, 1)


def test_seeds_from_elsewhere_are_those_the_table_has(tmp_path):
    table = load(kernel_tuner(tmp_path / "a.json", TIMES))
    other = load(kernel_tuner(tmp_path / "b.json", {k: v for k, v in TIMES.items() if k[0] != 1} | {(8, 8): 0.1}))
    assert foreign(table, [other])[0] == {"x": 2, "y": 1}
    assert {"x": 8, "y": 8} not in foreign(table, [other])


def test_a_kept_replay_is_gone_on_with_and_another_is_another_key(tmp_path):
    table = load(kernel_tuner(tmp_path / "t.json", TIMES))
    with Store(tmp_path / "store") as store:
        first = replays(table, trials=4, sampler="random", store=store)
        second = replays(table, trials=4, sampler="random", store=store)
        other = replays(table, trials=5, sampler="random", store=store)
    assert (first.results[0].recorded, second.results[0].recorded, other.results[0].recorded) == (0, 4, 0)
    assert first.curves == second.curves


@recorded
@pytest.mark.parametrize("path", TABLES, ids=lambda p: p.name.removesuffix(".json.gz"))
def test_a_pool_that_fits_the_budget_gives_the_optimum_of_a_real_table(path):
    table = load(path)
    part = {i for i, _ in enumerate(table.configs) if i % (len(table.configs) // 150) == 0}
    small = type(table)(
        table.label, "", "", tuple(table.configs[i] for i in part), tuple(table.outcomes[i] for i in part)
    )
    for sampler in ("pool", "random"):
        found = replays(small, seeds=3, trials=len(small.configs), sampler=sampler)
        assert found.winners == [1.0] * 3


@recorded
def test_replayed_searches_reach_the_goals():
    """A sample of `python -m benchmarks.replay`, which has every table, every sampler and all seeds."""
    seeds = count(sample=2, soak=10)
    chosen = TABLES if SOAK else [p for p in TABLES if p.name.startswith(("conv", "gemm"))][:3]
    cold = [replays(load(p), seeds=seeds).fraction(100) for p in chosen]
    chance = [replays(load(p), seeds=5 * seeds, sampler="random").fraction(100) for p in chosen]
    assert sum(cold) / len(cold) >= 0.93
    assert sum(cold) / len(cold) > sum(chance) / len(chance) + 0.03
