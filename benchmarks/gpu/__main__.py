"""Everything that needs a GPU, in one command of under ten minutes: `make gpu`, or `python -m benchmarks.gpu`.

    python -m benchmarks.gpu                    all stages; JSON in benchmarks/results/<gpu>/
    python -m benchmarks.gpu correctness        one stage; `tables` runs only when it is named
    python -m benchmarks.gpu --rehearse         the same code on a CPU, kernels interpreted, toy sizes; nothing is kept

Needs torch, triton and what they bring (sympy, networkx), no network: programs lie in lowered/. A stage runs in
processes of its own, so that a crash or a hang costs that stage alone; its rows are kept as they come. Without a GPU
nothing runs and the exit code is 0. Exit code 1: a kernel is wrong or a stage failed; an aim that is missed is said.
"""

import argparse
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.roofline import ceilings, share

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
GRACE = 45.0  # seconds that the case in hand may take beyond a stage's time


@dataclass(frozen=True)
class Kind:
    """A stage of the run. seconds: of its own, in so many processes at once (several only where nothing is timed).

    asked: does it run only when it is named?"""

    name: str
    seconds: float
    processes: int = 1
    asked: bool = False


STAGES = (
    Kind("ceilings", 20),
    Kind("correctness", 130, 12),
    Kind("training", 60, 6),
    Kind("attention", 140),
    Kind("regions", 110),
    Kind("tables", 500, asked=True),
)
"""Those that run unasked take, with starts and graces, under ten minutes."""


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="stage", help=f"of {', '.join(k.name for k in STAGES)}")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU at toy sizes")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="X", help="give every stage X times its seconds")
    parser.add_argument(
        "--worker", nargs=5, metavar=("STAGE", "SECONDS", "PATH", "SHARE", "SHARES"), help=argparse.SUPPRESS
    )
    args = parser.parse_args(given)
    if unknown := set(args.stages) - {k.name for k in STAGES}:
        parser.error(f"no stage is called {', '.join(sorted(unknown))}")
    if args.worker:
        return worker(args.rehearse, *args.worker)
    facts = machine()
    if facts["gpu"] is None and not args.rehearse:
        print(f"no GPU: {facts['why']}; nothing was run", file=sys.stderr)
        return 0
    chosen = [k for k in STAGES if k.name in args.stages or not (args.stages or k.asked)]
    began, failures, reached = time.monotonic(), 0, known_ceilings(facts)
    for kind in chosen:
        rows, fault = perform(kind, args.seconds, args.rehearse)
        reached = ceilings(rows) if kind.name == "ceilings" else reached
        share(rows, *reached)
        failures += report(kind, rows, fault)
        if not args.rehearse:
            keep(kind, rows, fault, facts)
    print(f"{time.monotonic() - began:.0f} s, {failures} failures", flush=True)
    return 1 if failures else 0


def machine() -> dict[str, Any]:
    """The GPU and the versions of what runs on it; "gpu" is None where there is none, and "why" says why."""
    if importlib.util.find_spec("torch") is None:
        return {"gpu": None, "why": "this Python has no torch"}
    import torch  # not before it is known to be there

    if not torch.cuda.is_available():
        return {"gpu": None, "why": "torch finds no CUDA device"}
    from benchmarks.environment import environment  # it imports torch, which need not be there

    p = torch.cuda.get_device_properties(0)
    about = {"arch": f"sm_{p.major}{p.minor}", "sms": p.multi_processor_count, "memory": p.total_memory}
    return {"gpu": p.name, **about, "cuda": torch.version.cuda, **environment()}


def worker(rehearse: bool, name: str, seconds: str, path: str, share: str, shares: str) -> int:
    """One process of a stage."""
    from benchmarks.gpu.stage import Stage  # it imports torch, which need not be there

    device = "cpu" if rehearse else "cuda"
    stage = Stage(name, device, float(seconds), Path(path), int(share), int(shares))
    importlib.import_module(f"benchmarks.gpu.{name}").run(stage)
    return 0


