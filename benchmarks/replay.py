"""Searches replayed on recorded tables: cold, warm, with the worst as seeds, by chance, by stock TPE; as fractions of
the optimum."""

import argparse
import json
import warnings
from itertools import accumulate
from pathlib import Path
from statistics import fmean

import optuna

from benchmarks.environment import environment
from weft.autotune.budget import Budget
from weft.autotune.search.kernel import Search
from weft.autotune.search.replay import RecordedTable, Replay, load
from weft.autotune.search.replays import Replays, replays, table_text
from weft.autotune.search.result import Options
from weft.autotune.search.sampler import PoolSampler
from weft.autotune.search.study import new_study

RESULT = Path(__file__).parent / "results" / "replay.json"
VENDORS = {"NVIDIA": ("nvidia", "geforce", "rtx", "tesla", "quadro"), "AMD": ("amd", "radeon", "instinct")}


def vendor(table: RecordedTable) -> str:
    """Of a table's GPU; "" where its name does not tell."""
    name = table.device.lower()
    return next((v for v, words in VENDORS.items() if any(w in name for w in words)), "")


def stock_tpe(table: RecordedTable, seed: int, trials: int) -> float:
    """Fraction of the optimum that Optuna's TPE reaches by itself: it knows the knobs, not the pool, so what it
    proposes may be infeasible or known, and counts as a trial all the same."""
    sampler = PoolSampler(table.configs)  # for the values of the knobs, and to find a configuration's row
    study, best = new_study(optuna.samplers.TPESampler(seed=seed)), []
    for _ in range(trials):
        trial = study.ask(sampler.space)
        row = sampler.history.row(trial.params)
        us = None if row is None else table.outcomes[row].us
        study.tell(trial, us) if us else study.tell(trial, state=optuna.trial.TrialState.FAIL)
        best.append(table.best_us / us if us else 0.0)
    return list(accumulate(best, max))[-1]


def hostile(table: RecordedTable, seed: int, trials: int) -> float:
    """Fraction of the optimum that is reached when the ten slowest configurations are said to have won elsewhere."""
    timed = sorted((o.us, place) for place, o in enumerate(table.outcomes) if o.us is not None)
    worst = [table.configs[place] for _, place in timed[:-11:-1]]
    options = Options(seed=seed)
    found = Search(table.subject(worst), [Replay(table)], Budget(trials=trials), options=options).run()
    return table.best_us / (found.curve()[-1] or float("inf"))


def measured(table: RecordedTable, others: list[RecordedTable], seeds: int, trials: int) -> dict[str, object]:
    """One table: every way of searching it."""
    same = [o for o in others if vendor(o) == vendor(table)]
    found: dict[str, Replays] = {
        "cold": replays(table, seeds=seeds, trials=trials),
        "random": replays(table, seeds=10 * seeds, trials=trials, sampler="random"),
    }
    if same:
        found["warm, same vendor"] = replays(table, seeds=seeds, trials=trials, warm=same)
    if others:
        found["warm, any vendor"] = replays(table, seeds=seeds, trials=trials, warm=others)
    print(table_text(list(found.values())), flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tpe = fmean(stock_tpe(table, seed, trials) for seed in range(seeds))
    worst = fmean(hostile(table, seed, trials) for seed in range(seeds))
    return {name: r.data() for name, r in found.items()} | {
        "stock TPE": round(tpe, 4),
        "hostile seeds": round(worst, 4),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default="../shared/data/replay")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=100)
    given = parser.parse_args(arguments)
    tables = [load(path) for path in sorted(Path(given.folder).glob("*.json*"))]
    if not tables:
        print(f"no recorded tables in {given.folder}")
        return 0
    found = {
        t.label: measured(t, [o for o in tables if o is not t and o.kernel == t.kernel], given.seeds, given.trials)
        for t in tables
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"environment": environment(), "tables": found}, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
