"""`make demo`: check, explain, compile and verify one spec as its user would, then train it for a minute."""

import os
import subprocess
import sys
from pathlib import Path

SPEC = "examples/specs/sparse_transformer_enwik8.yaml"
COMMANDS = (
    ("check", SPEC),
    ("explain", SPEC),
    ("compile", SPEC, "--small", "-o", "out/sparse_transformer", "--force"),
    ("verify", SPEC, "--small"),
)


def main() -> int:
    os.chdir(Path(__file__).resolve().parent.parent)
    for command in COMMANDS:
        print(f"\n$ weft {' '.join(command)}", flush=True)
        code = subprocess.run([sys.executable, "-m", "weft", *command], check=False).returncode
        if code:
            return code
    seconds = os.environ.get("DEMO_SECONDS", "60")
    print(f"\n$ python -m examples.train_bytes --seconds {seconds}", flush=True)
    return subprocess.run([sys.executable, "-m", "examples.train_bytes", "--seconds", seconds], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
