"""What the verbs cost as whole processes: CPU-seconds and peak memory of check, plan and compile.

    python -m benchmarks.verbs

128 layers is the shipped CIFAR-10 spec; a million tokens is the Enwik8 spec with seq set. Each figure is the median of
several runs; CPU-seconds are user plus system time of the process, which finds weft compiled to bytecode as an
installed package is."""

import argparse
import compileall
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import weft
from benchmarks.environment import environment

RESULT = Path(__file__).parent / "results" / "verbs.json"
SPECS = Path(__file__).parent.parent / "examples" / "specs"
LAYERS = str(SPECS / "sparse_transformer_cifar10.yaml")
LONG = str(SPECS / "sparse_transformer_enwik8.yaml")

# name -> (arguments, CPU-seconds promised, GiB promised or None)
CASES: dict[str, tuple[tuple[str, ...], float, float | None]] = {
    "check, 128 layers": (("check", LAYERS), 0.6, None),
    "plan, 128 layers": (("plan", LAYERS), 4.0, None),
    "compile, 128 layers": (("compile", LAYERS, "-o", "{out}", "--force"), 5.0, None),
    "plan, 1,048,576 tokens": (("plan", LONG, "--set", "seq=1048576"), 5.0, 1.5),
}


def measure(arguments: tuple[str, ...]) -> tuple[float, float]:
    """CPU-seconds and peak GiB of one run of the command line."""
    command = [sys.executable, "-m", "weft", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"weft {' '.join(arguments)} gave {process.returncode}: {errors.decode()[-500:]}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    rows = {}
    compileall.compile_dir(Path(weft.__file__).parent, quiet=1)
    with tempfile.TemporaryDirectory() as folder:
        for name, (command, seconds, gib) in CASES.items():
            filled = tuple(part.format(out=f"{folder}/out") for part in command)
            runs = [measure(filled) for _ in range(options.repeats)]
            cpu, memory = (round(statistics.median(column), 3) for column in zip(*runs, strict=True))
            rows[name] = {"cpu_seconds": cpu, "promised": seconds, "peak_gib": memory, "promised_gib": gib}
            limit = f", {memory:.2f} GiB (at most {gib})" if gib else ""
            print(f"{name:<24} {cpu:6.2f} CPU-s (at most {seconds}){limit}", flush=True)
    RESULT.write_text(
        json.dumps({"schema": "weft.bench/1", "environment": environment(), "rows": rows}, indent=2) + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
