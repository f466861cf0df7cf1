"""`make bench`: every CPU benchmark in turn; each prints a table and writes its JSON under results/."""

import sys

from benchmarks import attention, experts, hf, patterns, verbs


def main() -> int:
    codes = []
    for benchmark in (patterns, verbs, attention, experts, hf):
        print(f"\n{(benchmark.__doc__ or '').splitlines()[0]}", flush=True)
        codes.append(benchmark.main() or 0)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
