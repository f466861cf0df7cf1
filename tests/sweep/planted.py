"""Plants faults that were mended, one at a time in a copy of the tree, and counts those that the sweep finds.

    python -m tests.sweep.planted [NAME ...] [--cases N] [--result]

A case has the options that the fault needs, so that a few are enough; a full sweep draws them by chance. The tree as it
is has to pass the case that finds the fault.
"""

import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.sweep.draw import Draw, Spec
from tests.sweep.mended import FAULTS, Planted

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "planted.json"
CASES = 12


def wanted(fault: Planted) -> Iterator[Spec]:
    """Specs without end that have the options a fault needs."""
    for i in itertools.count():
        draw = Draw(f"planted.{fault.name}.{i}", Counter())
        spec = draw.spec()
        if all(re.search(w, "\n".join(draw.told), re.MULTILINE) for w in fault.wants):
            yield spec


def found(fault: Planted, cases: int) -> tuple[int, Spec, str]:
    """(How many cases it took, the last one, what was wrong) in the tree that is imported; 0 where all pass."""
    from tests.sweep.compare import faults_of  # torch, which the process that hands out the work does without

    for n, spec in enumerate(itertools.islice(wanted(fault), cases)):
        if wrong := faults_of(spec, fault.kernels, beside=True):
            return n + 1, spec, str(wrong[0])
    return 0, {}, ""


def tried(fault: Planted, cases: int) -> dict[str, Any]:
    """What the sweep says of a copy with the fault, and whether the tree as it is passes where that does not."""
    from tests.sweep.compare import faults_of  # torch, which the process that hands out the work does without

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="weft-planted-") as folder:
        root = Path(folder)
        for part in ("weft", "tests"):
            shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
        for edit in fault.edits:
            edit.plant(root)
        command = [sys.executable, "-m", "tests.sweep.planted", "--inside", fault.name, "--cases", str(cases)]
        run = subprocess.run(
            command, cwd=root, env={**os.environ, "PYTHONPATH": folder}, capture_output=True, text=True
        )
    if run.returncode:
        raise RuntimeError(run.stderr[-2000:])
    n, spec, wrong = json.loads(run.stdout.splitlines()[-1])
    other = [str(f) for f in faults_of(spec, fault.kernels, beside=True)] if n else []
    row = {"what": fault.what, "found": bool(n) and not other, "cases": n or cases, "fault": wrong}
    return row | {"without_it": other, "seconds": round(time.monotonic() - began)}


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m tests.sweep.planted", description="Faults that the sweep would find.")
    p.add_argument("names", nargs="*")
    p.add_argument("--cases", type=int, default=CASES)
    p.add_argument("--inside", action="store_true", help="look in the tree that is imported, in which it was planted")
    p.add_argument("--result", action="store_true", help=f"write {RESULT.name} beside the other results")
    o = p.parse_args()
    faults = [f for f in FAULTS if not o.names or f.name in o.names]
    if o.inside:
        print(json.dumps(found(faults[0], o.cases)))
        return 0
    rows = dict[str, Any]()
    for fault in faults:
        row = rows[fault.name] = tried(fault, o.cases)
        print(
            f"{fault.name:24} case {row['cases']}: {row['fault']}"
            if row["found"]
            else f"{fault.name:24} NOT FOUND {row}",
            flush=True,
        )
    count = sum(row["found"] for row in rows.values())
    print(f"{count} of {len(rows)} found")
    if o.result:
        from benchmarks.environment import environment  # torch, which the process that hands out the work does without

        kept = {"schema": "weft.planted/1", "environment": environment(), "found": count, "of": len(rows)}
        RESULT.write_text(json.dumps(kept | {"faults": rows}, indent=2, sort_keys=True) + "\n")
    return int(count < len(rows))


if __name__ == "__main__":
    sys.exit(main())
