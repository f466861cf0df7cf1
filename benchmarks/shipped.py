"""Every kernel of every shipped spec at its published shapes, compiled for each target with no GPU.

    python -m benchmarks.shipped [--spec NAME ...] [--target sm_90 ...] [-o PATH]

For training and without, at the default configurations, in bf16. Rows of other specs, targets or Triton versions that
the file holds already stay. Exit code 1 where a kernel has a flaw: see `flaws`.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.environment import environment, version
from benchmarks.specs import EVERY as NAMES
from benchmarks.specs import SPECS
from weft import api
from weft.autotune.inspection import Inspected, Recorded, compiled, record
from weft.autotune.workers.compile_pool import CompilePool
from weft.codegen.build import files_of, temporary
from weft.codegen.package.disk import as_json

RESULT = Path(__file__).parent / "results" / "shipped.json"
TARGETS = ("sm_80", "sm_90", "sm_120")
DTYPE = "bf16"


def launches(name: str, target: str, train: bool = True) -> tuple[Path, list[Recorded]]:
    """The folder of a spec's package, and what its kernels launch on a target."""
    planned = api.planned(api.open_spec(SPECS / f"{name}.yaml"), train, target)
    folder = temporary(files_of(planned))
    return folder, record(planned, folder, target, DTYPE)


def survey(name: str, target: str, workers: int | None = None) -> Iterator[Inspected]:
    """Every distinct launch of a spec's packages, with a backward and without."""
    for train in (True, False):
        folder, found = launches(name, target, train)
        with CompilePool(folder / "kernels", workers) as compilers:
            yield from compiled(found, compilers, target, DTYPE)


def flaws(one: Inspected) -> list[str]:
    """What is wrong with a kernel: it must compile and fit; on sm_90 it must not spill, and its products be wgmma."""
    if one.reason:
        return [one.reason]
    out = [] if one.fits else [f"does not fit: {one.shared} bytes of shared memory, {one.regs} registers"]
    if one.target == "sm_90" and one.stack:
        out.append(f"{one.stack} bytes of stack")
    if one.dots and not (one.wgmma if one.target == "sm_90" else one.mma):
        out.append("no tensor-core instruction")
    return out


def row(name: str, target: str, found: list[Inspected]) -> dict[str, Any]:
    """A spec on a target: how many launches there are, compile, fit; how many have products and tensor cores for them.

    stack: of those that spill, bytes by kernel."""
    good = [f for f in found if not f.reason]
    return {
        "spec": name,
        "target": target,
        "triton": version("triton"),
        "launches": len(found),
        "compiled": len(good),
        "fit": sum(f.fits for f in good),
        "spilled": sum(f.stack > 0 for f in good),
        "with_dots": sum(f.dots > 0 for f in good),
        "with_wgmma": sum(f.wgmma > 0 for f in good),
        "with_mma": sum(f.mma > 0 for f in good),
        "cpu_s": round(sum(f.cpu_s for f in found), 1),
        "stack": {f"{f.kernel} {f.function}": f.stack for f in good if f.stack},
        "flaws": [{"kernel": f.kernel, "function": f.function, "flaws": flaws(f)} for f in found if flaws(f)],
    }


def kept(path: Path, fresh: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a result with a new one in its place."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    place = ("spec", "target", "triton")
    others = [r for r in rows if any(r[k] != fresh[k] for k in place)]
    return sorted([*others, fresh], key=lambda r: [r[k] for k in place])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--spec", action="append", choices=NAMES, dest="specs")
    parser.add_argument("--target", action="append", choices=TARGETS, dest="targets")
    parser.add_argument("--workers", type=int)
    parser.add_argument("-o", "--out", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    bad = 0
    for name in options.specs or NAMES:
        for target in options.targets or TARGETS:
            found = row(name, target, list(survey(name, target, options.workers)))
            rows = kept(options.out, found)
            options.out.write_text(as_json({"schema": "weft.shipped/1", "environment": environment(), "rows": rows}))
            bad += len(found["flaws"])
            shown = ", ".join(f"{found[k]} {k}" for k in ("launches", "compiled", "fit", "spilled"))
            dots = f"{found['with_dots']} with products, {found['with_wgmma']} wgmma, {found['with_mma']} mma"
            print(f"{name:<28} {target:<7} {shown}; {dots}; {found['cpu_s']} CPU-s", flush=True)
            for one in found["flaws"]:
                print(f"    {one['kernel']} {one['function']}: {'; '.join(one['flaws'])}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