def perform(kind: Kind, factor: float, rehearse: bool) -> tuple[list[dict[str, Any]], str]:
    """The rows of a stage, and what went wrong with its processes."""
    seconds, count = kind.seconds * factor, 1 if rehearse else kind.processes
    env = os.environ | ({"TRITON_INTERPRET": "1"} if rehearse else {})
    flags = ["--rehearse"] if rehearse else []
    with tempfile.TemporaryDirectory(prefix="weft-gpu-") as scratch:
        paths = [Path(scratch) / f"{i}.jsonl" for i in range(count)]
        shares = [[kind.name, str(seconds), str(p), str(i), str(count)] for i, p in enumerate(paths)]
        command = [sys.executable, "-m", "benchmarks.gpu", *flags, "--worker"]
        running = [subprocess.Popen([*command, *s], env=env, cwd=ROOT, start_new_session=True) for s in shares]
        end, faults = time.monotonic() + seconds + GRACE, list[str]()
        for process in running:
            try:
                code = process.wait(max(0.1, end - time.monotonic()))
                faults += [f"a process ended with {code}"] if code else []
            except subprocess.TimeoutExpired:
                _kill(process)
                faults.append(f"a process was stopped after {seconds + GRACE:.0f} s")
        lines = [line for p in paths if p.exists() for line in p.read_text(encoding="utf-8").splitlines()]
    return [json.loads(line) for line in lines], "; ".join(dict.fromkeys(faults))


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With everything it has started: a compiler that hangs outlives its parent."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def report(kind: Kind, rows: Sequence[dict[str, Any]], fault: str) -> int:
    """Print what a stage found; how many failures that is."""
    checked, wrong = [r for r in rows if "ok" in r], [r for r in rows if r.get("ok") is False]
    skipped = [r for r in rows if "skipped" in r]
    said = [f"{len(rows)} rows"] + [f"{len(checked) - len(wrong)} of {len(checked)} checks held"] * bool(checked)
    said += [f"{len(skipped)} not begun"] * bool(skipped) + [fault] * bool(fault)
    print(f"{kind.name}: {', '.join(said)}")
    for r in rows:
        if r.get("ok") is False:
            print(f"  WRONG {r['case']} {r.get('dtype', '')}: {r.get('why') or r.get('error')}")
        elif "times" in r:
            print(f"  {line(r)}")
    sys.stdout.flush()
    return len(wrong) + bool(fault)


def line(row: dict[str, Any]) -> str:
    """A timed row for people: each competitor's time, as a multiple of weft's, and the aims that are missed."""
    own = row["times"]["weft"]
    text = f"{row['case']:44} weft {own['us']:9.1f} us" if "us" in own else f"{row['case']:44} weft: {own['why']}"
    text += "".join(f"  {k} {r:.2f}x" for k, r in row.get("ratios", {}).items())
    text += f"  {row['share']:.0%} of the roofline" if "share" in row else ""
    missed = [k for k, met in row.get("bars", {}).items() if not met]
    return text + (f"  (short of the aim against {', '.join(missed)})" if missed else "")


def folder(facts: dict[str, Any]) -> Path:
    """results/<gpu>"""
    return RESULTS / "-".join(str(facts["gpu"]).lower().split())


def known_ceilings(facts: dict[str, Any]) -> tuple[float, float]:
    """Those of an earlier run on such a GPU, for a stage that runs alone."""
    path = folder(facts) / "ceilings.json"
    return ceilings(json.loads(path.read_text(encoding="utf-8"))["rows"]) if path.exists() else (0.0, 0.0)


def keep(kind: Kind, rows: Sequence[dict[str, Any]], fault: str, facts: dict[str, Any]) -> None:
    """Write results/<gpu>/<stage>.json as a whole."""
    home = folder(facts)
    home.mkdir(parents=True, exist_ok=True)
    document = {"schema": f"weft.gpu.{kind.name}/1", "machine": facts, "fault": fault, "rows": list(rows)}
    path = home / f"{kind.name}.json"
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, path)


if __name__ == "__main__":
    sys.exit(main())
