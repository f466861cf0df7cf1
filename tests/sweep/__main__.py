"""python -m tests.sweep [--cases N] [--kernels K] [--seed S] [--shrink] [--without REGEX] [--workers W]
[--minutes M] [--streams SHARE] [--out FILE] [--result] [--again]"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from tests.sweep.campaign import STREAMS, Found, campaign, looked_beside
from tests.sweep.shrink import shrunk

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "sweep.json"


def main() -> int:
    o = options()
    kinds: dict[str, list[Found]] = {}
    done = with_kernels = 0
    figures: dict[str, Any] = {}
    spent, began = 0.0, time.monotonic()
    for found, covered in campaign(
        o.seed, o.cases, o.kernels, o.workers, o.without, o.first, o.streams, faulty() if o.again else ()
    ):
        done, with_kernels, spent = done + 1, with_kernels + found.with_kernels, spent + found.seconds
        for signature in {t.signature for t in found.faults}:
            kinds.setdefault(signature, []).append(found)
        told = "; ".join(sorted({t.signature for t in found.faults})) or "ok"
        if told != "ok" or done % 50 == 0:
            print(f"{done:5} case {found.number} {told}", flush=True)
        if o.out and found.faults:
            with open(o.out, "a") as out:
                out.write(json.dumps({"case": found.number, "faults": told, "spec": found.spec}) + "\n")
        figures = covered.figures()
        if time.monotonic() - began > 60 * o.minutes:
            break
    print(f"{done} cases, {with_kernels} with kernels, {spent:.0f} CPU-seconds; {figures}")
    for signature, cases in sorted(kinds.items(), key=lambda x: -len(x[1])):
        print(f"{len(cases):4}  {signature}")
        print("      " + json.dumps(smallest(signature, cases) if o.shrink else cases[0].spec), flush=True)
    wrong = {s: [f.number for f in cases] for s, cases in sorted(kinds.items())}
    if o.again:
        write(known() | repeated(wrong))
    if o.result:
        part = {"seed": o.seed, "first": o.first, "cases": done, "with_kernels": with_kernels, "faults": wrong}
        write(added(part, figures))
    return int(bool(kinds))


def write(result: dict[str, Any]) -> None:
    RESULT.write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")


def repeated(wrong: dict[str, list[int]]) -> dict[str, Any]:
    """What is to be said of a second run of the cases that had a fault, of which these still have one."""
    again = {"cases": faulty(), "faults": wrong, "environment": environment()}
    return {"again": again, "wrong": len({n for numbers in wrong.values() for n in numbers})}


def known() -> dict[str, Any]:
    """The result that is there."""
    return json.loads(RESULT.read_text())


def faulty() -> list[int]:
    """The numbers of the cases that had a fault when they were first run."""
    faults = (numbers for part in known()["parts"] for numbers in part["faults"].values())
    return sorted({n for numbers in faults for n in numbers})


def added(part: dict[str, Any], covered: dict[str, Any]) -> dict[str, Any]:
    """The result with one part more: a run that begins where the last part of its seed ended, or else at the start."""
    before = known()["parts"] if part["first"] else []
    if part["first"] != sum(p["cases"] for p in before) or any(p["seed"] != part["seed"] for p in before):
        raise SystemExit(f"the parts in {RESULT.name} do not end at case {part['first']} of seed {part['seed']}")
    parts = [*before, part | {"environment": environment(), "covered": covered}]
    totals = {name: sum(p[name] for p in parts) for name in ("cases", "with_kernels")}
    wrong = len({n for p in parts for numbers in p["faults"].values() for n in numbers})
    return {"schema": "weft.sweep/1", **totals, "wrong": wrong, "parts": parts}


def options() -> argparse.Namespace:
    p = argparse.ArgumentParser(prog="python -m tests.sweep", description="Specs over the whole language, compared.")
    p.add_argument("--cases", type=int, default=100)
    p.add_argument("--first", type=int, default=0, help="number of the first case that is run")
    p.add_argument("--seed", default="0")
    p.add_argument("--kernels", type=float, default=0, help="every so many cases their kernels too; 0: never")
    p.add_argument("--without", default="^$", help="options (`key=value`) that are not drawn: a regular expression")
    p.add_argument("--streams", type=float, default=STREAMS, help="the share of specs that have several streams")
    p.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    p.add_argument("--minutes", type=float, default=float("inf"), help="after which no further case is waited for")
    p.add_argument("--shrink", action="store_true", help="make a failing spec of each kind small")
    p.add_argument("--out", help="a line of JSON a failing case is added to this file")
    p.add_argument(
        "--result",
        action="store_true",
        help=f"add to {RESULT.name} beside the other results; with --first, to the parts that are there",
    )
    p.add_argument(
        "--again",
        action="store_true",
        help=f"run those cases again that had a fault in {RESULT.name}, drawn as they were (seed, cases, kernels, "
        "streams), and say there which still have",
    )
    return p.parse_args()


def smallest(signature: str, cases: list[Found]) -> dict[str, Any]:
    """The least spec that still has this fault."""
    from tests.sweep.compare import faults_of  # torch, which the process that hands out the work does without

    shortest = min(cases, key=lambda f: len(json.dumps(f.spec)))
    with_kernels = signature.startswith("kernels")
    beside = looked_beside(shortest.number)
    return shrunk(shortest.spec, lambda s: any(f.signature == signature for f in faults_of(s, with_kernels, beside)))


if __name__ == "__main__":
    sys.exit(main())
