"""What a tuning came to: as data (`weft.tune/1`), as tables for a terminal, and as one HTML file."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from tabulate import tabulate

from weft.autotune.report.progress import micros
from weft.autotune.search.result import Result
from weft.autotune.types import FAULTS, Config, Status, Trial

TOP = 10


def data(result: Result) -> dict[str, Any]:
    """One kernel's result as JSON data: winner, confidence, convergence, funnel, faults, importance, top ten."""
    subject, best = result.subject, result.best
    return {
        "kernel": subject.label,
        "pool": len(subject.pool),
        "trials": len(result.trials),
        "recorded": result.recorded,
        "stopped": result.stopped,
        "seconds": round(result.seconds, 3),
        "winner": result.winner,
        "winner_us": result.winner_us,
        "confidence": round(result.final.confidence, 4),
        "why": result.final.why,
        "fastest_trial": None if best is None else {"config": best.config, "us": best.us},
        "incumbent": subject.incumbent,
        "incumbent_us": incumbent_us(result),
        "of_roofline": fraction(subject.roofline_us, result.winner_us),
        "curve_us": result.curve(),
        "origins": dict(Counter(t.origin for t in result.trials)),
        "funnel": funnel(result),
        "faults": faults(result),
        "enqueued_refused": list(result.refused),
        "importance": importance(result),
        "top": top(result),
    }


def fraction(part: float | None, whole: float | None) -> float | None:
    """part / whole, where both are known."""
    return part / whole if part and whole else None


def incumbent_us(result: Result) -> float | None:
    """The time of what was there before, in the finals if it took part, else in its trial."""
    for finalist in result.final.finalists:
        if finalist.config == result.subject.incumbent and finalist.times_us:
            return median(finalist.times_us)
    return next((t.us for t in result.trials if t.config == result.subject.incumbent), None)


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]


def spread(values: Sequence[float]) -> float | None:
    """Half the distance between the quartiles, over the median; None for fewer than four samples."""
    if len(values) < 4:
        return None
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return (ordered[-1 - quarter] - ordered[quarter]) / 2 / median(ordered)


def funnel(result: Result) -> list[dict[str, Any]]:
    """What became of every configuration: refused by a gate, failed, given up early, timed, not tried."""
    pool = result.subject.pool
    tried = Counter(t.outcome.status.value for t in result.trials)
    rows = [{"stage": "gate", "reason": reason, "count": n} for reason, n in ordered(pool.rejected)]
    failed = {s.value: tried.pop(s.value) for s in FAULTS if s.value in tried}
    rows += [{"stage": "trial", "reason": reason, "count": n} for reason, n in ordered(failed)]
    if tried.get(Status.SLOW.value):
        rows.append({"stage": "given up", "reason": "far behind the best", "count": tried[Status.SLOW.value]})
    rows.append({"stage": "timed", "reason": "", "count": tried.get(Status.OK.value, 0)})
    rows.append({"stage": "not tried", "reason": result.stopped, "count": max(0, len(pool) - len(result.trials))})
    return rows


def ordered(counts: Any) -> list[tuple[str, int]]:
    """Largest first."""
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def faults(result: Result) -> list[dict[str, Any]]:
    """Every trial that failed, with why."""
    return [
        {"trial": t.number, "config": t.config, "status": t.outcome.status.value, "reason": t.outcome.reason}
        for t in result.trials
        if t.outcome.status in FAULTS
    ]


def top(result: Result) -> list[dict[str, Any]]:
    """The ten fastest: finalists by the finals, then the rest by their trials."""
    finals = {id_of(f.config): f for f in result.final.finalists if f.times_us and math.isfinite(f.behind)}
    done = [t for t in result.trials if t.outcome.status is Status.OK and t.us]

    def place(trial: Trial) -> tuple[bool, float]:
        final = finals.get(id_of(trial.config))
        return (False, final.behind) if final else (True, trial.us or 0.0)

    rows: list[dict[str, Any]] = []
    for trial in sorted(done, key=place)[:TOP]:
        final = finals.get(id_of(trial.config))
        times = final.times_us if final else trial.outcome.times_us
        rows.append(
            {"config": trial.config, "us": median(times), "spread": spread(times), "samples": len(times),
             "behind": final.behind if final else None, "winner": trial.config == result.winner,
             "incumbent": trial.config == result.subject.incumbent}
        )  # fmt: skip
    return rows


def id_of(config: Config) -> str:
    return repr(sorted(config.items()))


def importance(result: Result) -> dict[str, float]:
    """How much each knob decides over being among the best, summing to 1 (PED-ANOVA, Watanabe et al. 2023); empty where
    there are too few trials."""
    if result.study is None or len({t.us for t in result.trials if t.us is not None}) < 8:
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is experimental
            found = get_param_importances(result.study, evaluator=PedAnovaImportanceEvaluator())
    except (ValueError, RuntimeError, ZeroDivisionError):
        return {}
    return {name: round(float(v), 4) for name, v in found.items() if math.isfinite(v)}


def text(result: Result) -> str:
    """For a terminal."""
    found = data(result)
    parts = [headline(found)]
    if found["top"]:
        parts.append(
            tabulate(top_rows(found), ("", "configuration", "time", "spread", "behind"), disable_numparse=True)
        )
    parts.append(tabulate([(r["stage"], r["reason"], r["count"]) for r in found["funnel"]], ("stage", "why", "count")))
    if found["importance"]:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in list(found["importance"].items())[:6])
        parts.append(f"what decides: {shares}")
    parts += [f"fault: {f['status']}: {spelled(f['config'])}: {f['reason']}" for f in found["faults"][:TOP]]
    if len(found["faults"]) > TOP:
        parts.append(f"and {len(found['faults']) - TOP} faults more, in the report")
    parts += [f"not tried: {line}" for line in found["enqueued_refused"]]
    return "\n\n".join(parts[:3]) + "".join(f"\n{part}" for part in parts[3:])


def headline(found: dict[str, Any]) -> str:
    """The result in two lines."""
    first = f"{found['kernel']}: {found['trials']} of {found['pool']:,} configurations in {found['seconds']:.4g} s"
    first += f" ({found['recorded']} known from before)" if found["recorded"] else ""
    if found["winner"] is None:
        return f"{first}; none of them runs ({found['stopped']})"
    second = f"winner {micros(found['winner_us'])}: {spelled(found['winner'])}; {found['why']}"
    second += f"; confidence {found['confidence']:.0%}" if found["confidence"] else ""
    second += f"; {found['of_roofline']:.0%} of roofline" if found["of_roofline"] else ""
    if found["incumbent_us"] and found["winner"] != found["incumbent"]:
        second += f"; {found['incumbent_us'] / found['winner_us']:.2f} times as fast as before"
    return f"{first}; stopped by {found['stopped']}\n{second}"


def top_rows(found: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """The table of the ten fastest."""
    return [
        ("winner" if r["winner"] else "incumbent" if r["incumbent"] else "", spelled(r["config"]), micros(r["us"]),
         "" if r["spread"] is None else f"{r['spread']:.1%}", "" if r["behind"] is None else f"{r['behind']:+.2%}")
        for r in found["top"]
    ]  # fmt: skip


def spelled(config: Config) -> str:
    """A configuration in one line."""
    return " ".join(f"{name}={value}" for name, value in config.items())
