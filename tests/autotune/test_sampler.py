"""Samplers stay in the pool, never repeat, and honour what is enqueued."""

import itertools
import subprocess
import sys

import numpy as np
import optuna
import pytest

from tests.campaign import count
from weft.autotune.search.sampler import Exhausted, InOrder, PoolSampler, Uniform, Within, make
from weft.autotune.search.study import export, new_study, skip
from weft.autotune.space.encoding import encode, knob
from weft.autotune.types import Pool
from weft.errors import UsageError

POOL = Pool(
    tuple(
        {"BM": m, "BN": n, "warps": w, "mode": mode}
        for m, n, w, mode in itertools.product((16, 32, 64, 128), (16, 32, 64, 128), (1, 2, 4), ("tma", "pointer"))
        if m * n <= 4096
    )
)


def cost(config):
    return 100.0 + abs(np.log2(config["BM"] / 64)) * 40 + abs(np.log2(config["BN"] / 32)) * 30 + 5 * config["warps"]


def asked(sampler, n, tell=cost):
    study, out = new_study(sampler), []
    for _ in range(n):
        trial = study.ask(sampler.space)
        out.append(dict(trial.params))
        us = tell(trial.params)
        study.tell(trial, us) if us is not None else study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return out


@pytest.mark.parametrize("name", ["pool", "random", "all", "tpe", "nsga2"])
def test_every_sampler_proposes_the_whole_pool_once_and_then_stops(name):
    sampler = make(name, POOL, seed=3)
    found = asked(sampler, len(POOL))
    assert sorted(map(str, found)) == sorted(map(str, POOL.configs))
    new_study(sampler)  # another study, the same pool
    with pytest.raises(Exhausted):
        asked(sampler, len(POOL) + 1)


def test_no_proposal_is_infeasible_or_repeated_over_many_asks():
    rng = np.random.default_rng(0)
    for seed in range(count(sample=6, soak=600)):
        kept = rng.random(len(POOL)) < rng.uniform(0.2, 1.0)
        pool = tuple(c for c, k in zip(POOL.configs, kept) if k)
        seeds = tuple(POOL.configs[i] for i in rng.choice(len(POOL), 6))
        failing = rng.random() * 0.6
        found = asked(
            PoolSampler(pool, seed, seeds), len(pool), lambda c, f=failing: None if rng.random() < f else cost(c)
        )
        assert len({str(c) for c in found}) == len(pool) == len(found)
        assert all(c in pool for c in found)


def test_the_same_seed_and_times_give_the_same_proposals_and_another_seed_others():
    first, again, other = (asked(PoolSampler(POOL, s), 40) for s in (1, 1, 2))
    assert first == again != other


def test_the_model_finds_the_optimum_sooner_than_chance():
    best = min(cost(c) for c in POOL.configs)
    within = [min(map(cost, asked(PoolSampler(POOL, s), 25))) == best for s in range(6)]
    assert sum(within) >= 5


@pytest.mark.parametrize("name", ["pool", "random", "all", "tpe"])
def test_enqueued_trials_come_first_and_in_part_are_completed(name):
    sampler = make(name, POOL, 0)
    study = new_study(sampler)
    study.enqueue_trial(POOL.configs[7])
    study.enqueue_trial({"BM": 64, "mode": "tma"})
    whole, part = study.ask(sampler.space), study.ask(sampler.space)
    assert dict(whole.params) == POOL.configs[7]
    assert (part.params["BM"], part.params["mode"]) == (64, "tma")
    assert dict(part.params) in POOL.configs


def test_what_is_enqueued_and_waits_is_not_proposed_by_the_sampler():
    sampler = InOrder(POOL)
    study = new_study(sampler)
    study.enqueue_trial(POOL.configs[0])
    asked_first, second = study.ask(sampler.space), study.ask(sampler.space)
    assert dict(asked_first.params) == POOL.configs[0]
    assert dict(second.params) == POOL.configs[1]


def test_parallel_trials_are_pending_and_differ():
    sampler = PoolSampler(POOL, 0)
    study = new_study(sampler)
    for _ in range(12):
        trial = study.ask(sampler.space)
        study.tell(trial, cost(trial.params))
    running = [dict(study.ask(sampler.space).params) for _ in range(5)]
    assert len({str(c) for c in running}) == 5


def test_a_trial_that_is_skipped_teaches_nothing_and_is_not_repeated():
    sampler = PoolSampler(POOL, 0)
    study = new_study(sampler)
    trial = study.ask(sampler.space)
    skip(study, trial.number)
    other = study.ask(sampler.space)
    assert other.params != trial.params
    assert sampler.history.observed == []


def test_any_sampler_of_optuna_may_be_kept_inside_the_pool():
    grid = optuna.samplers.GridSampler({"BM": [16, 32], "BN": [16], "warps": [1, 2], "mode": ["tma"]}, seed=0)
    found = asked(Within(POOL, grid), 6)
    assert len({str(c) for c in found}) == 6


def test_unknown_samplers_and_knobs_are_refused():
    with pytest.raises(UsageError, match="known: pool, random"):
        make("annealing", POOL, 0)
    with pytest.raises(UsageError, match="no knob of the pool"):
        new_study(PoolSampler(POOL)).ask({"BK": optuna.distributions.CategoricalDistribution([1, 2])})
    with pytest.raises(UsageError, match="no configuration"):
        Uniform(Pool(()))


def test_a_pool_as_numbers():
    x = encode(Pool(POOL.configs, features={"shared": [c["BM"] * c["BN"] for c in POOL.configs]}))
    assert x.shape[0] == len(POOL)
    assert x.min() == 0
    assert x.max() == 1
    assert len(knob([None, 4, 8, 16])) == 3  # missing, size, how often 2 divides it
    assert len(knob([16, 48, 80, 64])) == 2
    assert encode(Pool(({"a": 1}, {"a": 1}))).shape == (2, 1)  # nothing varies
    same = encode(Pool(({"a": 1, "b": 2}, {"a": 2, "b": 4}, {"a": 4, "b": 8})))
    assert same.shape[1] == 1  # copies say nothing


@pytest.mark.parametrize("suffix", [".db", ".log"])
def test_a_study_is_written_for_the_dashboard_and_read_again(tmp_path, suffix):
    sampler = PoolSampler(POOL, 0)
    study = new_study(sampler)
    for i in range(5):
        trial = study.ask(sampler.space)
        study.tell(trial, 10.0 + i) if i else study.tell(trial, state=optuna.trial.TrialState.FAIL)
    path = tmp_path / f"study{suffix}"
    where = export({"weft": study}, path)
    if suffix == ".db":
        read = optuna.load_study(study_name="weft", storage=where)
    else:
        backend = optuna.storages.journal.JournalFileBackend(str(path))
        read = optuna.load_study(study_name="weft", storage=optuna.storages.JournalStorage(backend))
    assert [(t.params, t.value) for t in read.trials] == [(t.params, t.value) for t in study.trials]
    with pytest.raises(UsageError, match="exists"):
        export({"weft": study}, path)
    with pytest.raises(UsageError, match=r"\.db"):
        export({"weft": study}, tmp_path / "study.txt")


def test_importing_the_tuner_takes_no_torch_and_its_types_nothing_heavy():
    code = (
        "import sys, weft.autotune, weft.autotune.types;"
        "heavy = {'torch', 'optuna', 'numpy', 'sympy'} & set(sys.modules);"
        "import weft.autotune.search.kernel, weft.autotune.session, weft.autotune.search.replays;"
        "print(sorted(heavy), 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[] False"
