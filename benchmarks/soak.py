"""The full counts of every campaign: `make soak` runs the tests with WEFT_SOAK=1 and writes results/soak.json."""

import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from benchmarks.environment import environment

RESULT = Path(__file__).parent / "results" / "soak.json"


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-n", "auto", f"--junitxml={report}", "-o", "junit_family=xunit1"]
        env = {**os.environ, "WEFT_SOAK": "1", "OMP_NUM_THREADS": "1"}
        code = subprocess.run([*command, *arguments], env=env, check=False).returncode
        cases = [read(case) for case in ElementTree.parse(report).iter("testcase")]
    total = Counter(case["outcome"] for case in cases)
    slow = sorted(cases, key=lambda case: -case["seconds"])[:20]
    found = {
        "environment": environment(),
        "exit": code,
        "outcomes": dict(sorted(total.items())),
        "campaigns": {case["test"]: case["properties"] for case in cases if case["properties"]},
        "failed": [case["test"] for case in cases if case["outcome"] == "failed"],
        "slowest": [{"test": case["test"], "seconds": round(case["seconds"], 1)} for case in slow],
    }
    keep(" ".join(arguments) or "tests", found, cases)
    print(f"{RESULT.relative_to(Path.cwd())}: {found['outcomes']}")
    return code


def keep(run: str, found: dict, cases: list[dict]) -> None:
    """Put what a run found beside the runs of other folders; a run of everything replaces them all.

    A run of test files that a folder's run had as well counts there, each of its tests with the later outcome."""
    runs = json.loads(RESULT.read_text())["runs"] if RESULT.exists() and run != "tests" else {}
    folder = next((k for k in runs if k != run and all(p.startswith(f"{k}/") for p in run.split())), None)
    if folder is None:
        runs[run] = found
    else:
        again(runs[folder], found, {case["test"] for case in cases if case["outcome"] == "passed"})
    RESULT.write_text(json.dumps({"schema": "weft.soak/2", "runs": runs}, indent=2, sort_keys=True) + "\n")


def again(whole: dict, found: dict, passed: set[str]) -> None:
    """Take what was run once more into the folder's run; "again" says with which command what was."""
    mended = sorted(passed & set(whole["failed"]))
    failed = sorted((set(whole["failed"]) - passed) | set(found["failed"]))
    counts = Counter(whole["outcomes"])
    counts["passed"] += len(whole["failed"]) - len(failed)
    counts["failed"] = len(failed)
    whole["outcomes"], whole["failed"] = {k: n for k, n in sorted(counts.items()) if n}, failed
    whole["campaigns"] |= found["campaigns"]
    whole["exit"] = int(bool(failed))
    whole.setdefault("again", []).append({"command": found["environment"]["command"], "passed_now": mended})


def read(case: ElementTree.Element) -> dict:
    """One test: its name, outcome, seconds and the figures it recorded with `record_property`."""
    failed = case.find("failure") is not None or case.find("error") is not None
    return {
        "test": f"{case.get('classname')}::{case.get('name')}",
        "outcome": "failed" if failed else "skipped" if case.find("skipped") is not None else "passed",
        "seconds": float(case.get("time", 0)),
        "properties": {
            p.get("name"): p.get("value")
            for p in case.iter("property")
            if not p.get("name", "").startswith("hypothesis-")
        },
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
