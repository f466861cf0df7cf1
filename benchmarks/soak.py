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
        command = [sys.executable, "-m", "pytest", f"--junitxml={report}", "-o", "junit_family=xunit1", *arguments]
        code = subprocess.run(command, env={**os.environ, "WEFT_SOAK": "1"}, check=False).returncode
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
    keep(" ".join(arguments) or "tests", found)
    print(f"{RESULT.relative_to(Path.cwd())}: {found['outcomes']}")
    return code


def keep(run: str, found: dict) -> None:
    """Put what a run found beside the runs of other folders; a run of everything replaces them all."""
    others = json.loads(RESULT.read_text())["runs"] if RESULT.exists() and run != "tests" else {}
    document = {"schema": "weft.soak/2", "runs": others | {run: found}}
    RESULT.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


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
